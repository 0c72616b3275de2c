"""Aggregation: buffered updates become the next version.

    freeze (transaction 1) → compute → store the blobs → publish (transaction 2)

Freezing fixes the ordered inputs, every scalar and the head. Whatever happens afterwards, computing the frozen step
again gives the same bytes, so a restart simply does so. Publishing succeeds only if the head is unchanged and no
input was withdrawn meanwhile; otherwise the step is abandoned and its remaining inputs wait for the next freeze.
"""

import json
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import structlog
from sqlalchemy import Connection, bindparam, func, insert, select, update

from anabranch.errors import AnabranchError, Corrupt, Refused
from anabranch.rules import step as rules
from anabranch.rules.buffer import Source
from anabranch.terms import JobTerms, parse_terms
from anabranch.tlog.entry import Actor
from anabranch.wire import canonical
from anabranch.wire.tensors import TensorWriter
from server import freezing, groups, lifecycle, metrics, sharing, views
from server.blobs.local import BlobStore
from server.core.buffer import Closing, StillOpen, Waiting, close
from server.core.revival import in_time
from server.core.sketch import sketched
from server.gaps import Gap, Reached, nothing
from server.inputs import Inputs
from server.publishing import Computed, log_aggregation, log_version
from server.state import records
from server.state.database import Reader
from server.state.tables import jobs, revivals, steps, updates, versions
from server.state.writer import Transaction, Writer
from server.step import Step, dump, hexed, load
from server.tallies import tally

logger = structlog.get_logger("aggregation")
DAMAGED = "storage_damaged"  # why a job is paused, in the log
IDLE = 1.0  # seconds between looks at the clock when nothing arrives

_FROZEN = select(steps).where(steps.c.job == bindparam("job"), steps.c.status == "frozen")
_WAITING = (
    select(updates.c.id, updates.c.silo, updates.c.base, updates.c.received_at)
    .where(updates.c.job == bindparam("job"), updates.c.status == "received")
    .order_by(updates.c.entry)
)
_MERGE = (
    update(updates)
    .where(updates.c.id == bindparam("which"))
    .values(status="merged", version=bindparam("number"), staleness=bindparam("late"))
)
_FREEZE = update(updates).where(updates.c.id.in_(bindparam("inputs", expanding=True))).values(status="frozen")
_SIZES = select(updates.c.id, updates.c.bytes).where(updates.c.id.in_(bindparam("inputs", expanding=True)))
_STILL_FROZEN = (
    select(func.count())
    .select_from(updates)
    .where(updates.c.id.in_(bindparam("inputs", expanding=True)), updates.c.status == "frozen")
)
_ADD_STEP, _ADD_VERSION = insert(steps), insert(versions)
_USE = update(revivals).where(revivals.c.id == bindparam("revival")).values(status="used")
_END_STEP = update(steps).where(steps.c.id == bindparam("step"))
_MOVE_HEAD = update(jobs).where(jobs.c.id == bindparam("job"))


class Aggregation:
    """One thread that looks at every running job whenever an update arrived or a deadline passed."""

    def __init__(
        self,
        writer: Writer,
        reader: Reader,
        blobs: BlobStore,
        observer: Actor,
        clock: Callable[[], float],
        entropy: Callable[[int], bytes],
        reached: Reached = nothing,
        scores: bool = False,
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._blobs = blobs
        self._observer = observer
        self._clock = clock
        self._entropy = entropy
        self._reached = reached
        self._scores = scores
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="aggregation", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Return after the step in progress, which is published."""
        self._stopping = True
        self._wake.set()
        self._thread.join()

    def wake(self) -> None:
        self._wake.set()

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait(IDLE)
            self._wake.clear()
            try:
                for job in self._running_jobs():
                    if not self._stopping:
                        self._attend(job)
            except Exception:
                logger.exception("the jobs could not be listed; trying again")

    def _attend(self, job: str) -> None:
        """One step, so that a busy job does not starve another; what fails is tried again."""
        try:
            if self.advance(job):
                self._wake.set()
        except AnabranchError as error:
            logger.error("aggregation stopped", job=job, error=str(error))
        except Exception:
            logger.exception("aggregation failed", job=job)

    def _running_jobs(self) -> list[str]:
        with self._reader.connect() as connection:
            return list(connection.execute(select(jobs.c.id).where(jobs.c.status == "running")).scalars())

    def advance(self, job: str) -> bool:
        """One step if the job is ready for one; True when a version was published."""
        frozen = self.freeze(job)
        return frozen is not None and self.finish(frozen)

    def freeze(self, job: str) -> Step | None:
        """Transaction 1, or the step a crash interrupted before its second. Without one a job that is over is concluded."""
        frozen = self._open_step(job) or self._writer.run(lambda tx: self._freeze(tx, job), "freeze").value
        if frozen is None:
            self.conclude(job)
        return frozen

    def conclude(self, job: str) -> None:
        """What `freeze` does where nothing closes."""
        self._writer.run(lambda tx: lifecycle.conclude(tx, self._observer, job), "conclude")

    def finish(self, frozen: Step) -> bool:
        """Compute, store, and transaction 2; True when the version was published."""
        try:
            with metrics.AGGREGATION_SECONDS.time():
                snapshot = self._compute(frozen)
        except (Refused, Corrupt) as error:
            # The arithmetic left float32: training on would only make it worse. Or a blob is not what was stored: its
            # updates wait until the operator has restored it and resumes the job. Either way a person decides.
            reason = error.code.value if isinstance(error, Refused) else DAMAGED
            logger.error("job paused", job=frozen.job, reason=reason, error=str(error))
            self._writer.run(lambda tx: self._give_up(tx, frozen, reason), "pause")
            return False
        return self._writer.run(lambda tx: self._publish(tx, frozen, snapshot), "publish").value

    def _open_step(self, job: str) -> Step | None:
        """A step that a crash interrupted between its two transactions."""
        with self._reader.connect() as connection:
            row = connection.execute(_FROZEN, {"job": job}).first()
            return load(row) if row else None

    def _freeze(self, tx: Transaction, job_id: str) -> Step | None:
        """Transaction 1."""
        job = records.job_row(tx.connection, job_id)
        terms = parse_terms(job.terms)
        if job.status != "running" or job.head >= terms.file.stop.versions:
            return None
        closing = closing_of(tx.connection, job, terms, tx.now)
        if isinstance(closing, StillOpen):
            return None
        for update_id in closing.superseded:
            lifecycle.retire(tx, self._observer, update_id, "superseded")
        frozen = self._step(tx.connection, job, terms, closing, self._revival(tx, job, terms))
        row = {"id": frozen.id, "job": job_id, "head": job.head, "status": "frozen", "plan": dump(frozen)}
        tx.connection.execute(_ADD_STEP, row)
        tx.connection.execute(_FREEZE, {"inputs": closing.inputs})
        return frozen

    def _revival(self, tx: Transaction, job: Any, terms: JobTerms) -> str | None:
        """The result that waits; one that the head has left too far behind is dropped."""
        waits = freezing.revival_of(tx.connection, job.id)
        if waits is None or terms.file.revival is None:
            return None
        if not in_time(terms.file.revival, job.head, waits.version):
            lifecycle.end_revival(tx, self._observer, waits, "late")
            return None
        return str(waits.id)

    def _step(
        self, connection: Connection, job: Any, terms: JobTerms, closing: Closing, revival: str | None
    ) -> Step:
        head = records.version_row(connection, job.id, job.head)
        previous = {name: canonical.from_hexfloat(text) for name, text in json.loads(head.scalars).items()}
        buffer = freezing.buffer_of(connection, job, terms, closing.inputs, revival)
        return Step(
            id=self._entropy(16).hex(),
            job=job.id,
            buffer=buffer,
            scalars=rules.measure(terms, buffer, previous),
            closed_by=closing.closed_by,
            absent=closing.absent,
        )

    def _compute(self, frozen: Step) -> Computed:
        """Between the transactions. Deterministic: the same frozen step always gives the same digests."""
        with self._reader.connect() as connection:
            job = records.job_row(connection, frozen.job)
            head = records.version_row(connection, frozen.job, frozen.buffer.head)
            terms, manifest = parse_terms(job.terms), records.manifest_of(job.manifest)
            plan = rules.plan(terms, frozen.buffer, frozen.scalars)
            found = freezing.files(connection, frozen.job, terms, plan.sources)
        keeps = rules.optimizer_manifest(manifest, terms.file.aggregation.server_optimizer)
        with ExitStack() as files:
            parameters = files.enter_context(TensorWriter(self._blobs.spool(), manifest))
            optimizer = files.enter_context(TensorWriter(self._blobs.spool(), keeps)) if keeps else None
            averaged = terms.file.aggregation.ema is not None
            ema = files.enter_context(TensorWriter(self._blobs.spool(), manifest)) if averaged else None
            with Inputs(self._blobs) as inputs:
                sources: dict[Source, rules.TensorReader] = {
                    source: inputs.open(file.digest, manifest, file.packing) for source, file in found.items()
                }
                watched = sketched(manifest, frozen.buffer, sources) if self._scores else {}
                rules.aggregate(
                    terms,
                    manifest,
                    plan,
                    {**sources, **watched},
                    optimizer=inputs.open(head.optimizer, keeps) if keeps and head.optimizer else None,
                    ema=inputs.open(head.ema, manifest) if head.ema else None,
                    scalars=frozen.scalars,
                    outputs=rules.Outputs(parameters, optimizer, ema),
                )
            snapshot = Computed(
                parameters=(stored := self._store(parameters)),
                optimizer=self._store(optimizer) if optimizer else None,
                ema=self._store(ema) if ema else None,
                views=views.encode(
                    self._blobs, self._blobs.path(stored), terms, manifest, frozen.buffer.head + 1
                ),
                sketches=tuple(one.sums for one in watched.values()),
            )
        self._reached(Gap.SNAPSHOT_STORED)
        return snapshot

    def _store(self, writer: TensorWriter) -> str:
        digest = writer.close()
        self._blobs.adopt(writer.path, digest)
        return digest

    def _publish(self, tx: Transaction, frozen: Step, snapshot: Computed) -> bool:
        """Transaction 2: only if nothing the step rests on has changed; else its inputs are free again."""
        job = records.job_row(tx.connection, frozen.job)
        terms, manifest = parse_terms(job.terms), records.manifest_of(job.manifest)
        taken = [one.update for one in frozen.buffer.inputs]
        if (
            job.status not in ("running", "paused")
            or tx.connection.execute(_STILL_FROZEN, {"inputs": taken}).scalar_one() != len(taken)
            or freezing.buffer_of(tx.connection, job, terms, taken, frozen.buffer.revival) != frozen.buffer
        ):
            _abandon(tx, frozen)
            return False
        number = job.head + 1
        log_aggregation(tx, self._observer, frozen, terms)
        entry = log_version(tx, self._observer, frozen.job, number, snapshot, manifest.file_bytes, frozen.id)
        row = {
            "job": frozen.job,
            "number": number,
            "parameters": snapshot.parameters,
            "optimizer": snapshot.optimizer,
            "ema": snapshot.ema,
            "scalars": json.dumps(hexed(frozen.scalars.optimizer)),
            "published_at": tx.now,
            "entry": entry,
        }
        tx.connection.execute(_ADD_VERSION, row)
        views.record(tx, self._observer, frozen.job, number, snapshot.views)
        merged = [{"which": i.update, "number": number, "late": i.staleness} for i in frozen.buffer.inputs]
        tx.connection.execute(_MERGE, merged)
        sizes = dict(tx.connection.execute(_SIZES, {"inputs": taken}).all())
        for one in frozen.buffer.inputs:
            tally(tx, frozen.job, one.silo, "merged", bytes=sizes[one.update], staleness=one.staleness)
        tx.connection.execute(_USE, {"revival": frozen.buffer.revival})
        tx.connection.execute(_END_STEP, {"step": frozen.id, "status": "published"})
        score = sharing.learn(tx, job, snapshot.sketches) if snapshot.sketches else job.score
        tx.connection.execute(_MOVE_HEAD, {"job": frozen.job, "head": number, "score": score})
        lifecycle.conclude(tx, self._observer, frozen.job)
        return True

    def _give_up(self, tx: Transaction, frozen: Step, reason: str) -> None:
        _abandon(tx, frozen)
        lifecycle.change(tx, self._observer, frozen.job, "pause", reason)


def closing_of(connection: Connection, job: Any, terms: JobTerms, now: float) -> Closing | StillOpen:
    """Whether the buffer of `job` (a row) closes now, and with what; or when to look again."""
    if terms.file.aggregation.strategy == "fedcompass":
        return groups.closing(connection, job.id, terms, now)
    waiting = [Waiting(*row) for row in connection.execute(_WAITING, {"job": job.id})]
    head = records.version_row(connection, job.id, job.head)
    since = max(head.published_at, job.resumed_at or 0.0)  # a round does not run out while the job is paused
    return close(
        terms.file.aggregation, job.head, since, waiting, records.participants(connection, job.id), now
    )


def _abandon(tx: Transaction, frozen: Step) -> None:
    inputs = [one.update for one in frozen.buffer.inputs]
    tx.connection.execute(update(steps).where(steps.c.id == frozen.id).values(status="abandoned"))
    tx.connection.execute(
        update(updates)
        .where(updates.c.id.in_(inputs), updates.c.status == "frozen")
        .values(status="received")
    )
