"""What an operator asks of a running job: who is late, who is refused and why, how old the buffer is."""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean
from typing import Any, Protocol

from sqlalchemy import Connection, func, literal, select

from anabranch.terms import JobTerms, parse_terms
from server.state import records
from server.state.database import Reader
from server.state.tables import decisions, evaluations, jobs, leases, silos, updates


class Presence(Protocol):
    """Who is connected, as the sessions know it."""

    def connected(self, silo: str) -> bool: ...
    def last_seen(self, silo: str) -> float: ...  # unix seconds, 0.0: never
    def progress(self, lease: str) -> tuple[int, int]: ...  # step, steps


@dataclass(frozen=True)
class SiloStatus:
    silo: str
    decision: str
    connected: bool
    last_seen: float
    base: int
    training: bool
    step: int
    steps: int
    received: int
    merged: int
    refused: int
    retired: int
    mean_staleness: float
    bytes: int
    last_reason: str


@dataclass(frozen=True)
class Evaluated:
    version: int
    silo: str  # "": mean over silos
    split: str
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class JobStatus:
    job: str
    name: str
    status: str
    reason: str
    head: int
    versions: int
    best: int
    buffered: int
    buffer: int
    buffer_age_seconds: float
    silos: tuple[SiloStatus, ...]
    evaluations: tuple[Evaluated, ...]
    server_time: float


def job_statuses(reader: Reader, presence: Presence, now: float, job: str | None = None) -> list[JobStatus]:
    """One job, or all, newest first. Raises Refused(NOT_FOUND) for an unknown job."""
    with reader.connect() as connection:
        if job is not None:
            rows = [records.job_row(connection, job)]
        else:
            rows = list(connection.execute(select(jobs).order_by(jobs.c.submitted_at.desc())))
        return [_status(connection, presence, now, row) for row in rows]


def _status(connection: Connection, presence: Presence, now: float, job: Any) -> JobStatus:
    terms = parse_terms(job.terms)
    waiting = select(func.count(), func.min(updates.c.received_at)).where(
        updates.c.job == job.id, updates.c.status.in_(("received", "frozen"))
    )
    buffered, oldest = connection.execute(waiting).one()
    known = sorted(connection.execute(select(silos.c.name).where(silos.c.status == "active")).scalars())
    members = sorted(
        {*known, *connection.execute(select(decisions.c.silo).where(decisions.c.job == job.id)).scalars()}
    )
    expected = records.participants(connection, job.id)
    return JobStatus(
        job=job.id,
        name=job.name,
        status=job.status,
        reason=job.reason,
        head=job.head,
        versions=terms.file.stop.versions,
        best=job.best or 0,
        buffered=buffered,
        buffer=len(expected)
        if terms.file.aggregation.strategy == "fedavg"
        else terms.file.aggregation.buffer,
        buffer_age_seconds=now - oldest if oldest is not None else 0.0,
        silos=tuple(_silo(connection, presence, job.id, silo) for silo in members),
        evaluations=tuple(_evaluations(connection, job.id, terms)),
        server_time=now,
    )


def _silo(connection: Connection, presence: Presence, job: str, silo: str) -> SiloStatus:
    mine = (updates.c.job == job, updates.c.silo == silo)
    by_state: dict[str, int] = defaultdict(int)
    for state, count in connection.execute(
        select(updates.c.status, func.count()).where(*mine).group_by(updates.c.status)
    ):
        by_state[state] = count
    totals = select(func.avg(updates.c.staleness), func.sum(updates.c.bytes)).where(
        *mine, updates.c.status == "merged"
    )
    staleness, size = connection.execute(totals).one()
    lease = connection.execute(
        select(leases).where(leases.c.job == job, leases.c.silo == silo, leases.c.status == "open")
    ).first()
    step, steps = presence.progress(lease.id) if lease else (0, 0)
    return SiloStatus(
        silo=silo,
        decision=records.decision_of(connection, job, silo),
        connected=presence.connected(silo),
        last_seen=presence.last_seen(silo),
        base=lease.version if lease else 0,
        training=lease is not None and lease.kind == "train",
        step=step,
        steps=steps,
        received=by_state["received"] + by_state["frozen"],
        merged=by_state["merged"],
        refused=by_state["refused"],
        retired=by_state["retired"],
        mean_staleness=staleness or 0.0,
        bytes=size or 0,
        last_reason=_last_reason(connection, job, silo),
    )


def _last_reason(connection: Connection, job: str, silo: str) -> str:
    """Of the newest refusal or failed task; of a failed task also the exception and the job's own line."""
    refused = (
        select(updates.c.received_at, updates.c.reason, literal(""))
        .where(updates.c.job == job, updates.c.silo == silo, updates.c.status == "refused")
        .order_by(updates.c.entry.desc())
        .limit(1)
    )
    failed = (
        select(leases.c.released_at, leases.c.reason, leases.c.fault)
        .where(leases.c.job == job, leases.c.silo == silo, leases.c.reason != "")
        .order_by(leases.c.released_at.desc())
        .limit(1)
    )
    found = [tuple(row) for query in (refused, failed) for row in connection.execute(query)]
    _, reason, fault = max(found, default=(0.0, "", ""))
    return f"{reason}: {fault}" if fault else str(reason)


def _evaluations(connection: Connection, job: str, terms: JobTerms) -> list[Evaluated]:
    """The newest evaluated version, per silo and as the mean over the silos that reported."""
    newest = connection.execute(
        select(func.max(evaluations.c.version)).where(evaluations.c.job == job)
    ).scalar()
    if newest is None:
        return []
    query = select(evaluations).where(evaluations.c.job == job, evaluations.c.version == newest)
    rows = connection.execute(query.order_by(evaluations.c.silo)).all()
    each = [Evaluated(newest, row.silo, row.split, json.loads(row.metrics)) for row in rows]
    common = set.intersection(*(set(one.metrics) for one in each))
    means = {name: mean(one.metrics[name] for one in each) for name in sorted(common)}
    return [*each, Evaluated(newest, "", terms.file.evaluation.split, means)]
