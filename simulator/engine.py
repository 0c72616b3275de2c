"""One run: the events of a federation in virtual time, in order.

    a silo asks → lease → its task is done → its update is admitted → the buffer closes → the next version is published

Every decision is the server's own (`server.core`), every number the server's own (`anabranch.rules`). What the server
does with threads, disks and a network is here a queue of events, ordered by time and then by when they were made, so a
run is a function of its scenario, its jobs and its seed.
"""

import hashlib
import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Protocol

import numpy as np

from anabranch import __version__
from anabranch.errors import Refused
from anabranch.rules import step as rules
from anabranch.terms import JobTerms, seconds
from anabranch.wire.manifest import Manifest
from anabranch.wire.statements import SeenCheckpoint, UpdateStatement
from anabranch.wire.values import Values
from server.core import admission
from server.core.buffer import Closing, StillOpen, close
from server.core.turn import Evaluate, Progress, Rest, Train, next_turn
from simulator.chance import generator
from simulator.flat import Flat, FlatSink
from simulator.rows import Rows
from simulator.scenario import Group, Scenario
from simulator.state import Job, Lease, Update, Version, lease_facts

FEDERATION = "simulation"
NOWHERE = SeenCheckpoint(size=0, root="0" * 64)


@dataclass(frozen=True)
class Trained:
    delta: Flat
    examples: int
    loss: float


class Trainer(Protocol):
    """Who computes what silos compute. Results depend on the arguments and on what the silo was asked before."""

    def train(self, job: str, silo: int, cycle: str, base: Flat, version: int, steps: int) -> Trained: ...

    def evaluate(
        self, job: str, silo: int, cycle: str, parameters: Flat, version: int, split: str
    ) -> tuple[Mapping[str, float], int]:
        """Metrics and the number of records."""

    def measure(self, job: str, parameters: Flat, split: str) -> tuple[Mapping[str, float], int]:
        """On the records no silo has."""


@dataclass(frozen=True)
class Planned:
    """A job and version 0 of its model."""

    name: str
    terms: JobTerms
    manifest: Manifest
    initial: Flat


@dataclass
class _Silo:
    number: int
    name: str
    profile: Group
    chance: np.random.Generator
    leases: int = 0


@dataclass
class Run:
    """`play` once; then `rows` and `jobs` say how it went."""

    scenario: Scenario
    planned: Sequence[Planned]
    trainer: Trainer
    told: Callable[[float], None] = lambda now: None  # progress, in virtual seconds
    rows: Rows = field(default_factory=Rows)
    now: float = 0.0

    def __post_init__(self) -> None:
        seed = self.scenario.seed
        self._silos = [
            _Silo(number, f"silo-{number:05}", profile, generator(seed, 0, number))
            for number, profile in enumerate(self.scenario.profiles())
        ]
        names = [silo.name for silo in self._silos]
        self.jobs = {one.name: self._job(one, names) for one in self.planned}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._orders = count()
        self._resting: list[_Silo] = []
        self._horizon = seconds(self.scenario.horizon)

    def play(self) -> "Run":
        for silo in self._silos:
            self._at(0.0, partial(self._ask, silo))
        if self.scenario.measure is not None:
            self._at(0.0, self._measure)
        while self._events and any(job.status == "running" for job in self.jobs.values()):
            at, _, happen = heapq.heappop(self._events)
            if at > self._horizon:
                break
            self.now = at
            self.told(at)
            happen()
        return self

    def _at(self, moment: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (moment, next(self._numbers), happen))

    def _job(self, planned: Planned, names: list[str]) -> Job:
        job = Job(planned.name, planned.terms, planned.terms.digest(), planned.manifest, names)
        job.versions[0] = Version(0, planned.initial, None, None, {}, 0.0)
        return job

    # --- scheduling --------------------------------------------------------------------------------------------------

    def _ask(self, silo: _Silo) -> None:
        """As `server.scheduling`: of the jobs it takes part in the one it worked on longest ago comes first."""
        running = [job for job in self.jobs.values() if job.status == "running"]
        for job in sorted(running, key=lambda job: job.leased_at.get(silo.name, -1.0)):
            turn = next_turn(
                job.terms, Progress(job.head, job.evaluated.get(silo.name), job.submitted.get(silo.name))
            )
            if not isinstance(turn, Rest):
                self._lease(silo, job, turn)
                return
        self._resting.append(silo)  # until a head moves: the server tells it to ask again every so often

    def _lease(self, silo: _Silo, job: Job, turn: Train | Evaluate) -> None:
        identity = hashlib.sha256(
            f"{self.scenario.seed}/{job.id}/{silo.number}/{silo.leases}".encode()
        ).hexdigest()
        silo.leases += 1
        kind, version = ("train", job.head) if isinstance(turn, Train) else ("evaluate", turn.version)
        steps = job.terms.file.training.local_steps if kind == "train" else 0
        lease = Lease(identity[:32], silo.name, job.id, kind, version, identity[32:], steps, self.now)
        job.leased_at[silo.name], job.open[silo.name] = self.now, lease
        done = self._finish(silo, lease)
        self._at(done, partial(self._return, silo, job, lease))

    def _finish(self, silo: _Silo, lease: Lease) -> float:
        """When the work of a lease is done and sent."""
        profile, chance = silo.profile, silo.chance
        work = (profile.train if lease.kind == "train" else profile.evaluate).draw(chance)
        whole = profile.download.draw(chance) + work + profile.upload.draw(chance)
        start = self.now
        if profile.dropout is not None and chance.random() < profile.dropout.probability:
            start += work / 2 + profile.dropout.away.draw(chance)
        return start + whole if profile.available is None else profile.available.finish(start, whole)

    # --- intake ------------------------------------------------------------------------------------------------------

    def _return(self, silo: _Silo, job: Job, lease: Lease) -> None:
        del job.open[silo.name]
        if lease.kind == "train":
            self._submit(silo, job, lease)
        else:
            base = job.versions[lease.version].parameters
            metrics, examples = self.trainer.evaluate(
                job.id, silo.number, lease.id, base, lease.version, job.terms.file.evaluation.split
            )
            job.evaluated[silo.name] = lease.version
            self.rows.evaluated(self.now, job.id, lease.version, silo.name, metrics, examples)
            self._conclude(job)
        self._ask(silo)

    def _submit(self, silo: _Silo, job: Job, lease: Lease) -> None:
        if job.status != "running":
            return
        base = job.versions[lease.version].parameters
        trained = self.trainer.train(job.id, silo.number, lease.id, base, lease.version, lease.steps)
        weighted = job.terms.file.silos.weighting == "examples"
        update = Update(
            id=lease.id,
            lease=lease,
            received_at=self.now,
            delta=trained.delta,
            examples=trained.examples if weighted else None,
            order=next(self._orders),
        )
        reason = ""
        try:
            admission.admit(
                FEDERATION,
                silo.name,
                _statement(job, update),
                lease_facts(lease, "open"),
                job.facts(lease.version),
            )
            limit = job.terms.file.aggregation.max_update_norm
            if limit is not None:
                admission.check_norm(_norm(update.delta), limit)
        except Refused as refusal:
            reason = refusal.code
        self.rows.received(update, job.head, trained.loss, reason)
        if reason:
            return
        job.waiting[update.id] = update
        job.submitted[silo.name] = max(lease.version, job.submitted.get(silo.name, -1))
        self._look(job)

    # --- aggregation -------------------------------------------------------------------------------------------------

    def _look(self, job: Job) -> None:
        """Whether the buffer closes now; else when to look again."""
        if job.frozen or job.status != "running" or job.head >= job.terms.file.stop.versions:
            return
        rule, since = job.terms.file.aggregation, job.newest.published_at
        waiting = [update.waiting() for update in job.waiting.values()]
        closing = close(rule, job.head, since, waiting, job.participants, self.now)
        if isinstance(closing, StillOpen):
            if closing.at is not None and closing.at != job.look_at:
                job.look_at = closing.at
                self._at(closing.at, partial(self._look, job))
            return
        for late in closing.superseded:
            self.rows.retired(job.waiting.pop(late), "superseded")
        inputs = [job.waiting[one] for one in closing.inputs]
        job.frozen = True
        if not self.scenario.aggregation_seconds:
            self._publish(
                job, closing, inputs
            )  # before the silo whose update closed the buffer asks for more
        else:
            done = self.now + self.scenario.aggregation_seconds
            self._at(done, partial(self._publish, job, closing, inputs))

    def _publish(self, job: Job, closing: Closing, updates: Sequence[Update]) -> None:
        try:
            version = aggregate(job, updates, self.now)
        except Refused as refusal:  # the arithmetic left float32: the server pauses, and a person decides
            job.status, job.ended_at = f"paused: {refusal.code}", self.now
            self._settle(job)
            return
        for update in updates:
            del job.waiting[update.id]
        self.rows.published(job.id, version, closing, [one.input(job.head) for one in updates])
        job.head, job.frozen = version.number, False
        job.versions[version.number] = version
        self._forget(job)
        self._conclude(job)
        resting, self._resting = self._resting, []
        for silo in resting:
            self._ask(silo)
        self._look(job)

    def _conclude(self, job: Job) -> None:
        """As `server.lifecycle`: at the last version, when every silo has evaluated it."""
        if job.status != "running" or job.head < job.terms.file.stop.versions:
            return
        if all(job.evaluated.get(name) == job.head for name in job.participants):
            job.status, job.ended_at = "completed", self.now
            self._settle(job)

    def _settle(self, job: Job) -> None:
        for update in job.waiting.values():
            self.rows.retired(update, "job_ended")
        job.waiting.clear()

    def _forget(self, job: Job) -> None:
        """Versions nobody trains from any more: memory does not grow with the length of a run."""
        if len(job.versions) <= 2 * len(self._silos) + 16:
            return
        oldest = min((lease.version for lease in job.open.values()), default=job.head)
        for number in [number for number in job.versions if number < oldest]:
            del job.versions[number]
            job.digests.pop(number, None)

    # --- what only the experimenter sees -----------------------------------------------------------------------------

    def _measure(self) -> None:
        asked = self.scenario.measure
        assert asked is not None
        for job in self.jobs.values():
            parameters = job.newest.parameters
            metrics, examples = self.trainer.measure(job.id, parameters, asked.split)
            self.rows.measured(self.now, job.id, job.head, "", metrics, examples)
            for silo in self._silos if asked.silos else ():
                metrics, examples = self.trainer.evaluate(
                    job.id, silo.number, f"measure-{job.head}", parameters, job.head, asked.split
                )
                self.rows.measured(self.now, job.id, job.head, silo.name, metrics, examples)
        self._at(self.now + seconds(asked.every), self._measure)


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
    lease = update.lease
    return UpdateStatement.model_construct(
        update=update.id,
        federation=FEDERATION,
        job=job.id,
        lease=lease.id,
        nonce=lease.nonce,
        sequence=update.order,
        base_version=lease.version,
        base_sha256=job.base_digest(lease.version),
        delta_sha256="",
        bytes=job.manifest.file_bytes,
        terms_sha256=job.digest,
        manifest_sha256=job.terms.manifest_sha256,
        num_examples=update.examples,
        steps=lease.steps,
        release=__version__,
        checkpoint=NOWHERE,
    )


def _norm(delta: Flat) -> float:
    values = Values(delta.manifest)
    values.take(delta.manifest.header())
    values.take(delta.values.data.cast("B"))
    return values.norm
