"""Teachers: one slot per silo, which holds its newest model. Being late, or often, gives nobody a second one.

Only FedRevive as published names slots itself, by update.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from reviver.inputs import Inputs

PROBES = 256  # inputs that a class proportion is read from
PROBED = 2  # first models of a silo that are probed; their mean stays
TEMPERATURE = 0.8
LEAST = 1e-6  # of a class nobody is quite without
LOUDEST = 2.0  # times an equal part of the questions
# Times the median over silos; a model beyond does not teach. What slow silos' layers saw has been ten times as far.
FARTHEST, STRANGEST = 5.0, 100.0

Values = Mapping[str, Tensor]  # a model's tensors by name


@dataclass(frozen=True)
class Teacher:
    silo: str
    values: Values
    proportions: Tensor  # (classes,): what the silo seems to hold; on the CPU, where everything is drawn
    distance: float  # of its parameters from those of the base it was trained from
    drift: float  # of what its normalising layers saw from what the base's say


@dataclass(frozen=True)
class Guess:
    proportions: Tensor  # (classes,)
    probed: int  # models it was read from


class Network:
    """The job's model as a function of its tensors, in evaluation mode, and what its normalising layers saw."""

    def __init__(self, model: nn.Module, device: torch.device | str = "cpu") -> None:
        self.device = device
        self.trainable = tuple(name for name, one in model.named_parameters() if one.requires_grad)
        self._model = model.eval().requires_grad_(False).to(device)
        self._seen: dict[str, Tensor] = {}
        self.tracked = tuple(
            name
            for name, module in model.named_modules()
            if isinstance(getattr(module, "running_mean", None), Tensor)
            and isinstance(getattr(module, "running_var", None), Tensor)
        )
        for name in self.tracked:
            model.get_submodule(name).register_forward_pre_hook(self._see(name))

    def _see(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            self._seen[name] = given[0]

        return hook

    @property
    def statistics(self) -> list[str]:
        """Of the layers in `tracked`."""
        return [f"{name}.{what}" for name in self.tracked for what in ("running_mean", "running_var")]

    def initial(self) -> Values:
        """The tensors the model was made with."""
        return self._model.state_dict()

    def __call__(self, values: Values, inputs: Tensor) -> Tensor:
        """Scores, (n, classes)."""
        scores: Tensor = functional_call(self._model, dict(values), (inputs,))
        return scores

    def strangeness(self, values: Values) -> Tensor:
        """How far mean and variance of each channel in the last call are from what training saw, summed over layers."""
        total = torch.zeros((), device=self.device)
        for name in self.tracked:
            if f"{name}.running_mean" not in values:
                continue  # statistics that do not travel say nothing of the teacher
            seen = self._seen[name]
            over = tuple(axis for axis in range(seen.dim()) if axis != 1)
            mean, var = seen.mean(over), seen.var(over, unbiased=False)
            total = total + (mean - values[f"{name}.running_mean"]).norm()
            total = total + (var - values[f"{name}.running_var"]).norm()
        return total


@dataclass
class Teachers:
    network: Network
    inputs: Inputs
    chance: torch.Generator
    slots: dict[str, Teacher] = field(default_factory=dict)
    _guesses: dict[str, Guess] = field(default_factory=dict)  # by silo, what it holds

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[Teacher]:
        """Those who teach now. Judged by what all slots hold today: who came first has no say for longer."""
        all_of = list(self.slots.values())
        farthest, strangest = FARTHEST * self.usual, STRANGEST * _median([one.drift for one in all_of])
        return iter([one for one in all_of if one.distance <= farthest and one.drift <= strangest])

    @property
    def usual(self) -> float:
        """Distance of a model from its base, in the median."""
        return _median([one.distance for one in self.slots.values()])

    def take(self, silo: str, values: Values, base: Values, slot: str = "") -> str:
        """The silo's slot, or the one called `slot`, holds `values` now.

        Why it does not teach, in a word; if `nonfinite`, the slot stays as it was.
        """
        if not all(bool(tensor.isfinite().all()) for tensor in values.values()):
            return "nonfinite"
        distance = norm(values[name] - base[name] for name in self.network.trainable)
        drift = norm(values[name] - base[name] for name in self.network.statistics if name in values)
        held = self._probed(silo, values).proportions
        self.slots[slot or silo] = Teacher(silo, values, held, distance, drift)
        return "" if any(one.silo == silo for one in self) else "far"

    def rest(self, slot: str) -> None:
        """The model in it teaches no longer; what its silo seems to hold is remembered."""
        self.slots.pop(slot, None)

    def forget(self, silo: str) -> None:
        self.rest(silo)
        self._guesses.pop(silo, None)

    @torch.no_grad()
    def _probed(self, silo: str, values: Values) -> Guess:
        """The mean answer to noise, over the silo's first models (FedRevive, appendix B)."""
        known = self._guesses.get(silo)
        if known is not None and known.probed == PROBED:
            return known
        scores = self.network(values, self.inputs.noise(PROBES, self.chance).to(self.network.device))
        found = torch.softmax(scores / TEMPERATURE, dim=1).mean(0).cpu()
        guess = Guess(found, 1)
        if known is not None:
            probed = known.probed + 1
            guess = Guess(known.proportions + (found - known.proportions) / probed, probed)
        self._guesses[silo] = guess
        return guess


def shares(teachers: Sequence[Teacher]) -> Tensor:
    """(teachers, classes): what part of all there seems to be of a class each one holds; columns sum to 1."""
    held = torch.stack([one.proportions for one in teachers]).clamp_min(LEAST)
    return held / held.sum(0)


def heard(teachers: Sequence[Teacher]) -> Tensor:
    """(teachers, classes), summing to 1: how often each is asked about a class.

    Every class alike, and for it every teacher by its share; but nobody more than LOUDEST times as often as with equal
    parts, whatever it claims to hold.
    """
    weights = shares(teachers)
    parts = weights.sum(1) / weights.sum()
    most, capped = LOUDEST / len(teachers), torch.zeros(len(teachers), dtype=torch.bool)
    bounded = parts
    while bool((bounded > most).any()):  # what one may not say, the others say
        capped |= bounded > most
        rest = (1 - most * capped.sum()) / parts[~capped].sum()
        bounded = torch.where(capped, most, parts * rest)
    return weights * (bounded / weights.sum(1))[:, None]


def skew(teachers: Teachers) -> float:
    """Mean total variation distance of what silos seem to hold from an equal share of every class; 0 to 1."""
    proportions = torch.stack([one.proportions for one in teachers])
    return float((proportions - 1 / proportions.shape[1]).abs().sum(1).mean() / 2)


def norm(tensors: Iterable[Tensor]) -> float:
    """Of all of them together."""
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


def _median(numbers: list[float]) -> float:
    """The lower one of an even number; 0 of none."""
    return sorted(numbers)[(len(numbers) - 1) // 2] if numbers else 0.0
