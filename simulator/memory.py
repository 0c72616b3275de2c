"""A server in memory: the real one's pure decisions and arithmetic, without its tables, signatures and log."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from anabranch import __version__
from anabranch.errors import Refused
from anabranch.rules import step as rules
from anabranch.terms import JobTerms
from anabranch.wire.manifest import Manifest
from anabranch.wire.statements import SeenCheckpoint, UpdateStatement
from anabranch.wire.values import Values
from server.core import admission
from server.core.buffer import Closing, StillOpen, close
from server.core.turn import Progress, Rest, Train, next_turn
from simulator.engine import Task, Trained
from simulator.flat import Flat, FlatSink
from simulator.rows import Rows
from simulator.state import Job, Update, Version, lease_facts

FEDERATION = "simulation"
NOWHERE = SeenCheckpoint(size=0, root="0" * 64)


@dataclass(frozen=True)
class Planned:
    """A job and version 0 of its model."""

    name: str
    terms: JobTerms
    manifest: Manifest
    initial: Flat


@dataclass
class Memory:
    """As `engine.Server`."""

    planned: Sequence[Planned]
    silos: list[str]
    rows: Rows
    now: float = 0.0
    jobs: dict[str, Job] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._orders = count()
        for one in self.planned:
            job = Job(one.name, one.terms, one.terms.digest(), one.manifest, self.silos)
            job.versions[0] = Version(0, one.initial, None, None, {}, 0.0)
            self.jobs[one.name] = job

    def at(self, now: float) -> None:
        self.now = now

    def running(self) -> list[str]:
        return [job.id for job in self.jobs.values() if job.status == "running"]

    def parameters(self, job: str, version: int) -> Flat:
        return self.jobs[job].versions[version].parameters

    def head(self, job: str) -> int:
        return self.jobs[job].head

    def average(self, job: str) -> Flat | None:
        return self.jobs[job].newest.ema

    def next_task(self, silo: str, lease: str, nonce: str) -> Task | None:
        """As `server.scheduling`: of the running jobs the one the silo worked on longest ago comes first."""
        running = [job for job in self.jobs.values() if job.status == "running"]
        for job in sorted(running, key=lambda job: job.leased_at.get(silo, -1.0)):
            turn = next_turn(job.terms, Progress(job.head, job.evaluated.get(silo), job.submitted.get(silo)))
            if isinstance(turn, Rest):
                continue
            file = job.terms.file
            if isinstance(turn, Train):
                kind, version, split, steps = "train", job.head, "", file.training.local_steps
            else:
                kind, version, split, steps = "evaluate", turn.version, file.evaluation.split, 0
            task = Task(lease, nonce, job.id, kind, version, split, steps, self.now)
            job.leased_at[silo], job.open[silo] = self.now, task
            return task
        return None

    # --- intake ------------------------------------------------------------------------------------------------------

    def evaluated(self, silo: str, task: Task, metrics: Mapping[str, float], records: int) -> None:
        job = self.jobs[task.job]
        del job.open[silo]
        job.evaluated[silo] = task.version
        self._conclude(job)

    def submit(self, silo: str, task: Task, trained: Trained) -> None:
        job = self.jobs[task.job]
        del job.open[silo]
        weighted = job.terms.file.silos.weighting == "examples"
        examples = trained.examples if weighted else None
        update = Update(silo, task, self.now, trained.delta, examples, next(self._orders))
        try:
            facts = lease_facts(silo, task)
            admission.admit(FEDERATION, silo, _statement(job, update), facts, job.facts(task.version))
            limit = job.terms.file.aggregation.max_update_norm
            if limit is not None:
                admission.check_norm(_norm(update.delta), limit)
        except Refused as refusal:
            self.rows.received(self.now, silo, task, trained.loss, refusal.code)
            return
        self.rows.received(self.now, silo, task, trained.loss, "")
        job.waiting[update.id] = update
        job.submitted[silo] = max(task.version, job.submitted.get(silo, -1))

    # --- aggregation -------------------------------------------------------------------------------------------------

    def freeze(self, job: str) -> Callable[[], None] | float | None:
        found = self.jobs[job]
        if found.status != "running" or found.head >= found.terms.file.stop.versions:
            return None
        rule, since = found.terms.file.aggregation, found.newest.published_at
        waiting = [update.waiting() for update in found.waiting.values()]
        closing = close(rule, found.head, since, waiting, found.participants, self.now)
        if isinstance(closing, StillOpen):
            return closing.at
        for late in closing.superseded:
            self.rows.retired(found.waiting.pop(late).id, "superseded")
        return partial(self._publish, found, closing, [found.waiting[one] for one in closing.inputs])

    def _publish(self, job: Job, closing: Closing, updates: Sequence[Update]) -> None:
        try:
            version = aggregate(job, updates, self.now)
        except Refused as refusal:  # the arithmetic left float32: the server pauses, and a person decides
            self._end(job, f"paused: {refusal.code}")
            return
        for update in updates:
            del job.waiting[update.id]
        staleness = {update.id: job.head - update.task.version for update in updates}
        self.rows.published(self.now, job.id, version.number, closing.closed_by, closing.absent, staleness)
        job.head = version.number
        job.versions[version.number] = version
        job.forget()
        self._conclude(job)

    def _conclude(self, job: Job) -> None:
        """As `server.lifecycle`: at the last version, when every silo has evaluated it."""
        if job.status != "running" or job.head < job.terms.file.stop.versions:
            return
        if all(job.evaluated.get(name) == job.head for name in job.participants):
            self._end(job, "completed")

    def _end(self, job: Job, status: str) -> None:
        job.status, job.ended_at = status, self.now
        for update in job.waiting.values():
            self.rows.retired(update.id, "job_ended")
        job.waiting.clear()


def aggregate(job: Job, updates: Sequence[Update], now: float) -> Version:
    """The next version, as `server.aggregation` computes it. Raises Refused(NONFINITE)."""
    head, settings = job.newest, job.terms.file.aggregation
    inputs = [one.input(job.head) for one in updates]
    scalars = rules.measure(job.terms, inputs, head.scalars)
    keeps = rules.optimizer_manifest(job.manifest, settings.server_optimizer)
    parameters = FlatSink(job.manifest)
    optimizer = FlatSink(keeps) if keeps else None
    ema = FlatSink(job.manifest) if settings.ema is not None else None
    rules.aggregate(
        job.terms,
        job.manifest,
        list(zip(inputs, [one.delta for one in updates], strict=True)),
        base=head.parameters,
        optimizer=head.optimizer,
        ema=head.ema,
        scalars=scalars,
        outputs=rules.Outputs(parameters, optimizer, ema),
        chunk=min(rules.CHUNK, max(spec.elements for spec in job.manifest.specs)),
    )
    return Version(
        number=job.head + 1,
        parameters=parameters.close(),
        optimizer=optimizer.close() if optimizer else None,
        ema=ema.close() if ema else None,
        scalars=scalars.optimizer,
        published_at=now,
    )


def _statement(job: Job, update: Update) -> UpdateStatement:
    """What the silo would sign; built without checks, since nobody else wrote it."""
    task = update.task
    return UpdateStatement.model_construct(
        update=update.id,
        federation=FEDERATION,
        job=job.id,
        lease=task.lease,
        nonce=task.nonce,
        sequence=update.order,
        base_version=task.version,
        base_sha256=job.base_digest(task.version),
        delta_sha256="",
        bytes=job.manifest.file_bytes,
        terms_sha256=job.digest,
        manifest_sha256=job.terms.manifest_sha256,
        num_examples=update.examples,
        steps=task.steps,
        release=__version__,
        checkpoint=NOWHERE,
    )


def _norm(delta: Flat) -> float:
    values = Values(delta.manifest)
    values.take(delta.manifest.header())
    values.take(delta.values.data.cast("B"))
    return values.norm
