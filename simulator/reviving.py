"""The reviver of a simulated run: the real one, in this process, with a server's tasks as files in memory."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from anabranch.errors import Reason, Refused
from anabranch.terms import Revival
from reviver.inputs import inputs_of
from reviver.reviver import Reviver
from reviver.trial import Unsupported
from server.core.revival import Ending
from silo_agent.training.managed import build_model
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
    _known: dict[str, str] = field(default_factory=dict)  # silo → update in its slot

    def revive(self, task: RevivalTask, task_seconds: float) -> Flat | Ending:
        for silo in set(self._known) - set(task.teachers):
            self.reviver.forget(silo)
            del self._known[silo]
        for silo, teaching in task.teachers.items():  # in mode paper a silo may have several slots
            if self._known.get(silo) != teaching.update:
                self._known[silo] = teaching.update
                self.reviver.learn(silo, _values(teaching.base), _values(teaching.delta))
        if not self.before and self.reviver.why_not(self.seconds, task_seconds):
            return "not_worth"
        revived = self.reviver.revive(_values(task.head), task.version)
        return revived if isinstance(revived, str) else _flat(revived.delta, task.head)


def reviver_of(trainer: ManagedTrainer, settings: Revival, seed: int, seconds: float) -> JobReviver | None:
    """None: the task does not say what its inputs are. Raises Refused for a model that cannot be revived."""
    task = trainer.task()
    inputs = inputs_of(task)
    if inputs is None:
        return None
    model = build_model(task, trainer.file.job.seed)
    try:
        reviver = Reviver(model, inputs, settings, seed)
    except Unsupported as error:
        raise Refused(Reason.MALFORMED, f"{error}; leave [revival] out") from error
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
