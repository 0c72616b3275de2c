"""Per-record gradients, clipped and summed by Opacus: what noise is added to.

A unit's gradient is the mean over its records', and is scaled down to at most the bound in L2, all parameters taken
together. With `clipping = "per_layer"` each of the L parameters has an equal part of the bound, bound / sqrt(L), so that
together it is the same.

The task's loss is the mean over a batch of what each record's is, or one loss for each record. `probe` holds it to that.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch
from opacus.grad_sample import GradSampleHooks, GradSampleHooksFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping, DPPerLayerOptimizer

from anabranch.privacy import Privacy
from silo_agent.training.private.units import Unit
from silo_agent.training.task import Garbage

# Opacus' hooks need no gradient of what goes into a layer, so it is as well that there is none for the first.
warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)

# Of the bound is left free, for norms and sums are rounded: noise is made for the whole of it.
MARGIN: Final = 2.0**-10

Fetch = Callable[[Sequence[int]], list[Any]]  # records by index
Losses = Callable[[list[Any]], torch.Tensor]  # of records: one number, their mean, or one for each
Rows = list[torch.Tensor]  # of each parameter; mostly with one row for each record or unit


class Clipping:
    """Of one cycle. While it is open, the model's modules have Opacus' hooks on them."""

    def __init__(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, privacy: Privacy, losses: Losses
    ) -> None:
        self._losses, self.ghost = losses, privacy.method == "ghost"
        bound = privacy.max_grad_norm * (1 - MARGIN)
        # "sum" and no expected batch: Opacus neither scales nor draws noise, the loss is scaled here.
        rule: dict[str, Any] = {"noise_multiplier": 0.0, "expected_batch_size": None, "loss_reduction": "sum"}
        if self.ghost:
            # Not strict: buffers that a pass leaves as they are do no harm, and `probe` looks at that.
            self._hooks = GradSampleHooksFastGradientClipping(
                model, loss_reduction="sum", strict=False, max_grad_norm=bound
            )
            self._optimizer = DPOptimizerFastGradientClipping(optimizer, max_grad_norm=bound, **rule)
        else:
            self._hooks = GradSampleHooks(model, loss_reduction="sum", strict=False)
            if privacy.clipping == "per_layer":
                count = sum(len(group["params"]) for group in optimizer.param_groups)
                parts = [bound / math.sqrt(count)] * count
                self._optimizer = DPPerLayerOptimizer(optimizer, max_grad_norm=parts, **rule)
            else:
                self._optimizer = DPOptimizer(optimizer, max_grad_norm=bound, **rule)
        self.parameters: list[torch.nn.Parameter] = self._optimizer.params

    def close(self) -> None:
        self._hooks.cleanup()

    def add(self, units: Sequence[Unit], fetch: Fetch, most: int | None) -> None:
        """Add each unit's clipped gradient to the sum. `most`: records in memory at a time; None: all."""
        records = [(index, owner) for owner, unit in enumerate(units) for index in unit]
        most = most or len(records)
        pieces = [records[start : start + most] for start in range(0, len(records), most)]
        if self.ghost:
            for piece in pieces:
                self._add_ghost(fetch([index for index, _ in piece]))
            return
        held: Rows = []
        for piece in pieces:
            rows = _finite(self.rows(fetch([index for index, _ in piece])))
            if len(records) > len(units):
                rows = _folded(rows, [(owner, len(units[owner])) for _, owner in piece], len(units))
            held = [one.add_(other) for one, other in zip(held, rows, strict=True)] if held else rows
        for parameter, row in zip(self.parameters, held, strict=True):
            parameter.grad_sample = row  # type: ignore[attr-defined]
        self._optimizer.clip_and_accumulate()
        self._forget()

    def sums(self) -> Iterator[tuple[torch.nn.Parameter, torch.Tensor]]:
        """Of each parameter what was added since this was last called."""
        for parameter in self.parameters:
            total = getattr(parameter, "summed_grad", None)
            parameter.summed_grad = None  # type: ignore[attr-defined]
            yield parameter, torch.zeros_like(parameter) if total is None else total

    def rows(self, records: list[Any]) -> Rows:
        """Each record's gradient, not clipped."""
        self._forget()
        losses = self._losses(records)
        # One number is the mean; what is summed up is what the records have by themselves.
        torch.autograd.backward(losses * len(records) if losses.numel() == 1 else losses.sum())
        found = [self._of(parameter, "grad_sample") for parameter in self.parameters]
        self._forget()
        for row in found:
            _are_of(records, row)
        return found

    def norms(self, records: list[Any]) -> torch.Tensor:
        """L2 norm of each record's gradient, by ghost clipping."""
        self._ghost(records)
        norms: torch.Tensor = self._hooks.per_sample_gradient_norms
        self._forget()
        return norms

    def plain(self, records: list[Any], weights: Sequence[float] = (1.0,)) -> Rows:
        """The gradient of the weighted sum of the records' losses, as torch computes it; Opacus has no part in it."""
        self._forget()
        self._hooks.disable_hooks()
        losses = self._each(records) if self.ghost else self._losses(records)
        torch.autograd.backward(
            (losses * losses.new_tensor(weights)).sum()
        )  # of a mean: as often as there are weights
        self._hooks.enable_hooks()
        found = [self._of(parameter, "grad") for parameter in self.parameters]
        self._forget()
        return found

    def _add_ghost(self, records: list[Any]) -> None:
        losses, factors = self._ghost(records)
        good = torch.isfinite(self._hooks.per_sample_gradient_norms) & torch.isfinite(losses)
        if not good.all():  # a factor of 0 would not make up for it: 0 times infinity is no number
            self._forget()
            if kept := [record for record, finite in zip(records, good.tolist(), strict=True) if finite]:
                self._add_ghost(kept)
            return
        self._forget()
        self._hooks.disable_hooks()
        torch.autograd.backward((factors * losses).sum())
        self._hooks.enable_hooks()
        for parameter in self.parameters:
            self._of(parameter, "grad")
        self._optimizer.accumulate()
        self._forget()

    def _ghost(self, records: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """The records' losses and the factors that clip them; the graph is kept."""
        self._forget()
        losses = self._each(records)
        torch.autograd.backward(losses.sum(), retain_graph=True)
        factors: torch.Tensor = self._hooks.get_clipping_coef()
        _are_of(records, factors)
        return losses, factors.detach()

    def _each(self, records: list[Any]) -> torch.Tensor:
        losses = self._losses(records).reshape(-1)
        if len(losses) != len(records):
            raise Garbage(
                "LossNotPerRecord",
                'privacy.method "ghost" weighs the losses of records: let loss() return one for each, shape (n,), as '
                'with reduction="none"; or take method "hooks"',
            )
        return losses

    def _of(self, parameter: torch.nn.Parameter, kind: str) -> torch.Tensor:
        found = getattr(parameter, kind, None)
        if not isinstance(found, torch.Tensor):
            raise Garbage(
                "NoGradient",
                f"a trainable parameter of shape {tuple(parameter.shape)} has no gradient: one that the loss does not "
                "reach has to be frozen (requires_grad_(False)), or Opacus cannot tell records apart in its module",
            )
        return found

    def _forget(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None
            parameter.grad_sample = None  # type: ignore[attr-defined]
            if hasattr(parameter, "_norm_sample"):  # or it stood for a layer that the next pass leaves out
                del parameter._norm_sample


def _are_of(records: list[Any], rows: torch.Tensor) -> None:
    if len(rows) != len(records):
        raise Garbage(
            "RecordsMixed",
            f"{len(records)} records give gradients of {len(rows)}: the first dimension of what goes into each layer has "
            "to be the batch",
        )


def _finite(rows: Rows) -> Rows:
    """A record whose gradient is no number gives none: it would undo the others', and its failure would be seen."""
    good = torch.stack([torch.isfinite(row).reshape(len(row), -1).all(1) for row in rows]).all(0)
    return rows if good.all() else [row.masked_fill(~_along(good, row), 0) for row in rows]


def _folded(rows: Rows, owners: Sequence[tuple[int, int]], count: int) -> Rows:
    """Rows of records into rows of `count` units. `owners`: of each record its unit and how many records that has."""
    device = rows[0].device
    unit = torch.tensor([owner for owner, _ in owners], device=device)
    share = torch.tensor([1 / size for _, size in owners], dtype=rows[0].dtype, device=device)
    return [
        row.new_zeros((count, *row.shape[1:])).index_add_(0, unit, row * _along(share, row)) for row in rows
    ]


def _along(vector: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    """A number for each record, in a shape that meets the record's gradient."""
    return vector.view(-1, *[1] * (row.ndim - 1))
