"""Weights that fall with staleness. Off unless the terms say otherwise: they discard what slow silos know.

    exponent a     (1 + staleness)^-a
    hinge          1 up to `until`, then 1 / (slope * (staleness - until) + 1)
    cosine         cos(pi * staleness / (2 * s_max)), -1 from staleness 2 * s_max on

Whatever needs a power or a cosine is measured once, by the server, and read from the log ever after.
"""

import math
from collections.abc import Mapping, Sequence

from anabranch.errors import Misuse
from anabranch.rules.buffer import Input
from anabranch.terms import Aggregation, Hinge

COSINE = "cosine"


def measure_powers(exponent: float, inputs: Sequence[Input]) -> dict[str, float]:
    """`staleness_weight_<staleness>` of each staleness, where the exponent needs a power."""
    if not _needs_power(exponent):
        return {}
    return {_name(late): (1.0 + late) ** -exponent for late in sorted({one.staleness for one in inputs})}


def measure_cosine(rule: Aggregation, staleness: int) -> dict[str, float]:
    """Not 1 - cosine, which has hardly a digit for a small staleness."""
    assert rule.s_max is not None
    far = staleness >= 2.0 * rule.s_max
    return {COSINE: -1.0 if far else math.cos(math.pi * staleness / (2.0 * rule.s_max))}


def weight(exponent: float, staleness: int, scalars: Mapping[str, float]) -> float:
    """(1 + staleness)^-a. Exponents 0, 1/2 and 1 need only `sqrt` and `/`; any other is read from the log."""
    if _needs_power(exponent):
        return logged(scalars, _name(staleness))
    if exponent == 0.0:
        return 1.0
    if exponent == 1.0:
        return 1.0 / (1.0 + staleness)
    return 1.0 / math.sqrt(1.0 + staleness)


def hinge_weight(hinge: Hinge, staleness: int) -> float:
    late = staleness - hinge.until
    return 1.0 if late <= 0 else 1.0 / (hinge.slope * late + 1.0)


def logged(scalars: Mapping[str, float], name: str) -> float:
    if name not in scalars:
        raise Misuse(f"scalar {name} is missing: `measure` computes it, the log keeps it")
    return scalars[name]


def _needs_power(exponent: float) -> bool:
    return exponent not in (0.0, 0.5, 1.0)


def _name(staleness: int) -> str:
    return f"staleness_weight_{staleness}"
