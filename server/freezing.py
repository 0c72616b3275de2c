"""What a buffer that closes is made of, read from the state store: the facts a strategy's plan follows from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, func, select

from anabranch.link import Packing
from anabranch.rules.buffer import Buffer, Delta, Input, Snapshot, Source
from anabranch.rules.strategies import COUNTING
from anabranch.terms import JobTerms
from server.state import records
from server.state.tables import decisions, revivals, updates, versions

_MINE = (updates.c.job == bindparam("job"), updates.c.silo == bindparam("silo"), updates.c.status == "merged")
_TAKEN = select(updates).where(updates.c.id.in_(bindparam("taken", expanding=True))).order_by(updates.c.entry)
_UPDATE = select(updates.c.delta, updates.c.base, updates.c.silo).where(updates.c.id == bindparam("update"))
_RESULT = select(revivals.c.delta).where(revivals.c.id == bindparam("revival"))
_WAITS = select(revivals).where(revivals.c.job == bindparam("job"), revivals.c.status == "done")
_NEWEST = select(updates.c.id).where(*_MINE).order_by(updates.c.entry.desc()).limit(1)
_APPROVED_AT = (  # the head when the silo last approved
    select(func.max(versions.c.number))
    .join(decisions, decisions.c.job == versions.c.job)
    .where(
        versions.c.job == bindparam("job"),
        decisions.c.silo == bindparam("silo"),
        versions.c.entry < decisions.c.entry,
    )
)
_ARRIVED = select(func.count(updates.c.version.distinct())).where(
    *_MINE, updates.c.version > bindparam("since")
)


def buffer_of(
    connection: Connection, job: Any, terms: JobTerms, taken: Sequence[str], revival: str | None
) -> Buffer:
    """Of the updates `taken`, in log order, on the head of `job` (a row), and of the `revival` unless it was dropped."""
    waits = revival_of(connection, job.id) if revival else None
    rows = connection.execute(_TAKEN, {"taken": taken}).all()
    strategy = terms.file.aggregation.strategy
    windows = {row.silo: (0, 0) for row in rows}
    if strategy == "fedfix":
        windows = {silo: _windows(connection, job, silo) for silo in windows}
    participants = tuple(sorted(records.participants(connection, job.id))) if strategy in COUNTING else ()
    return Buffer(
        head=job.head,
        inputs=tuple(
            Input(row.id, row.silo, row.base, job.head - row.base, row.examples, order, *windows[row.silo])
            for order, row in enumerate(rows)
        ),
        participants=participants,
        cached=_cached(connection, job.id, participants) if strategy == "ca2fl" else {},
        revival=waits.id if waits else None,
    )


def revival_of(connection: Connection, job: str) -> Any:
    """The row of the revival whose result waits, or None."""
    return connection.execute(_WAITS, {"job": job}).first()


@dataclass(frozen=True)
class File:
    digest: str
    packing: Packing | None = None


def files(connection: Connection, job: str, terms: JobTerms, sources: Sequence[Source]) -> dict[Source, File]:
    """Behind the terms of a plan. Only updates travelled: versions and what a reviver distilled are stored whole."""
    found: dict[Source, File] = {}
    for source in sources:
        if isinstance(source, Snapshot):
            found[source] = File(records.version_row(connection, job, source.version).parameters)
        elif isinstance(source, Delta):
            row = connection.execute(_UPDATE, {"update": source.update}).one()
            found[source] = File(row.delta, terms.file.upload(row.base, row.silo))
        else:
            found[source] = File(connection.execute(_RESULT, {"revival": source.revival}).scalar_one())
    return found


def _cached(connection: Connection, job: str, participants: Sequence[str]) -> dict[str, str]:
    newest = {silo: connection.execute(_NEWEST, {"job": job, "silo": silo}).scalar() for silo in participants}
    return {silo: update for silo, update in newest.items() if update is not None}


def _windows(connection: Connection, job: Any, silo: str) -> tuple[int, int]:
    """In how many of the job's windows since it approved an update of the silo arrived, with this one."""
    since = connection.execute(_APPROVED_AT, {"job": job.id, "silo": silo}).scalar_one()
    before = {"job": job.id, "silo": silo, "since": since}
    return connection.execute(_ARRIVED, before).scalar_one() + 1, job.head - since + 1
