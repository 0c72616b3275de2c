"""The reviver of a simulated run: the real one, in this process, with a server's tasks as files in memory."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from anabranch.terms import Revival
from reviver.inputs import inputs_of
from reviver.reviver import Effect, Reviver
from reviver.teachers import skew
from reviver.worth import Facts, why_not
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
    _effects: list[Effect] = field(default_factory=list)
    _known: dict[str, str] = field(default_factory=dict)  # silo → update in its slot

    def revive(self, task: RevivalTask, task_seconds: float) -> Flat | Ending:
        for silo in set(self._known) - set(task.teachers):
            self.reviver.forget(silo)
            del self._known[silo]
        for silo, teaching in task.teachers.items():  # in mode paper a silo may have several slots
            if self._known.get(silo) != teaching.update:
                self._known[silo] = teaching.update
                base = _values(teaching.base)
                self.reviver.teachers.take(silo, _trained(base, teaching.delta), base)
        facts = Facts(self.seconds, task_seconds, skew(self.reviver.teachers), self._effects)
        if not self.before and why_not(facts):
            return "not_worth"
        revived = self.reviver.revive(_values(task.head), task.version)
        if isinstance(revived, str):
            return revived
        if revived.effect is not None:
            self._effects.append(revived.effect)
        return _flat(revived.delta, task.head)


def reviver_of(trainer: ManagedTrainer, settings: Revival, seed: int, seconds: float) -> JobReviver | None:
    """None: the task does not say what its inputs are."""
    task = trainer.task()
    inputs = inputs_of(task)
    if inputs is None:
        return None
    model = build_model(task, trainer.file.job.seed)
    return JobReviver(Reviver(model, inputs, settings, seed), seconds, settings.mode == "paper")


def _values(flat: Flat) -> Values:
    found, at = {}, 0
    for spec in flat.manifest.specs:
        values = flat.values[at : at + spec.elements].copy()
        found[spec.name] = torch.from_numpy(values).view(spec.shape)
        at += spec.elements
    return found


def _trained(base: Values, delta: Flat) -> Values:
    """What a silo sent: trained − base of parameters, the values of buffers."""
    roles = {spec.name: spec.role for spec in delta.manifest.specs}
    sent = _values(delta)
    return {name: base[name] + sent[name] if roles[name] == "trainable" else sent[name] for name in sent}


def _flat(changes: Mapping[str, torch.Tensor], like: Flat) -> Flat:
    """Buffers are not distilled; what stands there is not read."""
    pieces = [
        changes[spec.name].numpy().ravel() if spec.name in changes else np.zeros(spec.elements, np.float32)
        for spec in like.manifest.specs
    ]
    return Flat(like.manifest, np.concatenate(pieces))
