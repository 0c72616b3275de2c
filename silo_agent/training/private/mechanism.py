"""One step of DP-SGD (Abadi et al., arXiv 1607.00133): sampled, clipped, summed, noised, divided.

Everything that a step lets out of the records goes through `gradient`: the optimizer sees what it leaves in `.grad`, and
nothing else. Each unit is in a step with the same probability, independently of the others and of all other steps, so
the number of records varies, and a step may have none: then its gradient is noise alone. The sum is divided by the
*expected* number of units, which says nothing about this one.

A cycle that was killed and resumed goes on with chance that was never used: neither a key nor a choice of records is
saved. Its steps after the last save are done again with other noise, and what the noise of before had made of the
parameters is gone. Only the end of a cycle leaves, so to whoever sees it there was one run of as many steps as the
ledger was charged with; when to kill is decided by people and clocks, who have not seen the parameters. The same noise a
second time, on other records, would be another matter: the difference of the two runs would show the records bare.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from anabranch.errors import Misuse
from anabranch.privacy import Privacy
from silo_agent.training.channel import Noise
from silo_agent.training.private import gate, probe
from silo_agent.training.private.clipping import Clipping, Fetch
from silo_agent.training.private.noise import Source
from silo_agent.training.private.units import Units, groups
from silo_agent.training.task import Garbage, Task


class Mechanism:
    """Of one cycle, for the parameters that `optimizer` holds. `close` it at the end; `prove` a model once."""

    def __init__(
        self,
        task: Task,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        privacy: Privacy,
        noise: Noise,
        units: Units,
        fetch: Fetch,
        collate: Callable[[list[Any]], Any],
        source: Source,
    ) -> None:
        """`fetch`: records by index. `collate`: of them a batch. Needs the model in training mode. Raises Misuse for
        numbers that are none and for no noise, Garbage where task, model or optimizer are not fit for it.
        """
        self._rate = noise["sample_rate"]
        self._std = noise["noise_multiplier"] * privacy.max_grad_norm
        if not (0 < self._rate <= 1 and 0 < self._std < math.inf):
            raise Misuse(f"there is no training with privacy with {noise}")
        if not units.count:
            raise Garbage("EmptySplit", "there are no records to train on")
        gate.admit(task, model, optimizer, privacy)
        self._most, self._units = privacy.physical_batch, units
        self._fetch, self._source = fetch, source

        def losses(records: list[Any]) -> torch.Tensor:
            return _checked(task.loss(model, collate(records)), len(records), task.loss)

        with probe.refusing(model, privacy.method):
            self._clipping = Clipping(model, optimizer, privacy, losses)
        self._model, self._method = model, privacy.method

    def prove(self) -> None:
        """Hold model and loss to what privacy takes for granted, on a few records. Raises Garbage; leaves the trainable
        parameters changed, and torch's random state.

        For a model as the task made it, before it has a version's parameters: whether it fails depends on the records a
        little, and whoever could choose the parameters as well could make that tell something of them.
        """
        with torch.no_grad():
            for (
                parameter
            ) in self._clipping.parameters:  # so that none is 0, as LoRA's B, and hides what is behind it
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
        probe.prove(self._model, self._clipping, self._fetch(self._some()), self._method)

    def close(self) -> None:
        """Takes Opacus' hooks off the model."""
        self._clipping.close()

    def gradient(self) -> None:
        """Leave a step's private gradient in `.grad` of each parameter. Raises Unavailable when there is no noise."""
        chosen = self._source.chosen(self._units.count, self._rate)
        for group in groups(self._units, chosen, self._most):
            self._clipping.add(group, self._fetch, self._most)
        expected = self._rate * self._units.count
        for parameter, total in self._clipping.sums():
            parameter.grad = (self._source.noisy(total, self._std) / expected).to(parameter.dtype)

    def _some(self) -> list[int]:
        """A few records by chance; at least two, the same one twice if there is no other."""
        most = max(2, min(probe.RECORDS, self._most or probe.RECORDS))
        drawn = (self._source.bits(8 * probe.RECORDS) % self._units.count).tolist()
        records = [self._units[unit][0] for unit in dict.fromkeys(drawn)][:most]
        return records if len(records) > 1 else records * 2


def _checked(loss: Any, count: int, culprit: Callable[..., Any]) -> torch.Tensor:
    """Whether it is finite is not looked at: that would tell of one record."""
    if not isinstance(loss, torch.Tensor):
        raise Garbage("LossNotATensor", f"loss() returned {type(loss).__name__}, not a tensor", culprit)
    if loss.numel() not in (1, count):
        raise Garbage(
            "LossNotPerRecord",
            f"loss() returned a tensor of shape {tuple(loss.shape)} for {count} records: let it be their mean, or one "
            "number for each",
            culprit,
        )
    if not loss.requires_grad:
        raise Garbage("LossWithoutGradient", "loss() returned a tensor that no parameter leads to", culprit)
    return loss.reshape(()) if loss.numel() == 1 else loss.reshape(-1)
