"""One job's reviver: teachers go in, now and then what was distilled comes out."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from anabranch.terms import Revival
from reviver.inputs import Inputs
from reviver.pool import Batch, Pool
from reviver.public import Public
from reviver.synthesis import Synthesis
from reviver.teachers import Network, Teachers, Values, skew
from reviver.worth import PAUSE, Effect, Facts, why_not

HELD_BACK = 8  # every so many batches one is kept for measuring, and nothing is distilled on it
MEASURED = 48  # inputs per teacher in a measurement
AT_ONCE = 256  # public records
WEIGHT_DECAY = 1e-5


@dataclass(frozen=True)
class Revived:
    delta: Mapping[str, Tensor]  # of trainable tensors: what distilling added to the head
    effect: Effect | None  # not measured every time


class Reviver:
    """Deterministic by seed with one thread. Holds a model per silo, two generators and the pool.

    Tensors live on `device`; what comes in may lie anywhere, what goes out lies on the CPU, where all chance is drawn.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        settings: Revival,
        seed: int,
        device: torch.device | str = "cpu",
        public: Public | None = None,
    ) -> None:
        self._settings, self._inputs, self._seed = settings, inputs, seed
        self._chance = torch.Generator().manual_seed(seed)
        self._network = Network(model, device)
        self.teachers = Teachers(self._network, inputs, self._chance)
        self._pool, self._held = Pool(self._chance), Pool(self._chance)
        self._measured = None if public is None else self._moved(public.measured)
        if self._measured is not None:
            self._held.add(self._measured)
        if public is not None and settings.synthesis == "public":
            self._pool.add(self._moved(public.taught))
        self._synthesis = self._untaught()
        self._revivals, self._batches = 0, 0
        self._effects: list[Effect] = []  # since the last pause, oldest first
        self._pause = 0  # it ends with this version

    def _untaught(self) -> Synthesis:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            return Synthesis(self._network, self._inputs, self._chance)

    def learn(self, silo: str, base: Values, sent: Values, slot: str = "") -> str:
        """`sent`: trained − base of parameters, the values of buffers. Why it does not teach, as `Teachers.take`."""
        base, sent, added = self._here(base), self._here(sent), self._network.trainable
        trained = {name: base[name] + tensor if name in added else tensor for name, tensor in sent.items()}
        return self.teachers.take(silo, trained, base, slot)

    def forget(self, silo: str) -> None:
        """Slot, inputs made from it, and a generator that learned from it."""
        self.teachers.forget(silo)
        self._pool.forget(silo)
        self._held.forget(silo)
        self._synthesis = self._untaught()

    def why_not(self, version: int, seconds: float, task_seconds: float) -> str:
        """Why reviving does not pay, or nothing. `seconds`: of a revival; `task_seconds`: of the fastest silo's task.

        Without effect it pauses: what it finds after that is judged anew.
        """
        if not len(self.teachers):
            return ""
        if version < self._pause:
            return "no_effect"
        why = why_not(Facts(seconds, task_seconds, skew(self.teachers), self._effects))
        if why == "no_effect":
            self._effects.clear()
            self._pause = version + PAUSE
        return why

    def revive(self, head: Values, version: int) -> Revived | Literal["warmup", "failed"]:
        """What distilling makes of the head, or why there is nothing."""
        if version < self._settings.freeze or not len(self.teachers):
            return "warmup"
        head, warm = self._here(head), version > self._settings.warmup
        if self._settings.synthesis == "generator" and self._revivals % self._settings.synthesis_every == 0:
            self._synthesise(head if warm else None)
        self._revivals += 1
        if not warm or not (self._settings.synthesis == "noise" or len(self._pool)):
            return "warmup"
        delta = self._distil(head)
        if not all(bool(tensor.isfinite().all()) for tensor in delta.values()):
            return "failed"
        effect = self._effect(head, delta)
        if effect is not None:
            self._effects.append(effect)
        return Revived({name: tensor.cpu() for name, tensor in delta.items()}, effect)

    def _moved(self, batch: Batch) -> Batch:
        return replace(batch, inputs=batch.inputs.to(self._network.device))

    def _here(self, values: Values) -> Values:
        return {name: tensor.to(self._network.device) for name, tensor in values.items()}

    def _synthesise(self, student: Values | None) -> None:
        slots = list(self.teachers)
        order = torch.randperm(len(slots), generator=self._chance).tolist()
        chosen = [slots[place] for place in order[: self._settings.synthesis_teachers]]
        size, steps = self._settings.synthesis_batch, self._settings.synthesis_steps
        batch = self._synthesis.make(chosen, size, steps, student)
        if batch is not None:
            self._batches += 1
            kept_back = self._measured is None and self._batches % HELD_BACK == 0
            (self._held if kept_back else self._pool).add(batch)

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

    @torch.no_grad()
    def _lesson(self, values: Values, proportions: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Inputs and the teacher's answers to them, as logarithms."""
        if self._settings.synthesis == "noise":
            inputs = self._inputs.noise(count, self._chance).to(self._network.device)
        else:
            inputs = self._inputs.augment(self._pool.draw(count, proportions), self._chance)
        return inputs, functional.log_softmax(self._network(values, inputs), 1)

    @torch.no_grad()
    def _effect(self, head: Values, delta: Values) -> Effect | None:
        if not len(self._held) or self._revivals % self._settings.synthesis_every:
            return None
        gain = self._settings.gain
        after = {**head, **{name: head[name] + gain * change for name, change in delta.items()}}
        apart = [0.0, 0.0]
        for teacher in self.teachers:
            inputs = self._held.draw(MEASURED, teacher.proportions)
            answers = functional.log_softmax(self._network(teacher.values, inputs), 1)
            for place, values in enumerate((head, after)):
                said = functional.log_softmax(self._network(values, inputs), 1)
                divergence = functional.kl_div(said, answers, reduction="batchmean", log_target=True)
                apart[place] += float(divergence) / len(self.teachers)
        before, behind = (math.exp(-one) for one in apart)
        accuracy = None if self._measured is None else (self._accuracy(head), self._accuracy(after))
        return Effect(before, behind, accuracy)

    def _accuracy(self, values: Values) -> float:
        """Of the part of the public records that nothing is distilled on."""
        assert self._measured is not None
        inputs, labels = self._measured.inputs, self._measured.labels
        parts = [inputs[at : at + AT_ONCE] for at in range(0, len(labels), AT_ONCE)]
        said = torch.cat([self._network(values, part).argmax(1) for part in parts])
        return float((said.cpu() == labels).float().mean())
