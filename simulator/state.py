"""What the real server keeps in its tables, in memory: jobs, versions and updates of one run."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from anabranch.link import Packing
from anabranch.rules.buffer import Buffer, Delta, Distilled, Input, Snapshot, Source
from anabranch.rules.strategies import COUNTING
from anabranch.terms import JobTerms, seconds
from anabranch.wire.manifest import Manifest
from server.core import revival
from server.core.admission import JobFacts, LeaseFacts
from server.core.allocation import WINDOW, Allocation, Sketches, Standing, score, smoothed
from server.core.backoff import RECENT, Ended
from server.core.buffer import Waiting
from server.core.compass import Arrived, Booking, Member, book, speed
from server.core.turn import due_version
from simulator.engine import START, RevivalTask, Task, Teaching
from simulator.flat import Flat
from simulator.link import Travelled, travelled, update_travelled

PAPERS_TEACHERS = 8  # newest returned models, in mode paper


@dataclass(frozen=True)
class Update:
    """One admitted update, until it is merged."""

    silo: str
    task: Task
    received_at: float  # unix seconds
    delta: Flat
    examples: int | None
    order: int

    @property
    def id(self) -> str:
        return self.task.lease  # there is one update for a lease

    def waiting(self) -> Waiting:
        return Waiting(self.id, self.silo, self.task.version, self.received_at)


@dataclass(frozen=True)
class Version:
    number: int
    parameters: Flat
    optimizer: Flat | None
    ema: Flat | None
    scalars: Mapping[str, float]  # of the server optimizer
    published_at: float  # unix seconds


@dataclass
class Job:
    id: str
    terms: JobTerms
    digest: str
    manifest: Manifest
    participants: list[str]  # names, sorted
    versions: dict[int, Version] = field(default_factory=dict)  # the head, and what somebody may still need
    head: int = 0
    status: str = "running"
    ended_at: float | None = None
    open: dict[str, Task] = field(default_factory=dict)  # silo → what it works on
    waiting: dict[str, Update] = field(default_factory=dict)  # in the order they came
    submitted: dict[str, int] = field(default_factory=dict)  # silo → newest base among its updates
    metrics: dict[int, list[Mapping[str, float]]] = field(
        default_factory=dict
    )  # version → what silos measured
    judged: int = 0  # newest version compared with the best
    best: float | None = None
    unimproved: int = 0
    evaluated: dict[str, int] = field(default_factory=dict)
    leased_at: dict[str, float] = field(default_factory=dict)  # silo → newest lease
    newest_merged: dict[str, Update] = field(default_factory=dict)  # silo → what a cached delta is read from
    arrivals: dict[str, int] = field(default_factory=dict)  # silo → versions it had an update in
    taken: dict[str, deque[int]] = field(default_factory=dict)  # silo → numbers of its newest training leases
    sketches: list[Sketches] = field(default_factory=list)  # of its newest merged updates
    score: float | None = None
    claimed: int | None = None  # newest version a revival was asked for
    reviving: bool = False  # one is in flight
    revived: tuple[RevivalTask, Flat] | None = None  # the newest that came back and is not used
    returned: deque[Update] = field(default_factory=lambda: deque(maxlen=PAPERS_TEACHERS))
    ended: dict[str, deque[Ended]] = field(
        default_factory=dict
    )  # silo → how its newest leases ended, newest first

    remainders: dict[str, Flat] = field(default_factory=dict)  # silo → what its accepted updates left out
    views: dict[int, dict[Packing | None, Travelled]] = field(
        default_factory=dict
    )  # version → what silos get of it, by how it travels
    booked: dict[str, Booking] = field(
        default_factory=dict
    )  # lease → its schedule, while it counts (fedcompass)
    speeds: dict[str, float] = field(
        default_factory=dict
    )  # silo → seconds of a step, as its newest update tells
    together: set[str] = field(default_factory=set)  # silos whose updates made the head

    @property
    def newest(self) -> Version:
        return self.versions[self.head]

    def view(self, version: int, silo: str) -> Travelled:
        """What travels of a version to a silo."""
        packing, made = self.terms.file.download(version, silo), self.views.setdefault(version, {})
        if packing not in made:
            made[packing] = travelled(self.versions[version].parameters, packing)
        return made[packing]

    def travelled(self, silo: str, base: int, delta: Flat) -> Travelled:
        """What arrives of a silo's update."""
        packing, feedback = self.terms.file.upload(base, silo), self.terms.file.feedback
        return update_travelled(delta, packing, feedback, self.remainders.get(silo))

    def base_digest(self, version: int) -> str:
        """What leases and statements call a version by: nothing is hashed here, and nobody lies."""
        return f"{version:064x}"

    def facts(self, base: int) -> JobFacts:
        return JobFacts(
            id=self.id,
            status=self.status,
            terms=self.terms,
            terms_digest=self.digest,
            head=self.head,
            decision="approved",
            base_sha256=self.base_digest(base),
            least_bytes=0,  # nothing is announced here before it is made
            most_bytes=2**53,
        )

    def end(self, silo: str, ended: Ended) -> None:
        """A lease came to its end."""
        del self.open[silo]
        self.ended.setdefault(silo, deque(maxlen=RECENT)).appendleft(ended)

    def standing(self, allocation: Allocation, now: float) -> Standing:
        """As `server.sharing`. `now` in unix seconds."""
        wait = seconds(self.terms.file.aggregation.max_wait)
        at_work = [
            task
            for task in self.open.values()
            if task.kind == "train" and START + task.issued_at + wait > now
        ]
        weight = allocation.weight(self.id, self.score)
        return Standing(self.id, weight, len(at_work), len(self.participants))

    def learn(self, newest: Iterable[Sketches]) -> None:
        """As `server.sharing.learn`."""
        self.sketches = [*self.sketches, *newest][-WINDOW:]
        self.score = smoothed(self.score, score(np.array(self.sketches)))

    def buffer(self, taken: Sequence[Update]) -> Buffer:
        """As `server.freezing`. Every silo approved before version 1."""
        strategy = self.terms.file.aggregation.strategy
        counted = strategy == "fedfix"
        return Buffer(
            head=self.head,
            inputs=tuple(
                Input(
                    update=one.id,
                    silo=one.silo,
                    base=one.task.version,
                    staleness=self.head - one.task.version,
                    examples=one.examples,
                    order=order,
                    arrived=self.arrivals.get(one.silo, 0) + 1 if counted else 0,
                    windows=self.head + 1 if counted else 0,
                )
                for order, one in enumerate(taken)
            ),
            participants=tuple(self.participants) if strategy in COUNTING else (),
            cached={silo: one.id for silo, one in self.newest_merged.items()} if strategy == "ca2fl" else {},
            revival=self.usable_revival(),
        )

    def usable_revival(self) -> str | None:
        """What is added to the next version; mode paper blends it by itself."""
        rule = self.terms.file.revival
        if rule is None or rule.mode == "paper" or self.revived is None:
            return None
        task, _ = self.revived
        return task.revival if revival.in_time(rule, self.head, task.version) else None

    def to_revive(self) -> revival.Standing:
        """As `server.reviving` has it of its tables."""
        last = self.terms.file.stop.versions
        open_: Literal["claimed", "done"] | None = "done" if self.revived is not None else None
        return revival.Standing(
            self.head, last, len(self.teachers()), self.claimed, "claimed" if self.reviving else open_
        )

    def teachers(self) -> dict[str, Teaching]:
        """Every silo consents, and has one slot; in mode paper every model that was returned lately has."""
        rule = self.terms.file.revival
        paper = rule is not None and rule.mode == "paper"
        slots = {one.id: one for one in self.returned} if paper else self.newest_merged
        return {
            name: Teaching(one.silo, one.id, self.view(one.task.version, one.silo).values, one.delta)
            for name, one in slots.items()
        }

    def sources(self, named: Sequence[Source], taken: Sequence[Update]) -> dict[Source, Flat]:
        """What a plan reads."""
        deltas = {one.id: one.delta for one in (*self.newest_merged.values(), *taken)}
        found: dict[Source, Flat] = {}
        for source in named:
            match source:
                case Snapshot(version):
                    found[source] = self.versions[version].parameters
                case Delta(update):
                    found[source] = deltas[update]
                case Distilled():
                    assert self.revived is not None
                    found[source] = self.revived[1]
        return found

    def merge(self, taken: Sequence[Update]) -> None:
        self.together = {one.silo for one in taken}
        for one in taken:
            del self.waiting[one.id]
            self.booked.pop(one.id, None)
            if self.terms.file.aggregation.strategy == "ca2fl" or self.terms.file.revival is not None:
                self.newest_merged[one.silo] = one
        for silo in {one.silo for one in taken}:
            self.arrivals[silo] = self.arrivals.get(silo, 0) + 1
        self.revived = None  # used, or too late

    # --- fedcompass, as `server.groups` ------------------------------------------------------------------------------

    @property
    def scheduled(self) -> bool:
        return self.terms.file.aggregation.strategy == "fedcompass"

    def at_work(self) -> list[Member]:
        return [self._member(silo, task.lease) for silo, task in self.open.items() if task.kind == "train"]

    def arrived(self) -> list[Arrived]:
        return [
            Arrived(one.id, one.received_at, self._member(one.silo, one.id)) for one in self.waiting.values()
        ]

    def steps(self, silo: str, lease: str, now: float) -> int:
        """Of the next training task, whose lease is called `lease`."""
        if not self.scheduled or silo not in self.speeds:
            return self.terms.file.training.local_steps
        at_work, arrived = self.at_work(), self.arrived()
        busy = {one.silo for one in at_work} | {one.member.silo for one in arrived}
        free = {silo, *(self.together - busy)}
        speeds = {name: self.speeds[name] for name in free}
        booking = book(self.terms, silo, speeds, at_work, arrived, now)
        self.booked[lease] = replace(booking, group=booking.group or lease)
        return booking.steps

    def learn_speed(self, update: Update) -> None:
        booking, task = self.booked.get(update.id), update.task
        known = booking.step_seconds if booking else None
        self.speeds[update.silo] = speed(known, START + task.issued_at, update.received_at, task.steps)

    def _member(self, silo: str, lease: str) -> Member:
        booking = self.booked.get(lease)
        if booking is None:
            return Member(silo, None, 0.0, 0.0, 0.0)
        return Member(silo, booking.group, booking.expected, booking.latest, booking.step_seconds)

    def forget(self) -> None:
        """Versions nobody works on any more: memory does not grow with the length of a run."""
        if len(self.versions) > 2 * len(self.participants) + 16:
            due = due_version(self.terms, self.head)
            bases = (update.task.version for update in self.waiting.values())
            taught = (one.task.version for one in (*self.newest_merged.values(), *self.returned))
            needed = {self.head, due, *(task.version for task in self.open.values()), *bases, *taught}
            for number in [number for number in self.versions if number not in needed]:
                del self.versions[number]
                self.views.pop(number, None)
                self.metrics.pop(number, None)


def lease_facts(silo: str, task: Task, status: str) -> LeaseFacts:
    return LeaseFacts(silo, task.job, task.kind, task.version, task.nonce, status)
