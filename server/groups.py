"""The arrival groups of a fedcompass job, read from its leases and updates: the facts `server.core.compass` decides by."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, select

from anabranch.terms import JobTerms
from server.core import compass
from server.core.buffer import Closing, StillOpen
from server.core.compass import Arrived, Booking, Member
from server.state import records
from server.state.tables import leases, updates

# Found by status and sorted here: what these read must not grow with a job's history.
_MEMBER = (leases.c.silo, leases.c.arrival_group, leases.c.expected, leases.c.deadline, leases.c.step_seconds)
_AT_WORK = select(leases.c.job, leases.c.kind, *_MEMBER).where(leases.c.status == "open")
_ARRIVED = (
    select(updates.c.id, updates.c.received_at, updates.c.entry, *_MEMBER)
    .join(leases, leases.c.id == updates.c.lease)
    .where(updates.c.job == bindparam("job"), updates.c.status.in_(bindparam("statuses", expanding=True)))
)
_NEWEST = (
    select(leases.c.step_seconds, leases.c.issued_at, updates.c.received_at, leases.c.local_steps)
    .join(updates, (updates.c.lease == leases.c.id) & (updates.c.status != "refused"))
    .where(
        leases.c.job == bindparam("job"),
        leases.c.silo == bindparam("silo"),
        leases.c.kind == "train",
        leases.c.status == "fulfilled",
    )
    .order_by(leases.c.entry.desc())
    .limit(1)
)
_MERGED = select(updates.c.silo).where(
    updates.c.job == bindparam("job"), updates.c.version == bindparam("head")
)


def waits(connection: Connection, job: str, silo: str) -> bool:
    """Whether `silo` has to wait until what it sent is merged."""
    return compass.waits(silo, _arrived(connection, job, ("received", "frozen")))


def book(connection: Connection, job: Any, terms: JobTerms, silo: str, now: float) -> Booking | None:
    """The next lease of `silo` for `job` (a row); None while its speed is not known."""
    own = _speed(connection, job.id, silo)
    if own is None:
        return None
    at_work, arrived = _at_work(connection, job.id), _arrived(connection, job.id, ("received", "frozen"))
    merged = set(connection.execute(_MERGED, {"job": job.id, "head": job.head}).scalars())
    busy = {one.silo for one in at_work} | {one.member.silo for one in arrived}
    free = (merged & set(records.participants(connection, job.id))) - busy - {silo}
    known = {name: _speed(connection, job.id, name) for name in free}
    speeds = {silo: own, **{name: speed for name, speed in known.items() if speed is not None}}
    return compass.book(terms, silo, speeds, at_work, arrived, now)


def closing(connection: Connection, job: str, terms: JobTerms, now: float) -> Closing | StillOpen:
    """Whether a group closes now; or when to look again."""
    waiting = _arrived(connection, job, ("received",))
    return compass.close(terms.file.aggregation, waiting, _at_work(connection, job), now)


def _at_work(connection: Connection, job: str) -> list[Member]:
    found = connection.execute(_AT_WORK)
    return [_member(row) for row in found if (row.job, row.kind) == (job, "train")]


def _arrived(connection: Connection, job: str, statuses: Sequence[str]) -> list[Arrived]:
    rows = connection.execute(_ARRIVED, {"job": job, "statuses": statuses})
    return [Arrived(row.id, row.received_at, _member(row)) for row in sorted(rows, key=lambda row: row.entry)]


def _member(row: Any) -> Member:
    return Member(row.silo, row.arrival_group, row.expected or 0.0, row.deadline, row.step_seconds or 0.0)


def _speed(connection: Connection, job: str, silo: str) -> float | None:
    newest = connection.execute(_NEWEST, {"job": job, "silo": silo}).first()
    return compass.speed(*newest) if newest else None
