"""What an operator asks of running jobs: who is late, who is refused and why, how fast it goes, when it ends.

Asked every second by everybody who watches, so no query grows with a job's history: what has ended is read from
`tallies`, rates from the newest few rows of an index.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any, Protocol

from sqlalchemy import Connection, func, select

from anabranch.terms import JobTerms, parse_terms
from server.core.backoff import Backoff
from server.core.doing import doing, silent
from server.core.pace import NEWEST, pace
from server.core.revival import Report
from server.lifecycle import ENDED
from server.scheduling import failing
from server.sessions import LeaseProgress
from server.sharing import Share, Sharing
from server.state import records
from server.state.database import Reader
from server.state.tables import (
    decisions,
    evaluations,
    jobs,
    leases,
    revivals,
    silos,
    tallies,
    updates,
    versions,
)

FAILED = ("refused", "released")  # outcomes a silo's owner has to look into


class Presence(Protocol):
    """Who is connected, as the sessions know it."""

    def connected(self, silo: str) -> bool: ...
    def last_seen(self, silo: str) -> float: ...  # unix seconds, 0.0: never
    def progress(self, lease: str) -> LeaseProgress: ...


@dataclass(frozen=True)
class Tally:
    outcome: str  # merged | refused | retired of updates, released of leases
    reason: str
    count: int


@dataclass(frozen=True)
class SiloStatus:
    silo: str
    state: str  # `server.core.doing`
    decision: str
    connected: bool
    last_seen: float
    lease: str  # open, or ""
    leased_seconds: float  # how long ago it was issued
    late_seconds: float  # past its deadline; 0.0: in time
    base: int
    training: bool
    step: int
    steps: int
    elsewhere: str  # another job whose lease this silo holds, or ""
    received: int
    merged: int
    refused: int
    retired: int
    mean_staleness: float
    bytes: int  # of merged updates, as they were sent
    whole_bytes: int  # of the same updates without [link]; 0: the job has none
    samples_per_second: float  # of its training now, as its agent says; 0.0: not known
    tokens_per_second: float
    tallies: tuple[Tally, ...]
    failures: int  # leases that failed in a row
    retry_seconds: float  # until it may have its next lease
    last_reason: str


@dataclass(frozen=True)
class Evaluated:
    version: int
    silo: str  # "": mean over silos
    split: str
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class RevivalStatus:
    teachers: tuple[str, ...]  # silos whose models may teach
    tallies: tuple[Tally, ...]  # outcome: `server.core.revival`
    version: int  # the newest result began from; 0: there is none
    agreement_before: float
    agreement_after: float
    accuracy_before: float
    accuracy_after: float
    seconds: float


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
    versions_per_hour: float
    updates_per_minute: float
    eta_seconds: float  # until the last version at this pace; 0.0: not known
    silos: tuple[SiloStatus, ...]
    evaluations: tuple[Evaluated, ...]
    server_time: float
    share: Share | None  # of the silos; None where jobs take turns, and of a job that does not go on
    revival: RevivalStatus | None  # of a job with [revival]
    terms_sha256: str
    head_sha256: str  # of the head's parameters


@dataclass(frozen=True)
class _Facts:
    """Of one job, each read in one query."""

    decisions: Mapping[str, str]
    waiting: Mapping[str, int]  # silo → updates received or frozen
    tallies: Mapping[str, Sequence[Any]]  # silo → rows
    leases: Mapping[str, Sequence[Any]]  # silo → its open leases, of all jobs
    whole: int  # bytes of an update without [link]; 0: the job has none


def job_statuses(
    reader: Reader, presence: Presence, sharing: Sharing, now: float, job: str | None = None
) -> list[JobStatus]:
    """One job, or all, newest first. Raises Refused(NOT_FOUND) for an unknown job."""
    with reader.connect() as connection:
        if job is not None:
            rows = [records.job_row(connection, job)]
        else:
            rows = list(connection.execute(select(jobs).order_by(jobs.c.submitted_at.desc())))
        return _statuses(connection, presence, sharing, now, rows)


def going_on(
    reader: Reader, presence: Presence, sharing: Sharing, now: float, also: Collection[str], most: int
) -> list[JobStatus]:
    """Jobs that have not ended, newest first, then those of `also` that have; at most `most`."""
    wanted = jobs.c.status.not_in(ENDED) | jobs.c.id.in_(also)
    query = (
        select(jobs).where(wanted).order_by(jobs.c.status.in_(ENDED), jobs.c.submitted_at.desc()).limit(most)
    )
    with reader.connect() as connection:
        return _statuses(connection, presence, sharing, now, list(connection.execute(query)))


def _statuses(
    connection: Connection, presence: Presence, sharing: Sharing, now: float, rows: Sequence[Any]
) -> list[JobStatus]:
    known = set(connection.execute(select(silos.c.name).where(silos.c.status == "active")).scalars())
    held = _by_silo(connection.execute(select(leases).where(leases.c.status == "open")))
    shares = sharing.told(connection, now)
    return [_status(connection, presence, now, row, known, held, shares.get(row.id)) for row in rows]


def _status(
    connection: Connection,
    presence: Presence,
    now: float,
    job: Any,
    known: set[str],
    held: Mapping[str, Sequence[Any]],
    share: Share | None,
) -> JobStatus:
    terms = parse_terms(job.terms)
    buffered, oldest, waiting = _waiting(connection, job.id)
    decided = select(decisions.c.silo, decisions.c.decision).where(decisions.c.job == job.id)
    counted = select(tallies).where(tallies.c.job == job.id).order_by(tallies.c.outcome, tallies.c.reason)
    facts = _Facts(
        {row.silo: row.decision for row in connection.execute(decided)},
        waiting,
        _by_silo(connection.execute(counted)),
        held,
        0 if terms.file.link is None else records.file_bytes(terms.manifest_sha256, job.manifest),
    )
    expected = len(records.participants(connection, job.id))
    speed, arrivals = _pace(connection, job, now)
    left = terms.file.stop.versions - job.head
    return JobStatus(
        job=job.id,
        name=job.name,
        status=job.status,
        reason=job.reason,
        head=job.head,
        versions=terms.file.stop.versions,
        best=job.best or 0,
        buffered=buffered,
        buffer=expected
        if terms.file.aggregation.strategy in ("fedavg", "fedfix", "fedcompass")
        else terms.file.aggregation.buffer,
        buffer_age_seconds=now - oldest if oldest is not None else 0.0,
        versions_per_hour=speed * 3600,
        updates_per_minute=arrivals * 60,
        eta_seconds=left / speed if speed and left > 0 else 0.0,
        silos=tuple(
            _silo(connection, presence, now, job, silo, facts)
            for silo in sorted(known | set(facts.decisions))
        ),
        evaluations=tuple(_evaluations(connection, job.id, terms)),
        server_time=now,
        share=share,
        revival=None if terms.file.revival is None else _revival(connection, job.id),
        terms_sha256=job.terms_digest,
        head_sha256=records.version_row(connection, job.id, job.head).parameters,
    )


_TOLD = ("agreement_before", "agreement_after", "accuracy_before", "accuracy_after", "seconds")


def _revival(connection: Connection, job: str) -> RevivalStatus:
    c, mine = revivals.c, revivals.c.job == job
    # At most one for a version, and counted in an index that has nothing else.
    counted = select(c.status, c.reason, func.count()).where(mine).group_by(c.status, c.reason)
    newest = select(revivals).where(mine, c.report.is_not(None)).order_by(c.version.desc()).limit(1)
    row = connection.execute(newest).first()
    report = Report.model_validate_json(row.report) if row else None
    told = report.model_dump() if report else {}
    return RevivalStatus(
        teachers=tuple(records.teaching(connection, job)),
        tallies=tuple(Tally(*counts) for counts in connection.execute(counted)),
        version=row.version if row else 0,
        **{name: told.get(name) or 0.0 for name in _TOLD},
    )


def _waiting(connection: Connection, job: str) -> tuple[int, float | None, dict[str, int]]:
    """Updates that are not merged yet: how many, when the oldest came, how many of which silo."""
    # Grouped here: asked to group, SQLite walks the index by silo through every update there ever was.
    query = select(updates.c.silo, updates.c.received_at).where(
        updates.c.job == job, updates.c.status.in_(("received", "frozen"))
    )
    rows = connection.execute(query).all()
    oldest = min((row.received_at for row in rows), default=None)
    return len(rows), oldest, Counter(row.silo for row in rows)


def _pace(connection: Connection, job: Any, now: float) -> tuple[float, float]:
    """Versions and updates per second; nothing happens in a job that does not run."""
    if job.status != "running":
        return 0.0, 0.0
    published = select(versions.c.published_at).where(versions.c.job == job.id, versions.c.number > 0)
    arrived = select(updates.c.received_at).where(updates.c.job == job.id)
    newest = [
        list(connection.execute(query.limit(NEWEST)).scalars())
        for query in (published.order_by(versions.c.number.desc()), arrived.order_by(updates.c.entry.desc()))
    ]
    since = job.resumed_at or job.submitted_at
    return pace(newest[0], since, now), pace(newest[1], since, now)


def _silo(
    connection: Connection, presence: Presence, now: float, job: Any, silo: str, facts: _Facts
) -> SiloStatus:
    counted = facts.tallies.get(silo, ())
    counts: dict[str, int] = defaultdict(int)
    for row in counted:
        counts[row.outcome] += row.count
    held = facts.leases.get(silo, ())
    lease = next((one for one in held if one.job == job.id), None)
    told = presence.progress(lease.id) if lease else LeaseProgress()
    failed = [row for row in counted if row.outcome in FAILED]
    waits = failing(connection, silo, job, now) if failed and job.status == "running" else Backoff(0, 0.0)
    connected, last_seen = presence.connected(silo), presence.last_seen(silo)
    decision, merged = facts.decisions.get(silo, ""), [row for row in counted if row.outcome == "merged"]
    return SiloStatus(
        silo=silo,
        state=doing(
            decision,
            silent(last_seen, connected, now),
            connected,
            lease.kind if lease else "",
            waits.until > now,
        ),
        decision=decision,
        connected=connected,
        last_seen=last_seen,
        lease=lease.id if lease else "",
        leased_seconds=now - lease.issued_at if lease else 0.0,
        late_seconds=max(0.0, now - lease.deadline) if lease else 0.0,
        base=lease.version if lease else 0,
        training=lease is not None and lease.kind == "train",
        step=told.step,
        steps=told.steps,
        samples_per_second=told.samples_per_second if connected else 0.0,
        tokens_per_second=told.tokens_per_second if connected else 0.0,
        elsewhere=next((one.job for one in held if one.job != job.id), ""),
        received=facts.waiting.get(silo, 0),
        merged=counts["merged"],
        refused=counts["refused"],
        retired=counts["retired"],
        mean_staleness=sum(row.staleness for row in merged) / max(counts["merged"], 1),
        bytes=sum(row.bytes for row in merged),
        whole_bytes=counts["merged"] * facts.whole,
        tallies=tuple(Tally(row.outcome, row.reason, row.count) for row in counted),
        failures=waits.failures,
        retry_seconds=max(0.0, waits.until - now),
        last_reason=_last_reason(failed),
    )


def _last_reason(failed: Sequence[Any]) -> str:
    """Of the newest refusal or failed task; of a failed task also the exception and the job's own line."""
    if not failed:
        return ""
    newest = max(failed, key=lambda row: row.newest)
    return f"{newest.reason}: {newest.fault}" if newest.fault else str(newest.reason)


def _by_silo(rows: Any) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        found[row.silo].append(row)
    return found


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
