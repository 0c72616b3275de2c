"""A run in the order of a recording: who asks, whose result comes next, and what a task is called by.

Under the terms of the recording, versions are published when they were, and each is compared with the real one. Under
other terms a silo still asks and returns when it did; a task these do not give it then is left out.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from anabranch.errors import Reason, Refused
from simulator.engine import Run, Silo, Task
from simulator.recording import Event, Recording

# Seconds. Times in the log are cut to microseconds, and schedules multiply them: a deadline that closed a buffer may lie
# this far behind the entry that tells of it.
ROUNDED = 1e-3


@dataclass
class Playback:
    """`play` once. `run` has a silo for each of the recording, in the order of their names, and one job. Its server knows
    them by their names of the recording.
    """

    recording: Recording
    run: Run
    job: str
    same: bool  # the terms are those of the recording
    equal: int = 0  # versions with the parameters of the real ones
    different: int | None = None  # the first that is not
    left_out: int = 0  # tasks of training that silos did and these terms do not ask for
    _held: dict[str, Task] = field(default_factory=dict)  # silo → what it works on
    _closed: Callable[[], None] | None = None  # publishes what the closed buffer makes

    def __post_init__(self) -> None:
        """Raises Refused when the scenario has other silos."""
        there, here = len(self.recording.silos), len(self.run.silos)
        if there != here:
            raise Refused(
                Reason.MALFORMED,
                f"{there} silos trained in the export, the scenario has {here}: give it as many, by name in order",
            )
        self._silos = dict(zip(self.recording.silos, self.run.silos, strict=True))
        for name, silo in self._silos.items():
            silo.name = name  # the terms may say something of it

    def play(self) -> "Playback":
        for event in self.recording.events:
            self.run.at(event.at, partial(self._happen, event))
        self.run.go()
        return self

    def found(self) -> dict[str, Any]:
        """How it compares with the recording; for run.json."""
        versions = len(self.recording.versions) - 1
        same = {"versions": versions, "equal": self.equal, "first_different": self.different}
        return {"same_terms": self.same, "left_out": self.left_out, **(same if self.same else {})}

    def _happen(self, event: Event) -> None:
        match event.kind:
            case "lease":
                self._ask(event)
            case "result":
                self._return(event)
            case "release":
                self._give_up(event)
            case "version" if self.same:
                self._publish(event.version)

    def _ask(self, event: Event) -> None:
        """An evaluation that the silo was not asked for then takes no time."""
        silo = self._silos[event.silo]
        self._held.pop(event.silo, None)
        task = self._task(silo, event)
        while task is not None and task.kind == "evaluate" and event.task == "train":
            self.run.hand_in(silo, task)
            task = self._task(silo, event)
        if task is not None and task.kind == event.task:
            self._held[event.silo] = task
        elif event.task == "train":
            self.left_out += 1

    def _task(self, silo: Silo, event: Event) -> Task | None:
        found = self.run.server.next_task(silo.name, event.lease, event.nonce)
        return found if isinstance(found, Task) else None

    def _taken(self, event: Event) -> Task | None:
        """What the silo worked on, if this is its end."""
        task = self._held.get(event.silo)
        if task is None or event.lease not in ("", task.lease):
            return None
        return self._held.pop(event.silo)

    def _return(self, event: Event) -> None:
        task = self._taken(event)
        if task is None:
            return
        if self.same and event.version != self.run.server.head(self.job) + 1:
            self._look()  # a deadline closed the buffer without this one
        self.run.hand_in(self._silos[event.silo], task)
        if self.same:
            self._look()
        else:
            self.run.look(self.job)

    def _give_up(self, event: Event) -> None:
        """A silo that could not evaluate a version is not asked for it again."""
        task = self._taken(event)
        if task is not None and task.kind == "evaluate":
            self.run.server.evaluated(self._silos[event.silo].name, task, {}, 0)

    def _look(self) -> None:
        if self._closed is None:
            found = self.run.server.freeze(self.job)
            self._closed = None if isinstance(found, float) else found

    def _publish(self, version: int) -> None:
        """Between the last arrival and this, silos were still given the version before."""
        self._look()  # a deadline may have passed since the last arrival
        if self._closed is None:
            self.run.server.at(self.run.now + ROUNDED)
            self._look()
            self.run.server.at(self.run.now)
        if self._closed is not None:
            self._closed()
            self._closed = None
        server, real = self.run.server, self.recording.versions[version]
        if server.head(self.job) == version and server.parameters(self.job, version).digest() == real:
            self.equal += 1
        elif self.different is None:
            self.different = version
        self._look()
