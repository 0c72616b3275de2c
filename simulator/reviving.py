"""The reviver of a simulated run: the real one, in this process, with a server's tasks as files in memory."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from anabranch.errors import Reason, Refused
from anabranch.terms import Revival
from reviver import lessons
from reviver.reviver import Reviver
from reviver.trial import Unsupported
from server.core.revival import Ending
from silo_agent.training.building import build_model
from simulator.engine import RevivalTask
from simulator.flat import Flat
from simulator.managed import ManagedTrainer

Values = dict[str, torch.Tensor]


@dataclass
class JobReviver:
    """As `engine.Revives`, for one job."""

    reviver: Reviver
    seconds: float  # of a revival, in virtual time
    before: bool  # as published: judged by nobody, and charged no time
    _known: dict[str, str] = field(default_factory=dict)  # slot → the update in it

    def revive(self, task: RevivalTask, task_seconds: float) -> Flat | Ending:
        # In mode paper newer models have come: what was made with an older one stays.
        leave = self.reviver.teachers.rest if self.before else self.reviver.forget
        for slot in sorted(set(self._known) - set(task.teachers)):
            leave(slot)
            del self._known[slot]
        for slot, teaching in task.teachers.items():
            if self._known.get(slot) != teaching.update:
                self._known[slot] = teaching.update
                self.reviver.learn(teaching.silo, _values(teaching.base), _values(teaching.delta), slot)
        if not self.before and self.reviver.why_not(task.version, self.seconds, task_seconds):
            return "not_worth"
        revived = self.reviver.revive(_values(task.head), task.version)
        return revived if isinstance(revived, str) else _flat(revived.delta, task.head)


def reviver_of(trainer: ManagedTrainer, settings: Revival, seed: int, seconds: float) -> JobReviver | None:
    """None: the task does not say what its inputs are. Raises Refused for a job that cannot be revived."""
    task = trainer.task()
    model = build_model(task, trainer.file, trainer.base)
    try:
        reviver = lessons.reviver_of(task, model, settings, seed)
    except Unsupported as found:
        if found.why == "no_inputs":
            return None
        raise Refused(Reason.MALFORMED, f"{found}; leave [revival] out") from found
    return JobReviver(reviver, seconds, settings.mode == "paper")


def _values(flat: Flat) -> Values:
    found, at = {}, 0
    for spec in flat.manifest.specs:
        values = flat.values[at : at + spec.elements].copy()
        found[spec.name] = torch.from_numpy(values).view(spec.shape)
        at += spec.elements
    return found


def _flat(changes: Mapping[str, torch.Tensor], like: Flat) -> Flat:
    """Buffers are not distilled; what stands there is not read."""
    pieces = [
        changes[spec.name].numpy().ravel() if spec.name in changes else np.zeros(spec.elements, np.float32)
        for spec in like.manifest.specs
    ]
    return Flat(like.manifest, np.concatenate(pieces))
