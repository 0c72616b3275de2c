"""Sharing silos among jobs, where the server's `allocation` is not by turns: the facts `server.core.allocation` decides on.

Agents ask for one job at a time, so a silo that asks for one job while another is to be next is told to wait, and the
other one's question is answered. A job whose question does not come is passed over until it does: nobody waits for a
job that its silo is not ready for. That alone is kept in memory; a restart costs such a silo one more wait.
"""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sqlalchemy import Connection, bindparam, delete, func, insert, select

from anabranch.terms import parse_terms
from server.core import allocation
from server.core.allocation import RECENT, WINDOW, Allocation, Sketches, Standing, next_job, shares
from server.core.sketch import WIDTH
from server.state import records
from server.state.tables import jobs, leases, sketches
from server.state.writer import Transaction

PATIENCE = 10.0  # seconds for a job to ask for the lease that is kept for it
AGAIN = 1.0  # seconds until a job that is not next may ask again

_LIVE = select(jobs).where(jobs.c.status == "running").order_by(jobs.c.submitted_index)
_AT_WORK = (leases.c.status == "open", leases.c.kind == "train", leases.c.deadline > bindparam("now"))
_ACTIVE = select(leases.c.job, func.count().label("silos")).where(*_AT_WORK).group_by(leases.c.job)
_BUSY = (
    select(leases.c.job)
    .where(*_AT_WORK, leases.c.silo == bindparam("silo"), leases.c.job != bindparam("job"))
    .limit(1)
)
_TAKEN = (
    select(leases.c.entry)
    .where(leases.c.silo == bindparam("silo"), leases.c.job == bindparam("job"), leases.c.kind == "train")
    .order_by(leases.c.entry.desc())
    .limit(RECENT)
)
_SKETCHES = select(sketches.c.newest).where(sketches.c.job == bindparam("job"))


@dataclass(frozen=True)
class Share:
    """How a job stands, for an operator."""

    leases: int  # it should have
    active: int  # it has, in time
    why: str


@dataclass
class Sharing:
    allocation: Allocation
    _lock: threading.Lock = field(default_factory=threading.Lock)
    # Silo → when it first waited for another job's question; (silo, job) whose question did not come.
    _kept_since: dict[str, float] = field(default_factory=dict)
    _away: set[tuple[str, str]] = field(default_factory=set)

    @property
    def by_turns(self) -> bool:
        return self.allocation.rule == "turns"

    def busy(self, connection: Connection, silo: str, job: str, now: float) -> bool:
        """Whether the silo trains for another job: it has one training lease at a time. What is late counts no more."""
        mine = {"silo": silo, "job": job, "now": now}
        return not self.by_turns and connection.execute(_BUSY, mine).first() is not None

    def heard(self, silo: str, ready: Sequence[str]) -> None:
        """The silo asks for these: they are there, and are passed over no more."""
        with self._lock:
            self._away -= {(silo, job) for job in ready}

    def ahead(
        self, connection: Connection, silo: str, free: Sequence[Any], ready: Sequence[str], now: float
    ) -> Any:
        """The job (a row of `free`, in order of submission) whose lease the silo is to take, `ready` or not."""
        standings = self._standings(connection, now)
        active = {one.job: one.active for one in standings}
        share = shares(standings, sum(active.values()) + 1)
        taken = {
            row.id: list(connection.execute(_TAKEN, {"silo": silo, "job": row.id}).scalars()) for row in free
        }
        with self._lock:
            here = {job: entries for job, entries in taken.items() if (silo, job) not in self._away}
            picked = next_job(share, active, here)
            while picked not in ready:
                if now - self._kept_since.setdefault(silo, now) < PATIENCE:
                    break
                self._away.add((silo, picked))
                del here[picked]
                picked = next_job(share, active, here)
            else:
                self._kept_since.pop(silo, None)
        return next(row for row in free if row.id == picked)

    def told(self, connection: Connection, now: float) -> dict[str, Share]:
        """Job → how it stands; nothing where jobs share by turns."""
        if self.by_turns:
            return {}
        standings = self._standings(connection, now)
        share = shares(standings, sum(one.active for one in standings))
        return {one.job: Share(share[one.job], one.active, self._why(one)) for one in standings}

    def _why(self, one: Standing) -> str:
        if one.weight is None:
            return f"the mean of the others: no score before {WINDOW} updates"
        return f"score {one.weight:.2f}" if self.allocation.rule == "fedast" else f"stated {one.weight:g}"

    def _standings(self, connection: Connection, now: float) -> list[Standing]:
        active = {row.job: row.silos for row in connection.execute(_ACTIVE, {"now": now})}
        found = []
        for row in connection.execute(_LIVE).all():
            silos = len(records.participants(connection, row.id))
            if silos and row.head < parse_terms(row.terms).file.stop.versions:
                weight = self.allocation.weight(row.name, row.score)
                found.append(Standing(row.id, weight, active.get(row.id, 0), silos))
        return found


def learn(tx: Transaction, job: Any, newest: Iterable[Sketches]) -> float | None:
    """Keep the sketches of the updates a version of `job` (a row) was made of; the job's score from now on."""
    kept = tx.connection.execute(_SKETCHES, {"job": job.id}).scalar()
    before = np.frombuffer(kept or b"", np.float64).reshape(-1, WIDTH)
    window = np.vstack([before, *newest])[-WINDOW:]
    tx.connection.execute(delete(sketches).where(sketches.c.job == job.id))
    tx.connection.execute(insert(sketches).values(job=job.id, newest=window.tobytes()))
    return allocation.smoothed(job.score, allocation.score(window))
