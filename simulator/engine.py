"""One run: the events of a federation in virtual time, in order.

    a silo asks → lease → its task is done → its update is admitted → the buffer closes → the next version is published

What a server does with threads, disks and a network is here a queue of events, ordered by time and then by when they were
made, so a run is a function of its scenario, its jobs and its seed. What the server decides, a `Server` decides:
`simulator.memory` with the pure rules of `server.core`, or `simulator.rooms`, which is the real one.
"""

import hashlib
import heapq
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from statistics import median
from typing import Protocol

import numpy as np

from anabranch.errors import Reason, Refused
from anabranch.terms import JobTerms, seconds
from server.core.revival import Ending
from simulator.chance import generator
from simulator.flat import Flat
from simulator.rows import Rows
from simulator.scenario import Group, Scenario


@dataclass(frozen=True)
class Task:
    """A lease, as a silo knows it."""

    lease: str
    nonce: str
    job: str
    kind: str  # train | evaluate
    version: int
    split: str
    steps: int
    issued_at: float  # virtual seconds, as every time here
    part: float = 1.0  # of the steps of a whole task, which takes as long as the scenario says


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
class Teaching:
    """A silo's newest merged update, and what it was trained from."""

    silo: str
    update: str
    base: Flat
    delta: Flat


@dataclass(frozen=True)
class RevivalTask:
    """Distil what the teachers know into the head. `teachers`: of silos that consent, by slot; most silos have one."""

    revival: str
    job: str
    version: int
    head: Flat
    teachers: Mapping[str, Teaching]


class Revives(Protocol):
    @property
    def before(self) -> bool:
        """Whether a version waits for it, as in FedRevive; else it works on what was just published."""

    def revive(self, task: RevivalTask, task_seconds: float) -> Flat | Ending:
        """What distilling added to the head, or why there is nothing. `task_seconds`: of the fastest silo's tasks."""


@dataclass(frozen=True)
class Outcome:
    """How a job stood when the run was over."""

    job: str
    terms: JobTerms
    file_bytes: int  # of a version and of an update
    status: str
    ended_at: float | None
    parameters_sha256: str  # of the head


RECENT = 16  # tasks of a silo that say how long it takes
START = 1_767_225_600.0  # virtual second 0 as unix seconds: 2026-01-01. Servers reckon in unix seconds


class Server(Protocol):
    """The aggregator. It decides at the time `at` was last told."""

    def at(self, now: float) -> None: ...

    def running(self) -> list[str]:
        """Jobs that have not ended."""

    def next_task(self, silo: str, lease: str, nonce: str) -> Task | float | None:
        """A new lease, called so; when to ask again; None when there is nothing to do until a head moves."""

    def parameters(self, job: str, version: int) -> Flat: ...

    def view(self, job: str, version: int, silo: str) -> Flat:
        """What a silo gets of it."""

    def head(self, job: str) -> int: ...

    def average(self, job: str) -> Flat | None:
        """What is served beside the head, if anything is."""

    def submit(self, silo: str, task: Task, trained: Trained) -> None: ...

    def evaluated(self, silo: str, task: Task, metrics: Mapping[str, float], records: int) -> None: ...

    def outcomes(self) -> list[Outcome]: ...

    def claim(self, job: str) -> RevivalTask | None:
        """None: nothing has moved since the last one, or one is in flight."""

    def revived(self, task: RevivalTask, result: Flat | Ending) -> None:
        """A task came to its end, with a delta or a reason."""

    def freeze(self, job: str) -> Callable[[], None] | float | None:
        """What publishes the next version, if the buffer closes now; else when to look again, if that is known."""


@dataclass
class Silo:
    number: int
    name: str
    profile: Group
    chance: np.random.Generator
    leases: int = 0


@dataclass
class Run:
    """`play` once; then `rows` says how it went, and `server` how it ended."""

    scenario: Scenario
    server: Server
    trainer: Trainer
    rows: Rows
    revivers: Mapping[str, Revives] = field(default_factory=dict)  # by job
    told: Callable[[float], None] = lambda now: None  # progress, in virtual seconds
    now: float = 0.0
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.silos = [
            Silo(number, name, profile, generator(self.scenario.seed, 0, number))
            for number, (name, profile) in enumerate(
                zip(silo_names(self.scenario), self.scenario.profiles(), strict=True)
            )
        ]
        self._numbers = count()
        self._resting: list[Silo] = []
        self._publishing: set[str] = set()
        self._looks: dict[str, float] = {}
        self._reviving: set[str] = set()
        self._worked: dict[str, dict[int, deque[float]]] = {job: {} for job in self.revivers}

    def play(self) -> "Run":
        for silo in self.silos:
            self.at(0.0, partial(self._ask, silo))
        return self.go()

    def go(self) -> "Run":
        """What was put into the queue, and what comes of it."""
        horizon = seconds(self.scenario.horizon)
        if self.scenario.measure is not None:
            self.at(0.0, self._measure)
        while self._events and self.server.running():
            moment, _, happen = heapq.heappop(self._events)
            if moment > horizon:
                break
            self.now = moment
            self.server.at(moment)
            self.told(moment)
            happen()
        return self

    def at(self, moment: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (moment, next(self._numbers), happen))

    # --- a silo ------------------------------------------------------------------------------------------------------

    def _ask(self, silo: Silo) -> None:
        identity = hashlib.sha256(f"{self.scenario.seed}/{silo.number}/{silo.leases}".encode()).hexdigest()
        task = self.server.next_task(silo.name, identity[:32], identity[32:])
        if task is None:
            self._resting.append(silo)  # a real one asks again every so often; here it hears of a new head
            return
        if isinstance(task, float):
            self.at(task, partial(self._ask, silo))
            return
        silo.leases += 1
        self.at(self._finish(silo, task), partial(self._return, silo, task))

    def _finish(self, silo: Silo, task: Task) -> float:
        """When the work of a task is done and sent."""
        profile, chance = silo.profile, silo.chance
        work = (profile.train if task.kind == "train" else profile.evaluate).draw(chance) * task.part
        whole = profile.download.draw(chance) + work + profile.upload.draw(chance)
        start = self.now
        if profile.dropout is not None and chance.random() < profile.dropout.probability:
            start += work / 2 + profile.dropout.away.draw(chance)
        return start + whole if profile.available is None else profile.available.finish(start, whole)

    def _return(self, silo: Silo, task: Task) -> None:
        self.hand_in(silo, task)
        self.look(task.job)
        self._ask(silo)

    def hand_in(self, silo: Silo, task: Task) -> None:
        """A task is done, and its result reaches the server."""
        base = self.server.view(task.job, task.version, silo.name)
        if task.kind == "train":
            trained = self.trainer.train(task.job, silo.number, task.lease, base, task.version, task.steps)
            self.server.submit(silo.name, task, trained)
            if task.job in self.revivers:
                newest = self._worked[task.job].setdefault(silo.number, deque(maxlen=RECENT))
                newest.append(self.now - task.issued_at)
        else:
            metrics, records = self.trainer.evaluate(
                task.job, silo.number, task.lease, base, task.version, task.split
            )
            self.server.evaluated(silo.name, task, metrics, records)
            self.rows.evaluated(self.now, task.job, task.version, silo.name, metrics, records)

    # --- the server --------------------------------------------------------------------------------------------------

    def look(self, job: str) -> None:
        """Whether a buffer closes now; else when to look again."""
        if job in self._publishing:
            return
        found = self.server.freeze(job)
        if isinstance(found, float):
            if self._looks.get(job) != found:
                self._looks[job] = found
                self.at(found, partial(self.look, job))
        elif found is not None and self.scenario.aggregation_seconds:
            self._publishing.add(job)
            self.at(self.now + self.scenario.aggregation_seconds, partial(self._publish, job, found))
        elif found is not None:
            self._publish(job, found)  # before the silo whose update closed the buffer asks for more

    def _publish(self, job: str, publish: Callable[[], None]) -> None:
        self._publishing.discard(job)
        reviver = self.revivers.get(job)
        if reviver is not None and reviver.before:
            self._revive(job)
        publish()
        if reviver is not None and not reviver.before:
            self._revive(job)
        resting, self._resting = self._resting, []
        for silo in resting:
            self._ask(silo)
        self.look(job)

    def _revive(self, job: str) -> None:
        """A reviver at work is left alone: a server would give it the task it has once more."""
        if (
            job in self.revivers
            and job not in self._reviving
            and (task := self.server.claim(job)) is not None
        ):
            fastest = min((median(of) for of in self._worked[job].values()), default=0.0)
            result = self.revivers[job].revive(task, fastest)
            if isinstance(result, str) or self.revivers[job].before or not self.scenario.revival_seconds:
                self._told(task, result)
            else:
                self._reviving.add(job)
                self.at(self.now + self.scenario.revival_seconds, partial(self._revived, task, result))

    def _revived(self, task: RevivalTask, result: Flat | Ending) -> None:
        self._reviving.discard(task.job)
        self._told(task, result)
        self._revive(task.job)  # the head may have moved meanwhile

    def _told(self, task: RevivalTask, result: Flat | Ending) -> None:
        self.rows.revived(self.now, task.job, task.version, result if isinstance(result, str) else "revived")
        self.server.revived(task, result)

    # --- what only the experimenter sees -----------------------------------------------------------------------------

    def _measure(self) -> None:
        asked = self.scenario.measure
        assert asked is not None
        for job in self.server.running():
            head = self.server.head(job)
            parameters = self.server.parameters(job, head)
            metrics, records = self.trainer.measure(job, parameters, asked.part)
            self.rows.measured(self.now, job, head, "", metrics, records)
            if asked.average and (average := self.server.average(job)) is not None:
                metrics, records = self.trainer.measure(job, average, asked.part)
                self.rows.averaged(self.now, job, head, metrics, records)
            for silo in self.silos if asked.silos else ():
                metrics, records = self.trainer.evaluate(
                    job, silo.number, f"measure-{head}", parameters, head, asked.part
                )
                self.rows.measured(self.now, job, head, silo.name, metrics, records)
        self.at(self.now + seconds(asked.every), self._measure)


def silo_names(scenario: Scenario) -> list[str]:
    """Raises Refused where two have one name."""
    said = [name for group in scenario.silos for name in group.names or ("",) * group.count]
    found = [
        name or f"silo-{number:05}" for number, name in enumerate(said or ("",) * len(scenario.profiles()))
    ]
    if len(set(found)) < len(found):
        raise Refused(Reason.MALFORMED, "silos.names: two silos of the scenario have one name")
    return found
