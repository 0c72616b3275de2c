"""How fast a cycle goes: samples and, where a batch shows them, tokens per second, over the newest steps."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from typing_extensions import TypedDict

from anabranch.wire.limits import PER_SECOND

MARK_SECONDS = 1.0  # between two marks, at least
MARKS = 10  # a speed is over as many: ten seconds, or ten longer steps


class Speed(TypedDict):
    samples_per_second: float  # 0.0: not known
    tokens_per_second: float


class _Mark(NamedTuple):
    time: float
    samples: int
    tokens: int


class Meter:
    """Of one cycle. One thread at a time. It can be pickled, and with it a model that it watches."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: seconds."""
        self._clock = clock
        self._samples = self._tokens = 0
        self._marks = deque([_Mark(clock(), 0, 0)], MARKS)

    def count(self, samples: int, tokens: int) -> None:
        """A batch goes into the model."""
        self._samples += samples
        self._tokens += tokens

    def watch(self, model: torch.nn.Module) -> Callable[[], None]:
        """Count what the model is called with while it trains, until the answer is called.

        A model that was compiled is not counted: a number that changes with each call would have it compiled again
        and again.
        """
        if isinstance(model, torch.jit.ScriptModule):  # takes no hook
            return lambda: None
        return model.register_forward_pre_hook(self._called, with_kwargs=True).remove

    def _called(self, model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.compiler.is_compiling() and model.training and torch.is_grad_enabled():
            self.count(*counts((args, kwargs)))

    def speed(self) -> Speed:
        now, since = self._clock(), self._marks[0]
        if now - self._marks[-1].time >= MARK_SECONDS:
            self._marks.append(_Mark(now, self._samples, self._tokens))
        passed = now - since.time
        if passed <= 0:
            return Speed(samples_per_second=0.0, tokens_per_second=0.0)
        samples, tokens = self._samples - since.samples, self._tokens - since.tokens
        return Speed(
            samples_per_second=min(samples / passed, PER_SECOND),
            tokens_per_second=min(tokens / passed, PER_SECOND),
        )


def counts(batch: Any) -> tuple[int, int]:
    """Samples and tokens of a batch, (0, 0) where it does not show them: the rows of its first tensor, and that one's
    elements if it is (n, length) of token ids, padding among them.
    """
    first = _first_tensor(batch)
    if first is None or first.ndim == 0:
        return 0, 0
    ids = first.ndim == 2 and first.dtype in (torch.int32, torch.int64)
    return first.shape[0], math.prod(first.shape) if ids else 0


def _first_tensor(batch: Any) -> torch.Tensor | None:
    if isinstance(batch, torch.Tensor):
        return batch
    inside: Iterable[Any] = ()
    if isinstance(batch, Mapping):
        inside = batch.values()
    elif isinstance(batch, list | tuple):
        inside = batch
    return next((found for one in inside if (found := _first_tensor(one)) is not None), None)
