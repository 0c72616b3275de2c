"""One job's reviver: teachers go in, now and then what was distilled comes out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from anabranch.terms import Revival
from reviver.inputs import Inputs
from reviver.pool import Pool
from reviver.synthesis import Synthesis
from reviver.teachers import Network, Teachers, Values, norm, skew
from reviver.trial import tried
from reviver.worth import Effect, Facts, why_not

HELD_BACK = 8  # every so many batches one is kept for measuring, and nothing is distilled on it
MEASURED = 16  # inputs per teacher in a measurement
WEIGHT_DECAY = 1e-5


@dataclass(frozen=True)
class Revived:
    delta: Mapping[str, Tensor]  # of trainable tensors: what distilling added to the head
    effect: Effect | None  # not measured every time
    scaled: float  # what distilling added was multiplied by this, to be no longer than a silo's own update


class Reviver:
    """Deterministic by seed with one thread. Holds a model per silo, two generators and the pool.

    Raises Unsupported for a model that cannot be revived, and whatever the task's code raises.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, settings: Revival, seed: int) -> None:
        self._settings, self._inputs, self._seed = settings, inputs, seed
        self._chance = torch.Generator().manual_seed(seed)
        self._network = Network(model)
        tried(self._network, inputs)
        self.teachers = Teachers(self._network, inputs, self._chance)
        self._pool, self._held = Pool(self._chance), Pool(self._chance)
        self._synthesis = self._untaught()
        self._revivals, self._batches = 0, 0
        self._effects: list[Effect] = []  # oldest first

    def _untaught(self) -> Synthesis:
        with torch.random.fork_rng():
            torch.manual_seed(self._seed)
            return Synthesis(self._network, self._inputs, self._chance)

    def learn(self, silo: str, base: Values, sent: Values) -> str:
        """`sent`: trained − base of parameters, the values of buffers. Why it does not teach, as `Teachers.take`."""
        added = self._network.trainable
        trained = {name: base[name] + tensor if name in added else tensor for name, tensor in sent.items()}
        return self.teachers.take(silo, trained, base)

    def forget(self, silo: str) -> None:
        """Slot, inputs made from it, and a generator that learned from it."""
        self.teachers.forget(silo)
        self._pool.forget(silo)
        self._held.forget(silo)
        self._synthesis = self._untaught()

    def why_not(self, seconds: float, task_seconds: float) -> str:
        """Why reviving does not pay, or nothing. `seconds`: of a revival; `task_seconds`: of the fastest silo's task."""
        if not len(self.teachers):
            return ""
        return why_not(Facts(seconds, task_seconds, skew(self.teachers), self._effects))

    def revive(self, head: Values, version: int) -> Revived | Literal["warmup", "failed"]:
        """What distilling makes of the head, or why there is nothing."""
        if version < self._settings.freeze or not len(self.teachers):
            return "warmup"
        warm = version > self._settings.warmup
        if self._settings.synthesis == "generator" and self._revivals % self._settings.synthesis_every == 0:
            self._synthesise(head if warm else None)
        self._revivals += 1
        if not warm or not (self._settings.synthesis == "noise" or len(self._pool)):
            return "warmup"
        delta, scaled = self._bounded(self._distil(head))
        if not all(bool(tensor.isfinite().all()) for tensor in delta.values()):
            return "failed"
        effect = self._effect(head, delta)
        if effect is not None:
            self._effects.append(effect)
        return Revived(delta, effect, scaled)

    def _synthesise(self, student: Values | None) -> None:
        slots = list(self.teachers)
        order = torch.randperm(len(slots), generator=self._chance).tolist()
        chosen = [slots[place] for place in order[: self._settings.synthesis_teachers]]
        size, steps = self._settings.synthesis_batch, self._settings.synthesis_steps
        batch = self._synthesis.make(chosen, size, steps, student)
        if batch is not None:
            self._batches += 1
            (self._held if self._batches % HELD_BACK == 0 else self._pool).add(batch)

    def _distil(self, head: Values) -> dict[str, Tensor]:
        """Steps of Adam towards every teacher, on inputs with the labels it seems to hold: KL(teacher ‖ student)."""
        steps, samples = self._settings.steps, self._settings.samples
        lessons = [
            self._lesson(teacher.values, teacher.proportions, steps * samples) for teacher in self.teachers
        ]
        student = {name: head[name].clone().requires_grad_() for name in self._network.trainable}
        optimizer = torch.optim.Adam(student.values(), lr=self._settings.lr, weight_decay=WEIGHT_DECAY)
        for step in range(steps):
            part = slice(step * samples, (step + 1) * samples)
            inputs = torch.cat([inputs[part] for inputs, _ in lessons])
            answers = torch.cat([answers[part] for _, answers in lessons])
            said = functional.log_softmax(self._network({**head, **student}, inputs), 1)
            loss = functional.kl_div(said, answers, reduction="batchmean", log_target=True)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return {name: tensor.detach() - head[name] for name, tensor in student.items()}

    def _bounded(self, delta: dict[str, Tensor]) -> tuple[dict[str, Tensor], float]:
        """No longer than the update of a silo is in the median, whatever teachers and terms say; not so as published."""
        length = 0.0 if self._settings.mode == "paper" else norm(delta.values())
        scale = min(1.0, self.teachers.usual / length) if length else 1.0
        return {name: change * scale for name, change in delta.items()}, scale

    @torch.no_grad()
    def _lesson(self, values: Values, proportions: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Inputs and the teacher's answers to them, as logarithms."""
        if self._settings.synthesis == "noise":
            inputs = self._inputs.noise(count, self._chance)
        else:
            inputs = self._inputs.augment(self._pool.draw(count, proportions), self._chance)
        return inputs, functional.log_softmax(self._network(values, inputs), 1)

    @torch.no_grad()
    def _effect(self, head: Values, delta: Values) -> Effect | None:
        if not len(self._held) or self._revivals % self._settings.synthesis_every:
            return None
        gain = self._settings.gain
        after = {**head, **{name: head[name] + gain * change for name, change in delta.items()}}
        counts = [0, 0]
        for teacher in self.teachers:
            inputs = self._held.draw(MEASURED, teacher.proportions)
            answers = self._network(teacher.values, inputs).argmax(1)
            for place, values in enumerate((head, after)):
                counts[place] += int((self._network(values, inputs).argmax(1) == answers).sum())
        total = MEASURED * len(self.teachers)
        return Effect(counts[0] / total, counts[1] / total)
