"""A model is held to what privacy takes for granted, on records of the silo: what one of them adds to a step does not
depend on the others, Opacus computes just that, and a pass leaves nothing behind.

Names of modules cannot show it, since a model's own `forward`, the loss and `collate` may mix records as well: a mean
over the words of a batch gives a record more weight where the others are short.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from opacus.grad_sample import GradSampleHooks
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from silo_agent.training import saved
from silo_agent.training.private.clipping import Clipping
from silo_agent.training.task import Garbage

RECORDS: Final = 8  # are tried together and alone
NEAR: Final = 1e-3  # of a gradient: what sums in another order may differ by
NEAR_NONE: Final = 1e-5  # of the record's whole gradient, where a parameter's own is about nothing

Gradients = list[torch.Tensor]


def prove(model: torch.nn.Module, clipping: Clipping, records: list[Any], method: str) -> None:
    """`records`: at least two. Needs the model in training mode. Raises Garbage; changes torch's random state."""
    before = _remembered(model)
    with _Sober(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        with refusing(model, method, "BackwardHookFunction"):  # what else goes wrong is the job's own fault
            records, alone = _sound(clipping, records)
        _are_independent(model, clipping, records, alone)
        with refusing(model, method):
            wrong = _wrong(model, clipping, records, alone)
    if wrong:
        raise _refusal(
            model, method, f"it computes another gradient of a record than torch does, for {wrong}"
        )
    with refusing(model, method):  # and with dropout, as it will be
        clipping.norms(records) if clipping.ghost else clipping.rows(records)
    _check_unchanged(model, before)


@contextmanager
def refusing(model: torch.nn.Module, method: str, words: str = "") -> Iterator[None]:
    """What Opacus and what it builds on raise for a model they cannot do, with `words` in it, becomes Garbage."""
    try:
        yield
    except (NotImplementedError, ValueError, RuntimeError, AttributeError, TypeError, LookupError) as error:
        if isinstance(error, torch.OutOfMemoryError) or words not in str(error):
            raise
        raise _refusal(model, method, f"{type(error).__name__}: {error}") from error


def _refusal(model: torch.nn.Module, method: str, why: str) -> Garbage:
    known = GradSampleHooks.GRAD_SAMPLERS
    without = [
        f"{name!r} ({type(module).__name__})"
        for name, module in model.named_modules()
        if any(p.requires_grad for p in module.parameters(recurse=False)) and type(module) not in known
    ]
    where = (
        f"it has no rule for {', '.join(without)}: freeze them or build them of torch's own layers"
        if without
        else "operations in place after a layer (ReLU(inplace=True)), layers called with more than one input or without "
        "the batch first, and penalties on parameters (take weight_decay) are beyond it"
    )
    if method == "ghost":
        where += '; with method "ghost" no weight may be used twice'
    return Garbage("NoRecordGradient", f"Opacus has no gradients of single records here: {why}; {where}")


def _sound(clipping: Clipping, records: list[Any]) -> tuple[list[Any], list[Gradients]]:
    """Records whose gradient alone is finite, and it; at least two, the same one twice if there is no other."""
    alone = [(record, _seeded(clipping.plain, [record])) for record in records]
    sound = [(record, gradient) for record, gradient in alone if math.isfinite(_norm(gradient))]
    if not sound:
        raise Garbage(
            "RecordsMixed", "no record has a finite loss and gradient when it is alone in its batch"
        )
    both = sound if len(sound) > 1 else sound * 2
    return [record for record, _ in both], [gradient for _, gradient in both]


def _are_independent(
    model: torch.nn.Module, clipping: Clipping, records: list[Any], alone: list[Gradients]
) -> None:
    """What records add to a batch is what they give alone; with a loss for each, also in unequal parts."""
    weights = [float(i + 1) for i in range(len(records))] if clipping.ghost else [1.0] * len(records)
    together = _seeded(lambda some: clipping.plain(some, weights), records)
    scale = sum(weight * _norm(gradient) for weight, gradient in zip(weights, alone, strict=True))
    for index, parameter in enumerate(clipping.parameters):
        parts = [weight * gradient[index] for weight, gradient in zip(weights, alone, strict=True)]
        if not _near(together[index], torch.stack(parts).sum(0), scale):
            raise Garbage(
                "RecordsMixed",
                f"the gradient of {_name(model, parameter)} for {len(records)} records is not made of what each gives "
                "alone: the loss has to be the mean over the records of each one's own (or one number for each), with "
                "nothing normalised over the batch or over all of its words, and no chance of its own but dropout",
            )


def _wrong(
    model: torch.nn.Module, clipping: Clipping, records: list[Any], alone: list[Gradients]
) -> str | None:
    """Where Opacus' gradients of single records are not torch's."""
    true = [_norm(gradient) for gradient in alone]
    if clipping.ghost:
        norms = _seeded(clipping.norms, records).tolist()
        near = [abs(a - b) <= NEAR * b + NEAR_NONE * max(true) for a, b in zip(norms, true, strict=True)]
        return None if all(near) else "its norm"
    rows = _seeded(clipping.rows, records)
    for index, parameter in enumerate(clipping.parameters):
        for row, gradient, norm in zip(rows[index], alone, true, strict=True):
            if not _near(row, gradient[index], norm):
                return _name(model, parameter)
    return None


class _Sober(TorchFunctionMode):
    """Without dropout, which draws other numbers for a batch than for a record alone."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if func is functional.scaled_dot_product_attention:
            if len(args) > 4:
                args = (*args[:4], 0.0, *args[5:])
            else:
                kwargs["dropout_p"] = 0.0
        return func(*args, **kwargs)


_DROPOUTS = {
    functional.dropout,
    functional.dropout1d,
    functional.dropout2d,
    functional.dropout3d,
    functional.alpha_dropout,
    functional.feature_alpha_dropout,
    torch.dropout,
}


def _seeded(compute: Callable[[list[Any]], Any], records: list[Any]) -> Any:
    """A number that the job draws for a whole batch is the same for each."""
    saved.seed_all(0)
    return compute(records)


def _near(found: torch.Tensor, expected: torch.Tensor, scale: float) -> bool:
    """Never, if one is not finite."""
    return _norm([found - expected]) <= NEAR * _norm([expected]) + NEAR_NONE * scale


def _norm(gradient: Gradients) -> float:
    return float(sum(part.double().square().sum() for part in gradient) ** 0.5)


def _state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _remembered(model: torch.nn.Module) -> dict[str, tuple[torch.Tensor, int, torch.Tensor | None]]:
    """Of each parameter and buffer itself, how often it was changed, and what is in it; not of what is frozen, which
    never leaves and may be large.
    """
    return {
        name: (
            tensor,
            tensor._version,
            None
            if isinstance(tensor, torch.nn.Parameter) and not tensor.requires_grad
            else tensor.detach().clone(),
        )
        for name, tensor in _state(model).items()
    }


def _check_unchanged(
    model: torch.nn.Module, before: dict[str, tuple[torch.Tensor, int, torch.Tensor | None]]
) -> None:
    for name, tensor in _state(model).items():
        old, version, values = before.get(name, (None, 0, None))
        same = tensor is old and tensor._version == version
        if not same or (values is not None and not _equal(values, tensor)):
            raise Garbage(
                "StateChanged",
                f"{name!r} is changed by computing a loss: what it keeps of records would leave without noise, or go "
                "into the gradients of others",
            )


def _equal(old: torch.Tensor, new: torch.Tensor) -> bool:
    return old.shape == new.shape and bool(torch.equal(old.nan_to_num(), new.nan_to_num()))


def _name(model: torch.nn.Module, parameter: torch.nn.Parameter) -> str:
    name = next(name for name, other in model.named_parameters() if other is parameter)
    owner = model.get_submodule(name.rpartition(".")[0])
    return f"parameter {name!r} of {type(owner).__name__}"
