"""Strategies: from buffered updates to one coefficient per update.

A strategy is three pure parts. `measure` computes the scalars that are not the same bits everywhere, once,
for the log. `plan` turns inputs and those scalars into weights and coefficients with correctly rounded
operations. The combination itself, `direction = sum of coefficient_i * delta_i`, is `anabranch.rules.step`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from anabranch.errors import Misuse
from anabranch.terms import Aggregation

Weighting = Literal["equal", "examples"]


@dataclass(frozen=True)
class Input:
    """One admitted update. `base` and `staleness` (head - base, in versions) come from its lease."""

    update: str
    silo: str
    base: int
    staleness: int
    examples: int | None  # only read when the job weights by examples
    order: int  # position in the aggregation; inputs are summed in this order


@dataclass(frozen=True)
class Plan:
    """Per input, in input order. All three are recomputed by replay and must be equal bit for bit."""

    weights: tuple[float, ...]  # what the strategy gives each update before normalising
    coefficients: tuple[float, ...]  # multiplies the delta of a trainable tensor
    shares: tuple[float, ...]  # weight / sum of weights: multiplies the value of a float buffer


def measure(strategy: Aggregation, inputs: Sequence[Input]) -> dict[str, float]:
    """What to log and hand to `plan`: `staleness_weight_<staleness>` where a power is needed, or nothing."""
    if not _needs_power(strategy):
        return {}
    return {
        _staleness_name(staleness): (1.0 + staleness) ** -strategy.staleness_exponent
        for staleness in sorted({one.staleness for one in inputs})
    }


def plan(
    strategy: Aggregation, weighting: Weighting, inputs: Sequence[Input], scalars: Mapping[str, float]
) -> Plan:
    """Weights and coefficients of one aggregation.

    size_i = 1 or examples_i.

    fedavg   weight_i = size_i                        coefficient_i = weight_i / sum(weight)
    fedbuff  weight_i = size_i * (1 + staleness_i)^-a
             normalise = weights: coefficient_i = weight_i / sum(weight)   a stale buffer takes a full step
             normalise = count:   coefficient_i = weight_i / sum(size)     a stale buffer takes a smaller one

    With equal weighting sum(size) is the number of updates, the divisor of FedBuff as published (Nguyen et
    al., AISTATS 2022). Raises Misuse for inputs no admission lets through and for a scalar that is missing.
    """
    _check(inputs, weighting)
    sizes = [1.0 if weighting == "equal" else float(one.examples or 0) for one in inputs]
    if strategy.strategy == "fedavg":
        weights = sizes
    else:
        weights = [
            size * _staleness_weight(strategy, one.staleness, scalars)
            for size, one in zip(sizes, inputs, strict=True)
        ]
    total = _ordered_sum(weights)
    by_count = strategy.strategy == "fedbuff" and strategy.normalise == "count"
    divisor = _ordered_sum(sizes) if by_count else total
    return Plan(
        weights=tuple(weights),
        coefficients=tuple(weight / divisor for weight in weights),
        shares=tuple(weight / total for weight in weights),
    )


def _check(inputs: Sequence[Input], weighting: Weighting) -> None:
    if not inputs:
        raise Misuse("an aggregation needs at least one update")
    if any(later.order <= earlier.order for earlier, later in pairwise(inputs)):
        raise Misuse("inputs of an aggregation must be sorted by `order`, each value once")
    for one in inputs:
        if one.staleness < 0:
            raise Misuse(
                f"update {one.update} has staleness {one.staleness}: its base is newer than the head"
            )
        if weighting == "examples" and (one.examples is None or one.examples < 1):
            raise Misuse(f"update {one.update} states {one.examples} examples in a job weighted by examples")


def _ordered_sum(values: Iterable[float]) -> float:
    """Left to right. Not `sum`: since Python 3.12 it compensates, so its bits depend on the interpreter."""
    total = 0.0
    for value in values:
        total += value
    return total


def _needs_power(strategy: Aggregation) -> bool:
    return strategy.strategy == "fedbuff" and strategy.staleness_exponent not in (0.0, 0.5, 1.0)


def _staleness_name(staleness: int) -> str:
    return f"staleness_weight_{staleness}"


def _staleness_weight(strategy: Aggregation, staleness: int, scalars: Mapping[str, float]) -> float:
    """(1 + staleness)^-a. Exponents 0, 1/2 and 1 need only `sqrt` and `/`; any other is read from the log."""
    if _needs_power(strategy):
        name = _staleness_name(staleness)
        if name not in scalars:
            raise Misuse(f"scalar {name} is missing: `measure` computes it, the log keeps it")
        return scalars[name]
    if strategy.staleness_exponent == 0.0:
        return 1.0
    if strategy.staleness_exponent == 1.0:
        return 1.0 / (1.0 + staleness)
    return 1.0 / math.sqrt(1.0 + staleness)
