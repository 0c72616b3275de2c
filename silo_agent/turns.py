"""Whose turn it is, where a site lets fewer jobs work at once than it has approved (policy.toml [run] jobs_at_once).

A turn begins when a job asks for a task and ends between two cycles, never inside one: a training process that is cut
loses its work. While it has its turn a job may keep its training process, and with it the GPU's memory; without it,
it has none.

Fair is an equal share of time, not of cycles: a job of long cycles would else take nearly all of it. Next is who has
worked least. Being idle saves nothing up beyond one long cycle, so that a job that comes back, or comes late, does not
shut the others out.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

TICK = 0.25  # seconds between two looks at whether to leave


@dataclass
class Rota:
    """The rule, without threads or clocks."""

    at_once: int | None = None  # None: all
    turn: float = 60.0  # seconds a job may go on for before it makes room for one that has worked less
    _worked: dict[str, float] = field(default_factory=dict)  # seconds, of every job seen
    _newest: dict[str, float] = field(default_factory=dict)  # seconds of its newest cycle
    _since: dict[str, float] = field(default_factory=dict)  # who has a turn → when it began
    _waiting: dict[str, None] = field(default_factory=dict)  # in the order they came
    _level: float = 0.0  # what the job that worked least had worked when anybody last looked; it never falls

    def wait(self, job: str) -> None:
        """`job` has something to do."""
        if job in self._waiting or job in self._since:
            return
        self._rise()
        owed = max(self.turn, *self._newest.values(), 0.0)
        self._worked[job] = max(self._worked.get(job, 0.0), self._level - owed)
        self._waiting[job] = None

    def admit(self, now: float) -> None:
        """Give free turns to those that wait, the one that has worked least first."""
        while self._waiting and (self.at_once is None or len(self._since) < self.at_once):
            job = min(self._waiting, key=lambda one: self._worked[one])  # of equals the one that came first
            del self._waiting[job]
            self._since[job] = now

    def has(self, job: str) -> bool:
        return job in self._since

    def must_go(self, job: str, idle: bool, now: float) -> bool:
        """Whether `job`, which has a turn and is between two cycles, makes room now. Idle: for anybody who waits."""
        if self.at_once is not None and len(self._since) > self.at_once:
            return True  # the policy has become stricter
        if idle:
            return bool(self._waiting)
        over = now - self._since[job] >= self.turn
        return over and any(self._worked[other] < self._worked[job] for other in self._waiting)

    def work(self, job: str, seconds: float) -> None:
        """`job` has done a cycle."""
        self._worked[job] += seconds
        self._newest[job] = seconds
        self._rise()

    def leave(self, job: str) -> None:
        """`job` has no turn and wants none. How much it worked is remembered."""
        self._rise()
        self._since.pop(job, None)
        self._waiting.pop(job, None)

    def forget(self, job: str) -> None:
        """`job` has ended here."""
        self.leave(job)
        self._worked.pop(job, None)
        self._newest.pop(job, None)

    def _rise(self) -> None:
        present = [self._worked[job] for job in (*self._since, *self._waiting)]
        self._level = max(self._level, min(present, default=0.0))


class Turns:
    """The rota of one agent. Thread-safe; each job's thread calls it for its own job."""

    def __init__(self) -> None:
        self._rota = Rota()
        self._changed = threading.Condition()

    def allow(self, at_once: int | None, turn: float) -> None:
        """What the policy says now."""
        with self._changed:
            self._rota.at_once, self._rota.turn = at_once, turn
            self._changed.notify_all()

    def take(self, job: str, leaving: Callable[[], bool]) -> bool:
        """Wait for `job`'s turn; it may have it already. False when it is time to leave instead."""
        with self._changed:
            self._rota.wait(job)
            while not leaving():
                self._rota.admit(time.monotonic())
                if self._rota.has(job):
                    return True
                self._changed.wait(TICK)
            return False

    def called(self, job: str, idle: bool) -> bool:
        """Whether `job` has a turn and has to give it up: stop its training process, then `give`."""
        with self._changed:
            return self._rota.has(job) and self._rota.must_go(job, idle, time.monotonic())

    @contextmanager
    def working(self, job: str) -> Iterator[None]:
        """Around a cycle."""
        begun = time.monotonic()
        try:
            yield
        finally:
            with self._changed:
                self._rota.work(job, time.monotonic() - begun)

    def give(self, job: str) -> None:
        with self._changed:
            self._rota.leave(job)
            self._changed.notify_all()

    def forget(self, job: str) -> None:
        with self._changed:
            self._rota.forget(job)
            self._changed.notify_all()
