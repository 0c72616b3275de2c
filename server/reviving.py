"""Reviving: what silos' newest models agree on is distilled into the head, in a process of its own.

    claim → the reviver reads the head and its teachers, and computes → submit | skip

Aggregation never waits for it. A result waits for the next aggregation, which adds it behind the server optimizer, if
the head has not moved on too far; else it is dropped. Only silos that allow it are teachers, and one that takes its
word back takes the tasks and results it taught with it (`server.lifecycle`).

If the reviver dies, it claims again and gets the same task, until its deadline. If this process dies, a task goes on.
"""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import Connection, bindparam, func, insert, select, update

from anabranch.errors import Reason, Refused
from anabranch.terms import Revival, parse_terms
from anabranch.tlog.entry import Actor, Target
from anabranch.tlog.receipt import Receipt
from anabranch.tlog.revivals import Effect
from anabranch.wire import canonical
from server import lifecycle
from server.audit.log import Log
from server.blobs.local import BlobStore
from server.core.revival import LATER, PATIENCE, Ending, Report, Standing, in_time, rest
from server.gaps import Gap, Reached, nothing
from server.judging import judge_of
from server.scheduling import Wait
from server.spool import SpoolFile
from server.state import records
from server.state.database import Reader
from server.state.tables import jobs, revivals, updates
from server.state.writer import Transaction, Writer

logger = structlog.get_logger("reviving")
_LAST = select(func.max(revivals.c.claimed_at)).where(revivals.c.job == jobs.c.id).scalar_subquery()
_RUNNING = (
    select(jobs)
    .where(jobs.c.id.not_in(bindparam("resting", expanding=True)), jobs.c.status == "running")
    .order_by(func.coalesce(_LAST, 0))
)
_HELD = select(jobs).where(jobs.c.id.in_(bindparam("holding", expanding=True)), jobs.c.status == "running")
_REVIVAL = select(revivals).where(revivals.c.id == bindparam("task"))
_OPEN = select(revivals).where(revivals.c.job == bindparam("job"), revivals.c.status.in_(("claimed", "done")))
_NEWEST = select(func.max(revivals.c.version)).where(revivals.c.job == bindparam("job"))
_OVERDUE = select(revivals).where(
    revivals.c.job.in_(select(jobs.c.id).where(jobs.c.status.not_in(lifecycle.ENDED))),
    revivals.c.status == "claimed",
    revivals.c.deadline < bindparam("now"),
)
_TEACHERS = (
    select(updates).where(updates.c.id.in_(bindparam("taught", expanding=True))).order_by(updates.c.silo)
)


@dataclass(frozen=True)
class Teacher:
    """A silo's newest model: `delta_sha256` added to version `base`."""

    silo: str
    update: str
    base: int
    base_sha256: str
    delta_sha256: str


@dataclass(frozen=True)
class RevivalTask:
    id: str
    job: str
    terms_sha256: str
    version: int  # the head to begin from
    head_sha256: str
    deadline: float  # unix seconds
    task_seconds: float  # of the fastest silo's newest tasks, in the median; 0: none is known
    teachers: tuple[Teacher, ...]  # by silo


@dataclass(frozen=True)
class Ended:
    """`reason` is "" for a result that was taken; the receipt proves revival.performed or revival.skipped."""

    receipt: Receipt
    reason: str


@dataclass(frozen=True)
class Reviving:
    writer: Writer
    reader: Reader
    log: Log
    blobs: BlobStore
    observer: Actor
    entropy: Callable[[int], bytes]
    clock: Callable[[], float]  # unix seconds
    reached: Reached = nothing

    def claim(self, name: str, resting: Collection[str] = ()) -> RevivalTask | Wait:
        """The task this reviver has, or a new one, of a job it does not rest from; else how long to wait and why.

        Raises Unavailable when the disk could not hold a result.
        """
        self.give_up()
        wait = Wait(LATER, "no running job is to be revived")
        with self.reader.connect() as connection:
            running = connection.execute(_RUNNING, {"resting": list(resting)}).all()
            for job in running:  # what it has comes before any new task of another job
                held = _open(connection, job.id)
                if held is not None and (held.status, held.reviver) == ("claimed", name):
                    return _describe(connection, held)
            for job in running:
                rule = parse_terms(job.terms).file.revival
                if rule is None:
                    continue
                found = rest(rule, _standing(connection, job))
                if found is None:
                    self.blobs.reserve(records.manifest_of(job.manifest).file_bytes)
                    break
                wait = Wait(found.seconds, found.reason)
            else:
                return wait
        self.writer.run(lambda tx: self._claim(tx, name, job.id), "claim")
        with self.reader.connect() as connection:
            held = _open(connection, job.id)
            if held is None or (held.status, held.reviver) != ("claimed", name):
                return Wait(0.2, "the job has just moved on")
            return _describe(connection, held)

    def _claim(self, tx: Transaction, name: str, job_id: str) -> None:
        """Inside the transaction everything is decided afresh."""
        job = records.job_row(tx.connection, job_id)
        rule = parse_terms(job.terms).file.revival
        if job.status != "running" or rule is None or rest(rule, _standing(tx.connection, job)) is not None:
            return
        row = {
            "id": self.entropy(16).hex(),
            "job": job_id,
            "version": job.head,
            "reviver": name,
            "teachers": json.dumps({one.silo: one.id for one in records.teachers(tx.connection, job_id)}),
            "claimed_at": tx.now,
            "deadline": tx.now + PATIENCE,
            "status": "claimed",
        }
        tx.connection.execute(insert(revivals).values(row))

    def allowed(self, holding: Collection[str]) -> Mapping[str, tuple[str, ...]]:
        """Job → silos whose models a reviver may hold; whatever else it holds it has to forget."""
        with self.reader.connect() as connection:
            held = connection.execute(_HELD, {"holding": list(holding)}).all()
            return {
                job.id: tuple(records.teaching(connection, job.id))
                for job in held
                if parse_terms(job.terms).file.revival is not None
            }

    def file(self, name: str, task: str, digest: str) -> Path:
        """A file the task in flight names: the head, its teachers' bases and deltas, the job's terms, manifest and code.

        Raises Refused for any other.
        """
        with self.reader.connect() as connection:
            row = _of(connection, name, task)
            if row.status != "claimed":
                raise Refused(Reason.BAD_LEASE, f"revival {task} has ended: {row.reason or row.status}")
            told, terms = _describe(connection, row), records.job_terms(connection, row.job)
        own = {told.terms_sha256, terms.manifest_sha256, terms.archive_sha256, told.head_sha256}
        taught = {digest for one in told.teachers for digest in (one.base_sha256, one.delta_sha256)}
        if digest not in own | taught:
            raise Refused(Reason.NOT_FOUND, f"revival {task} names no file {digest[:80]}")
        return self.blobs.require(digest)

    def receive(self, name: str, task: str, digest: str) -> SpoolFile:
        """Where a result is streamed into: a file of the job's manifest. Hand it to `submit`, or discard it.

        Raises Refused for a task that is not this reviver's, Unavailable when the disk is full.
        """
        with self.reader.connect() as connection:
            manifest = records.job_manifest(connection, _of(connection, name, task).job)
        self.blobs.reserve(manifest.file_bytes)
        size = manifest.file_bytes
        return SpoolFile(self.blobs.spool(), size, digest, judge_of(manifest, None, size), 0, nothing)

    def submit(self, name: str, actor: Actor, task: str, result: SpoolFile, report: Report) -> Ended:
        """Take the result of a task: trained head − head.

        One that is too late is logged as skipped, and a task that has ended is answered with its end. Raises Refused
        for a file that is cut short or is not what its digest says, and while the terms let nothing be distilled: the
        task goes on.
        """
        try:
            with self.reader.connect() as connection:
                row = _of(connection, name, task)
                rule = _rule(records.job_row(connection, row.job))
            if row.status != "claimed":
                return self._ended(row)
            if row.version < rule.warmup:
                raise Refused(
                    Reason.MALFORMED,
                    f"the terms let nothing be distilled before version {rule.warmup}; skip it as warmup",
                )
            norm = result.check()
            self.blobs.adopt(result.path, result.digest)
        finally:
            result.discard()
        self.reached(Gap.REVIVAL_STORED)
        self.writer.run(lambda tx: self._take(tx, name, actor, task, result.digest, norm, report), "revive")
        return self._how(name, task)

    def _take(
        self, tx: Transaction, name: str, actor: Actor, task: str, digest: str, norm: float, report: Report
    ) -> None:
        row = _of(tx.connection, name, task)
        if row.status != "claimed":
            return
        job = records.job_row(tx.connection, row.job)
        late = "late" if not in_time(_rule(job), job.head, row.version) else ""
        missed = late or ("deadline" if row.deadline < tx.now else "")
        if missed:
            lifecycle.end_revival(tx, self.observer, row, missed)
            return
        entry = tx.log(
            "revival.performed",
            actor=actor,
            target=Target(kind="revival", id=task, sha256=digest),
            job=row.job,
            detail={
                "revival": task,
                "version": row.version,
                "delta_sha256": digest,
                "norm": canonical.hexfloat(norm),
                "teachers": [{"silo": silo, "update": one} for silo, one in json.loads(row.teachers).items()],
                "seed": report.seed,
                "device": report.device,
                "libraries": report.libraries,
                "seconds": canonical.hexfloat(report.seconds),
                "effect": _effect(report),
            },
        )
        done = {"status": "done", "delta": digest, "report": report.model_dump_json(), "entry": entry}
        tx.connection.execute(update(revivals).where(revivals.c.id == task).values(done))

    def skip(self, name: str, actor: Actor, task: str, reason: Ending, why: str | None = None) -> Ended:
        """The reviver has no result for this version, and says why: `why` names an exception, or what does not pay."""

        def decide(tx: Transaction) -> None:
            row = _of(tx.connection, name, task)
            if row.status == "claimed":
                lifecycle.end_revival(tx, actor, row, reason, why)

        self.writer.run(decide, "skip")
        return self._how(name, task)

    def give_up(self) -> None:
        """End the tasks whose deadline has passed. A chore of the running server."""
        with self.reader.connect() as connection:
            overdue = connection.execute(_OVERDUE, {"now": self.clock()}).first() is not None
        if overdue:
            self.writer.run(self._give_up, "give up")

    def _give_up(self, tx: Transaction) -> None:
        for row in tx.connection.execute(_OVERDUE, {"now": tx.now}).all():
            lifecycle.end_revival(tx, self.observer, row, "deadline")

    def _how(self, name: str, task: str) -> Ended:
        with self.reader.connect() as connection:
            return self._ended(_of(connection, name, task))

    def _ended(self, row: Any) -> Ended:
        ended = Ended(self.log.receipt(row.entry), row.reason if row.status == "skipped" else "")
        if ended.reason:
            logger.warning("revival skipped", job=row.job, revival=row.id, reason=ended.reason)
        return ended


def _of(connection: Connection, name: str, task: str) -> Any:
    """The row of a task of this reviver. Raises Refused(NOT_FOUND)."""
    row = connection.execute(_REVIVAL, {"task": task}).first()
    if row is None or row.reviver != name:
        raise Refused(Reason.NOT_FOUND, f"reviver {name} has no task {task[:80]}; claim one")
    return row


def _effect(report: Report) -> dict[str, str] | None:
    if report.effect is None:
        return None
    told = report.model_dump(exclude_none=True)
    return {name: canonical.hexfloat(told[name]) for name in Effect.model_fields if name in told}


def _open(connection: Connection, job: str) -> Any:
    return connection.execute(_OPEN, {"job": job}).first()


def _rule(job: Any) -> Revival:
    rule = parse_terms(job.terms).file.revival
    assert rule is not None  # or there would be no task
    return rule


def _standing(connection: Connection, job: Any) -> Standing:
    held = _open(connection, job.id)
    return Standing(
        head=job.head,
        last=parse_terms(job.terms).file.stop.versions,
        teachers=len(records.teachers(connection, job.id)),
        newest=connection.execute(_NEWEST, {"job": job.id}).scalar(),
        open=held and held.status,
    )


def _describe(connection: Connection, row: Any) -> RevivalTask:
    job = records.job_row(connection, row.job)
    taught = connection.execute(_TEACHERS, {"taught": list(json.loads(row.teachers).values())}).all()

    def teacher(one: Any) -> Teacher:
        base = records.version_row(connection, row.job, one.base)
        begun = records.view_of(connection, job, base, one.silo)
        return Teacher(one.silo, one.id, one.base, begun.digest, one.delta)

    return RevivalTask(
        id=row.id,
        job=row.job,
        terms_sha256=job.terms_digest,
        version=row.version,
        head_sha256=records.version_row(connection, row.job, row.version).parameters,
        deadline=row.deadline,
        task_seconds=records.task_seconds(connection, row.job),
        teachers=tuple(map(teacher, taught)),
    )
