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
from reviver.teachers import Network, Teacher, Teachers, Values, heard, norm, skew
from reviver.trial import tried
from reviver.worth import PAUSE, Effect, Facts, why_not

HELD_BACK = 8  # every so many batches one is kept for measuring, and nothing is distilled on it
MEASURED = 48  # inputs in a measurement, times the teachers
AT_ONCE = 256  # public records
WEIGHT_DECAY = 1e-5


@dataclass(frozen=True)
class Revived:
    delta: Mapping[str, Tensor]  # of trainable tensors: what distilling added to the head
    effect: Effect | None  # not measured every time
    scaled: float  # what distilling added was multiplied by this, to be no longer than a silo's own update


class Reviver:
    """Deterministic by seed with one thread. Holds a model per silo, two generators and the pool.

    Tensors live on `device`; what comes in may lie anywhere, what goes out lies on the CPU, where all chance is drawn.
    Raises Unsupported for a model that cannot be revived, and whatever the task's code raises.
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
        tried(self._network, inputs)
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
        delta, scaled = self._bounded(self._distil(head))
        if not all(bool(tensor.isfinite().all()) for tensor in delta.values()):
            return "failed"
        effect = self._effect(head, delta)
        if effect is not None:
            self._effects.append(effect)
        return Revived({name: tensor.cpu() for name, tensor in delta.items()}, effect, scaled)

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
        """Steps of Adam towards what the teachers say: KL(teacher ‖ student)."""
        steps, each = self._settings.steps, self._settings.samples * len(self.teachers)
        inputs, answers = self._lessons(self._pool, steps * each)
        student = {name: head[name].clone().requires_grad_() for name in self._network.trainable}
        optimizer = torch.optim.Adam(student.values(), lr=self._settings.lr, weight_decay=WEIGHT_DECAY)
        for seen, told in zip(torch.split(inputs, each), torch.split(answers, each), strict=True):
            said = functional.log_softmax(self._network({**head, **student}, seen), 1)
            loss = functional.kl_div(said, told, reduction="batchmean", log_target=True)
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
    def _lessons(self, pool: Pool, count: int) -> tuple[Tensor, Tensor]:
        """Inputs (count, …), each with one teacher's answer (count, classes), as logarithms."""
        teachers, samples = list(self.teachers), self._settings.samples
        asked, labels = self._questions(teachers, count)
        if self._settings.synthesis == "noise":
            inputs = self._inputs.noise(count, self._chance).to(self._network.device)
        else:
            drawn = torch.split(pool.draw(labels), samples)
            inputs = torch.cat([self._inputs.augment(part, self._chance) for part in drawn])
        answers = torch.empty(count, len(teachers[0].proportions), device=self._network.device)
        for number, teacher in enumerate(teachers):
            places = (asked == number).nonzero().flatten().to(self._network.device)
            if len(places):
                answers[places] = self._network(teacher.values, inputs[places])
        return inputs, functional.log_softmax(answers, 1)

    def _questions(self, teachers: list[Teacher], count: int) -> tuple[Tensor, Tensor]:
        """Who is asked, by number, and about which label: (count,) each.

        All classes count alike, however many silos hold them: a class one silo has is heard as often as one all have. As
        published all teachers count alike, each with the classes it seems to hold.
        """
        if self._settings.mode == "paper":
            held = torch.stack([one.proportions for one in teachers])
            asked = torch.arange(len(teachers)).repeat(count // len(teachers))
            return asked, torch.multinomial(held[asked], 1, generator=self._chance).flatten()
        weights = heard(teachers)
        drawn = torch.multinomial(weights.flatten(), count, replacement=True, generator=self._chance)
        return drawn // weights.shape[1], drawn % weights.shape[1]

    @torch.no_grad()
    def _effect(self, head: Values, delta: Values) -> Effect | None:
        if not len(self._held) or self._revivals % self._settings.synthesis_every:
            return None
        gain = self._settings.gain
        after = {**head, **{name: head[name] + gain * change for name, change in delta.items()}}
        inputs, answers = self._lessons(self._held, MEASURED * len(self.teachers))

        def agreement(values: Values) -> float:
            said = functional.log_softmax(self._network(values, inputs), 1)
            return math.exp(-float(functional.kl_div(said, answers, reduction="batchmean", log_target=True)))

        accuracy = None if self._measured is None else (self._accuracy(head), self._accuracy(after))
        return Effect(agreement(head), agreement(after), accuracy)

    def _accuracy(self, values: Values) -> float:
        """Of the part of the public records that nothing is distilled on."""
        assert self._measured is not None
        inputs, labels = self._measured.inputs, self._measured.labels
        parts = [inputs[at : at + AT_ONCE] for at in range(0, len(labels), AT_ONCE)]
        said = torch.cat([self._network(values, part).argmax(1) for part in parts])
        return float((said.cpu() == labels).float().mean())
