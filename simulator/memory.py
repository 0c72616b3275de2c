"""A server in memory: the real one's pure decisions and arithmetic, without its tables, signatures and log."""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count

from anabranch import __version__
from anabranch.errors import Refused
from anabranch.rules import step as rules
from anabranch.rules.buffer import Buffer, Distilled, Plan, Source, Term
from anabranch.terms import JobTerms, seconds
from anabranch.wire.manifest import Manifest
from anabranch.wire.statements import SeenCheckpoint, UpdateStatement
from anabranch.wire.values import Values
from server.core import admission, compass
from server.core.allocation import RECENT, TURNS, Allocation, next_job, shares
from server.core.backoff import Ended, backoff
from server.core.buffer import Closing, StillOpen, close
from server.core.conclusion import awaited, judge
from server.core.revival import Ending, in_time, rest
from server.core.sketch import sketched
from server.core.turn import Evaluate, Progress, Rest, Train, due_version, next_turn
from simulator.engine import START, Outcome, RevivalTask, Task, Trained
from simulator.flat import Flat, FlatSink
from simulator.rows import Rows
from simulator.state import Job, Update, Version, lease_facts

FEDERATION = "simulation"
FULFILLED = Ended("fulfilled", "", None)
NOWHERE = SeenCheckpoint(size=0, root="0" * 64)


@dataclass(frozen=True)
class Planned:
    """A job and version 0 of its model."""

    name: str
    terms: JobTerms
    manifest: Manifest
    archive: bytes
    initial: Flat


@dataclass
class Memory:
    """As `engine.Server`."""

    planned: Sequence[Planned]
    silos: list[str]
    rows: Rows
    allocation: Allocation = TURNS
    now: float = 0.0
    jobs: dict[str, Job] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._orders, self._leases = count(), count()
        for one in self.planned:
            job = Job(one.name, one.terms, one.terms.digest(), one.manifest, sorted(self.silos))
            job.versions[0] = Version(0, one.initial, None, None, {}, START)
            self.jobs[one.name] = job

    def at(self, now: float) -> None:
        self.now = now

    def running(self) -> list[str]:
        return [job.id for job in self.jobs.values() if job.status == "running"]

    def parameters(self, job: str, version: int) -> Flat:
        return self.jobs[job].versions[version].parameters

    def view(self, job: str, version: int, silo: str) -> Flat:
        return self.jobs[job].view(version, silo).values

    def head(self, job: str) -> int:
        return self.jobs[job].head

    def average(self, job: str) -> Flat | None:
        return self.jobs[job].newest.ema

    def next_task(self, silo: str, lease: str, nonce: str) -> Task | float | None:
        """As `server.scheduling`: of the jobs the one the silo worked on longest ago comes first, or as shares say."""
        running = [job for job in self.jobs.values() if job.status == "running"]
        later: list[float] = []
        ahead = None if self.allocation.rule == "turns" else self._ahead(silo, running)
        for job in sorted(running, key=lambda job: job.leased_at.get(silo, -1.0)):
            turn = self._turn(silo, job)
            if isinstance(turn, Rest):
                continue
            until = self._backing_off_until(silo, job)
            if until > self.now:
                later.append(until)
                continue
            if isinstance(turn, Train) and ahead not in (None, job.id):
                continue
            file = job.terms.file
            if isinstance(turn, Train):
                kind, version, split = "train", job.head, ""
                steps = job.steps(silo, lease, START + self.now)
            else:
                kind, version, split, steps = "evaluate", turn.version, file.evaluation.split, 0
            part = steps / file.training.local_steps if kind == "train" else 1.0
            task = Task(lease, nonce, job.id, kind, version, split, steps, self.now, part)
            job.leased_at[silo], job.open[silo] = self.now, task
            if kind == "train":
                job.taken.setdefault(silo, deque(maxlen=RECENT)).append(next(self._leases))
            return task
        return min(later, default=None)

    def _turn(self, silo: str, job: Job) -> Train | Evaluate | Rest:
        waits = job.scheduled and compass.waits(silo, job.arrived())
        return next_turn(
            job.terms, Progress(job.head, job.evaluated.get(silo), job.submitted.get(silo), waits)
        )

    def _backing_off_until(self, silo: str, job: Job) -> float:
        return backoff(job.ended.get(silo, ()), 0.0, START + self.now).until - START

    def _ahead(self, silo: str, running: Sequence[Job]) -> str | None:
        """As `server.sharing`."""
        live = [job for job in running if job.head < job.terms.file.stop.versions]
        standings = [job.standing(self.allocation, START + self.now) for job in live]
        active = {one.job: one.active for one in standings}
        free = {
            job.id: job.taken.get(silo, ())
            for job in live
            if isinstance(self._turn(silo, job), Train) and self._backing_off_until(silo, job) <= self.now
        }
        return next_job(shares(standings, sum(active.values()) + 1), active, free) if free else None

    def outcomes(self) -> list[Outcome]:
        return [
            Outcome(
                job=job.id,
                terms=job.terms,
                file_bytes=job.manifest.file_bytes,
                status=job.status,
                ended_at=job.ended_at,
                parameters_sha256=job.newest.parameters.digest(),
            )
            for job in self.jobs.values()
        ]

    # --- intake ------------------------------------------------------------------------------------------------------

    def evaluated(self, silo: str, task: Task, metrics: Mapping[str, float], records: int) -> None:
        job = self.jobs[task.job]
        job.end(silo, FULFILLED)
        job.evaluated[silo] = task.version
        if job.status == "running":
            job.metrics.setdefault(task.version, []).append(dict(metrics))

    def submit(self, silo: str, task: Task, trained: Trained) -> None:
        job = self.jobs[task.job]
        weighted = job.terms.file.silos.weighting == "examples"
        examples = trained.examples if weighted else None
        sent = job.travelled(silo, task.version, trained.delta)
        moved = job.view(task.version, silo).bytes, sent.bytes
        update = Update(silo, task, START + self.now, sent.values, examples, next(self._orders))
        try:
            facts = lease_facts(silo, task, "open" if job.status == "running" else "released")
            admission.admit(FEDERATION, silo, _statement(job, update), facts, job.facts(task.version))
            limit = job.terms.file.aggregation.max_update_norm
            if limit is not None:
                admission.check_norm(_norm(update.delta), limit)
        except Refused as refusal:
            job.end(silo, Ended("released", refusal.code, START + self.now))
            job.booked.pop(task.lease, None)
            self.rows.received(self.now, silo, task, trained.loss, refusal.code, *moved)
            return
        job.end(silo, FULFILLED)
        if sent.remainder is not None:
            job.remainders[silo] = sent.remainder
        self.rows.received(self.now, silo, task, trained.loss, "", *moved)
        job.waiting[update.id] = update
        job.submitted[silo] = max(task.version, job.submitted.get(silo, -1))
        if job.scheduled:
            job.learn_speed(update)
        if job.terms.file.revival is not None:
            job.returned.append(update)

    # --- aggregation -------------------------------------------------------------------------------------------------

    def freeze(self, job: str) -> Callable[[], None] | float | None:
        found = self.jobs[job]
        if found.status != "running":
            return None
        closing = self._closing(found)
        if isinstance(closing, StillOpen):
            self._conclude(found)
            moments = [closing.at, self._evaluated_by(found)]
            return min((at - START for at in moments if at is not None), default=None)
        for late in closing.superseded:
            self.rows.retired(found.waiting.pop(late).id, "superseded")
        return partial(self._publish, found, closing, [found.waiting[one] for one in closing.inputs])

    def _closing(self, job: Job) -> Closing | StillOpen:
        if job.head >= job.terms.file.stop.versions:
            return StillOpen(None)
        rule, since = job.terms.file.aggregation, job.newest.published_at
        if job.scheduled:
            return compass.close(rule, job.arrived(), job.at_work(), START + self.now)
        waiting = [update.waiting() for update in job.waiting.values()]
        return close(rule, job.head, since, waiting, job.participants, START + self.now)

    def _publish(self, job: Job, closing: Closing, updates: Sequence[Update]) -> None:
        try:
            version = aggregate(job, updates, START + self.now, self.allocation.rule == "fedast")
        except Refused:  # the arithmetic left float32: the server pauses, and a person decides
            self._end(job, "paused")
            return
        job.merge(updates)
        staleness = {update.id: job.head - update.task.version for update in updates}
        self.rows.published(self.now, job.id, version.number, closing.closed_by, closing.absent, staleness)
        job.head = version.number
        job.versions[version.number] = version
        job.forget()
        self._conclude(job)

    def claim(self, job: str) -> RevivalTask | None:
        found = self.jobs[job]
        rule = found.terms.file.revival
        if rule is None or found.status != "running" or rest(rule, found.to_revive()) is not None:
            return None
        if rule.mode == "paper" and all(one.task.version == found.head for one in found.waiting.values()):
            return None  # a fresh update is not revived
        found.claimed, found.reviving = found.head, True
        head = found.newest.parameters
        name = f"{job}-{found.head}"
        return RevivalTask(name, job, found.head, head, found.teachers())

    def revived(self, task: RevivalTask, result: Flat | Ending) -> None:
        found = self.jobs[task.job]
        found.reviving = False
        rule = found.terms.file.revival
        if rule is not None and not isinstance(result, str) and in_time(rule, found.head, task.version):
            found.revived = task, result

    def _conclude(self, job: Job) -> None:
        """As `server.lifecycle.conclude`."""
        due = due_version(job.terms, job.head)
        if job.status != "running" or due is None or not self._due_evaluation_is_in(job, due):
            return
        judged = judge(job.terms.file.evaluation, job.best, job.unimproved, job.metrics.get(due, ()))
        impatient = False
        if judged is not None and due > job.judged:
            job.judged, job.unimproved = due, judged.unimproved
            job.best = judged.value if judged.better else job.best
            patience = job.terms.file.stop.patience
            impatient = patience is not None and judged.unimproved >= patience
        if job.head >= job.terms.file.stop.versions or impatient:
            self._end(job, "completed")

    def _due_evaluation_is_in(self, job: Job, due: int) -> bool:
        published, now = job.versions[due].published_at, START + self.now
        whom = awaited(job.terms, job.head, published, START, now)
        if whom == "nobody":
            return True
        expected = job.participants
        if whom == "those at work":
            since = self.now - seconds(job.terms.file.aggregation.max_wait)
            expected = [name for name in expected if job.leased_at.get(name, -1.0) > since]
        return all(job.evaluated.get(name, -1) >= due for name in expected)

    def _evaluated_by(self, job: Job) -> float | None:
        """When the newest due version is waited for no longer, in unix seconds."""
        due = due_version(job.terms, job.head)
        if job.status != "running" or due is None or due <= job.judged:
            return None
        at = job.versions[due].published_at + seconds(job.terms.file.aggregation.max_wait)
        return at if at > START + self.now else None

    def _end(self, job: Job, status: str) -> None:
        job.status, job.ended_at = status, self.now
        for update in job.waiting.values():
            self.rows.retired(update.id, "job_ended")
        job.waiting.clear()


def aggregate(job: Job, updates: Sequence[Update], now: float, scores: bool) -> Version:
    """The next version, as `server.aggregation` computes it; with `scores` the job's as well. Raises Refused(NONFINITE)."""
    head, settings = job.newest, job.terms.file.aggregation
    buffer = job.buffer(updates)
    scalars = rules.measure(job.terms, buffer, head.scalars)
    plan = _blended(job, buffer, rules.plan(job.terms, buffer, scalars))
    keeps = rules.optimizer_manifest(job.manifest, settings.server_optimizer)
    parameters = FlatSink(job.manifest)
    optimizer = FlatSink(keeps) if keeps else None
    ema = FlatSink(job.manifest) if settings.ema is not None else None
    sources: dict[Source, rules.TensorReader] = {**job.sources(plan.sources, updates)}
    watched = sketched(job.manifest, buffer, sources) if scores else {}
    rules.aggregate(
        job.terms,
        job.manifest,
        plan,
        {**sources, **watched},
        optimizer=head.optimizer,
        ema=head.ema,
        scalars=scalars,
        outputs=rules.Outputs(parameters, optimizer, ema),
        chunk=min(rules.CHUNK, max(spec.elements for spec in job.manifest.specs)),
    )
    if scores:
        job.learn(one.sums for one in watched.values())
    return Version(
        number=job.head + 1,
        parameters=parameters.close(),
        optimizer=optimizer.close() if optimizer else None,
        ema=ema.close() if ema else None,
        scalars=scalars.optimizer,
        published_at=now,
    )


def _blended(job: Job, buffer: Buffer, plan: Plan) -> Plan:
    """FedRevive as published (arXiv 2511.00655, equation 3): (1 - beta) * update + beta * what was distilled."""
    rule = job.terms.file.revival
    if rule is None or rule.s_max is None or job.revived is None or job.revived[0].version != job.head:
        return plan
    late = max(one.staleness for one in buffer.inputs)
    beta = 1.0 if late >= 2 * rule.s_max else 0.5 * (1.0 - math.cos(math.pi * late / (2 * rule.s_max)))
    lr = job.terms.file.aggregation.server_optimizer.lr
    return replace(
        plan,
        direction=tuple(Term((1.0 - beta) * term.coefficient, term.source) for term in plan.direction),
        after=(Term(beta * lr, Distilled(job.revived[0].revival)),),
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
