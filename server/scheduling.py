"""Scheduling: what each silo does next. A lease is a promise to schedule, not a guillotine.

Its deadline only tells others how long to wait. `next_task` returns a silo's open lease again, so an agent that was
killed picks up where it was; at most one lease per silo and job is open.

Jobs share a silo by turns, the job it took a lease of longest ago first, or as `server.sharing` says. A silo whose
leases of a job fail again and again waits longer and longer for its next one (`server.core.backoff`), for that job alone.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, bindparam, func, insert, select, update

from anabranch.errors import Reason, Refused
from anabranch.terms import parse_terms, seconds
from anabranch.tlog.entry import Actor, Target
from anabranch.tlog.fields import CODE_LINE, CODE_LINE_LENGTH, EXCEPTION
from anabranch.tlog.receipt import Receipt
from anabranch.wire import canonical
from server import groups
from server.audit.log import Log
from server.blobs.local import BlobStore
from server.core.backoff import RECENT, Backoff, Ended, backoff
from server.core.compass import Booking
from server.core.turn import Evaluate, Progress, Rest, Train, next_turn
from server.sharing import AGAIN, Sharing
from server.state import records
from server.state.database import Reader
from server.state.tables import decisions, jobs, leases, updates
from server.state.writer import Transaction, Writer
from server.tallies import tally

_OPEN = select(leases).where(
    leases.c.silo == bindparam("silo"), leases.c.job == bindparam("job"), leases.c.status == "open"
)
_LAST = (
    select(func.max(leases.c.issued_at))
    .where(leases.c.job == jobs.c.id, leases.c.silo == bindparam("silo"))
    .scalar_subquery()
)
_RUNNING = (
    select(jobs)
    .where(jobs.c.id.in_(bindparam("ready", expanding=True)), jobs.c.status == "running")
    .order_by(func.coalesce(_LAST, 0))
)
_APPROVED = (
    select(jobs)
    .join(decisions, decisions.c.job == jobs.c.id)
    .where(
        jobs.c.status == "running",
        decisions.c.silo == bindparam("silo"),
        decisions.c.decision == "approved",
    )
    .order_by(jobs.c.submitted_index)
)
# The newest of each, found at the end of an index: `max` would read all there ever were.
_TRIED = (
    select(leases.c.version)
    .where(
        leases.c.job == bindparam("job"),
        leases.c.silo == bindparam("silo"),
        leases.c.kind == "evaluate",
        leases.c.status != "open",
    )
    .order_by(leases.c.version.desc())
    .limit(1)
)
_SUBMITTED = (
    select(updates.c.base)
    .where(
        updates.c.job == bindparam("job"),
        updates.c.silo == bindparam("silo"),
        updates.c.status.in_(("received", "frozen", "merged")),
    )
    .order_by(updates.c.base.desc())
    .limit(1)
)
_ENDED = (
    select(leases.c.status, leases.c.reason, leases.c.released_at)
    .where(leases.c.silo == bindparam("silo"), leases.c.job == bindparam("job"), leases.c.status != "open")
    .order_by(leases.c.entry.desc())
    .limit(RECENT)
)
_INSERT = insert(leases)


SPENT = 10.0  # seconds until a silo without privacy budget may ask again: its policy may have changed


@dataclass(frozen=True)
class Lease:
    id: str
    job: str
    kind: Literal["train", "evaluate"]
    view: records.View
    nonce: str
    deadline: float  # unix seconds
    split: str
    local_steps: int
    receipt: Receipt


@dataclass(frozen=True)
class Wait:
    seconds: float
    reason: str


@dataclass(frozen=True)
class Scheduling:
    writer: Writer
    reader: Reader
    log: Log
    blobs: BlobStore
    observer: Actor
    entropy: Callable[[int], bytes]
    clock: Callable[[], float]
    sharing: Sharing

    def next_task(self, silo: str, ready: Sequence[str], spent: bool = False) -> Lease | Wait:
        """The silo's open lease, or a new one, over the jobs it is ready for; else how long to wait and why.

        `spent`: its privacy budget holds no training for them, and a private job asks for nothing else. Raises Unavailable
        when the disk could not hold the update a training lease would bring.
        """
        with self.reader.connect() as connection:
            candidates = _running(connection, silo, ready)
            for job in candidates:
                lease = _open_lease(connection, silo, job.id)
                if lease is not None:
                    return self._describe(connection, lease, self.log.receipt(lease.entry))
            if spent and candidates:
                return Wait(SPENT, f"this silo's privacy budget for {candidates[0].name} is spent")
            wait = Wait(2.0, "no running job that this silo approved")
            for job in candidates:
                turn = next_turn(parse_terms(job.terms), _progress(connection, silo, job))
                if isinstance(turn, Rest):
                    wait = Wait(turn.seconds, turn.reason)
                    continue
                now = self.clock()
                failed = failing(connection, silo, job, now)
                if now < failed.until:
                    why = f"{failed.failures} tasks of {job.name} failed in a row at this silo"
                    wait = Wait(failed.until - now, why)
                    continue
                if isinstance(turn, Train):
                    held_back = self._held_back(connection, silo, job, ready, now)
                    if held_back is not None:
                        wait = held_back
                        continue
                    self.blobs.reserve(records.manifest_of(job.manifest).file_bytes)
                return self._issue(silo, job.id)
            return wait

    def _held_back(
        self, connection: Connection, silo: str, job: Any, ready: Sequence[str], now: float
    ) -> Wait | None:
        """Why the silo does not train for `job` (a row) now although there is something to do."""
        if self.sharing.by_turns:
            return None
        self.sharing.heard(silo, ready)
        if self.sharing.busy(connection, silo, job.id, now):
            return Wait(AGAIN, "this silo trains for another job")
        free = [one for one in _approved(connection, silo) if _may_train(connection, silo, one, now)]
        first = self.sharing.ahead(connection, silo, free, ready, now)
        if first.id == job.id:
            return None
        return Wait(AGAIN, f"the next lease of this silo is for {first.name}")

    def _issue(self, silo: str, job: str) -> Lease | Wait:
        committed = self.writer.run(lambda tx: self._lease(tx, silo, job), "lease")
        with self.reader.connect() as connection:
            lease = committed.value and _open_lease(connection, silo, job)
            if not lease:
                return Wait(0.2, "the job has just moved on")
            receipt = committed.receipts[0] if committed.receipts else self.log.receipt(lease.entry)
            return self._describe(connection, lease, receipt)

    def _lease(self, tx: Transaction, silo: str, job_id: str) -> bool:
        """Inside the transaction everything is decided afresh; False when there is nothing to do after all."""
        if _open_lease(tx.connection, silo, job_id) is not None:
            return True
        for job in _running(tx.connection, silo, [job_id]):
            if tx.now < failing(tx.connection, silo, job, tx.now).until:
                return False
            terms = parse_terms(job.terms)
            turn = next_turn(terms, _progress(tx.connection, silo, job))
            if isinstance(turn, Train):
                if self.sharing.busy(tx.connection, silo, job_id, tx.now):
                    return False
                scheduled = terms.file.aggregation.strategy == "fedcompass"
                booking = groups.book(tx.connection, job, terms, silo, tx.now) if scheduled else None
                steps = booking.steps if booking else terms.file.training.local_steps
                self._insert(tx, silo, job, "train", job.head, "", steps, booking)
                return True
            if isinstance(turn, Evaluate):
                self._insert(tx, silo, job, "evaluate", turn.version, terms.file.evaluation.split, 0)
                return True
        return False

    def _insert(
        self,
        tx: Transaction,
        silo: str,
        job: Any,
        kind: str,
        version: int,
        split: str,
        local_steps: int,
        booking: Booking | None = None,
    ) -> None:
        terms = parse_terms(job.terms)
        lease, nonce = self.entropy(16).hex(), self.entropy(16).hex()
        deadline = booking.latest if booking else tx.now + seconds(terms.file.aggregation.max_wait)
        group = (booking.group or lease) if booking else None
        base = records.version_row(tx.connection, job.id, version)
        entry = tx.log(
            "lease.issued",
            actor=self.observer,
            target=Target(kind="lease", id=lease),
            job=job.id,
            detail={
                "lease": lease,
                "silo": silo,
                "kind": kind,
                "version": version,
                "view_sha256": records.view_of(tx.connection, job, base, silo).digest,
                "deadline": canonical.utc(deadline),
                "nonce": nonce,
                "local_steps": local_steps,
                **({"group": group, "expected": canonical.utc(booking.expected)} if booking else {}),
            },
        )
        row = {
            "id": lease,
            "job": job.id,
            "silo": silo,
            "kind": kind,
            "version": version,
            "nonce": nonce,
            "issued_at": tx.now,
            "deadline": deadline,
            "split": split,
            "local_steps": local_steps,
            "status": "open",
            "arrival_group": group,
            "expected": booking.expected if booking else None,
            "step_seconds": booking.step_seconds if booking else None,
            "entry": entry,
        }
        tx.connection.execute(_INSERT, row)

    def _describe(self, connection: Connection, lease: Any, receipt: Receipt) -> Lease:
        job = records.job_row(connection, lease.job)
        version = records.version_row(connection, lease.job, lease.version)
        view = records.view_of(connection, job, version, lease.silo)
        return Lease(
            lease.id,
            lease.job,
            lease.kind,
            view,
            lease.nonce,
            lease.deadline,
            lease.split,
            lease.local_steps,
            receipt,
        )

    def release(
        self, silo: str, actor: Actor, lease: str, reason: str, exception: str, code_line: str
    ) -> Receipt:
        """The silo could not do the task; it will be asked again with a new lease.

        What does not fit the log's closed alphabet is left out of it. Raises Refused(BAD_LEASE, MALFORMED).
        """
        if reason not in set(Reason):
            raise Refused(Reason.MALFORMED, f"{reason[:40]!r} is not a reason code this server knows")
        told = {"exception": (exception, EXCEPTION), "code_line": (code_line, CODE_LINE)}
        where = {
            name: text
            for name, (text, pattern) in told.items()
            if len(text) <= CODE_LINE_LENGTH and re.fullmatch(pattern, text)
        }

        def decide(tx: Transaction) -> None:
            row = tx.connection.execute(
                select(leases).where(leases.c.id == lease, leases.c.silo == silo)
            ).first()
            if row is None or row.status != "open":
                raise Refused(Reason.BAD_LEASE, f"lease {lease} is not an open lease of silo {silo}")
            tx.log(
                "lease.released",
                actor=actor,
                target=Target(kind="lease", id=lease),
                job=row.job,
                status="failure",
                reason=reason,
                detail={"lease": lease, "silo": silo, "reason": reason, **where},
            )
            fault = " at ".join(where[name] for name in ("exception", "code_line") if name in where)
            values: dict[str, Any] = {
                "status": "released",
                "reason": reason,
                "fault": fault,
                "released_at": tx.now,
            }
            tx.connection.execute(update(leases).where(leases.c.id == lease).values(values))
            tally(tx, row.job, silo, "released", reason, fault=fault)

        return self.writer.run(decide, "release").receipts[0]


def _running(connection: Connection, silo: str, ready: Sequence[str]) -> list[Any]:
    """Running jobs among `ready` that the silo takes part in; the one it worked on longest ago first, so jobs share it."""
    running = connection.execute(_RUNNING, {"silo": silo, "ready": list(ready)}).all()
    return [row for row in running if silo in records.participants(connection, row.id)]


def _approved(connection: Connection, silo: str) -> list[Any]:
    """Running jobs that the silo takes part in, in order of submission."""
    return list(connection.execute(_APPROVED, {"silo": silo}))


def _may_train(connection: Connection, silo: str, job: Any, now: float) -> bool:
    if _open_lease(connection, silo, job.id) is not None:  # it is late, and worked on
        return False
    turn = next_turn(parse_terms(job.terms), _progress(connection, silo, job))
    return isinstance(turn, Train) and now >= failing(connection, silo, job, now).until


def failing(connection: Connection, silo: str, job: Any, now: float) -> Backoff:
    """Whether the silo has to wait for its next lease of `job` (a row)."""
    ended = [Ended(*row) for row in connection.execute(_ENDED, {"silo": silo, "job": job.id})]
    return backoff(ended, job.resumed_at or 0.0, now)


def _open_lease(connection: Connection, silo: str, job: str) -> Any:
    return connection.execute(_OPEN, {"silo": silo, "job": job}).first()


def _progress(connection: Connection, silo: str, job: Any) -> Progress:
    mine = {"job": job.id, "silo": silo}
    tried, submitted = (connection.execute(query, mine).scalar() for query in (_TRIED, _SUBMITTED))
    scheduled = parse_terms(job.terms).file.aggregation.strategy == "fedcompass"
    return Progress(job.head, tried, submitted, scheduled and groups.waits(connection, job.id, silo))
