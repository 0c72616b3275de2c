"""Figures over seeds: means with their confidence intervals, paired differences, curves on one time axis."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

LEVEL = 0.95

Reals = NDArray[np.float64]


@dataclass(frozen=True)
class Points:
    """A curve: `values` at `times`, which ascend."""

    times: Reals
    values: Reals


@dataclass(frozen=True)
class Interval:
    """A mean and where it lies with 95 % confidence, by Student's t; without bounds for a single value."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Paired:
    """Of differences of pairs: `p` is that of the two-sided paired t-test."""

    mean: float
    low: float | None
    high: float | None
    p: float | None


@dataclass(frozen=True)
class Band:
    """Curves as one: mean and confidence interval at each time; `low` and `high` equal `mean` for a single curve."""

    times: Reals
    mean: Reals
    low: Reals
    high: Reals

    def points(self) -> Points:
        return Points(self.times, self.mean)


def interval(values: Sequence[float]) -> Interval:
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, None, None)
    half = _t(len(values)) * _error(values)
    return Interval(mean, mean - half, mean + half)


def paired(ones: Sequence[float], others: Sequence[float]) -> Paired:
    """Of ones − others, pair by pair."""
    differences = [one - other for one, other in zip(ones, others, strict=True)]
    found = interval(differences)
    if len(differences) < 2:
        return Paired(found.mean, None, None, None)
    error = _error(differences)
    certain = float(found.mean == 0.0)  # all pairs differ by the same
    p = certain if error == 0.0 else float(2 * stdtr(len(differences) - 1, -abs(found.mean) / error))
    return Paired(found.mean, found.low, found.high, p)


def band(curves: Sequence[Points]) -> Band:
    """At every time of any curve, from when all have begun; where one has ended, its last value stands."""
    times = np.unique(np.concatenate([curve.times for curve in curves]))
    times = times[times >= max(curve.times[0] for curve in curves)]
    table = np.stack(
        [curve.values[np.searchsorted(curve.times, times, side="right") - 1] for curve in curves]
    )
    mean = table.mean(axis=0)
    half = np.zeros_like(mean)
    if len(curves) > 1:
        half = _t(len(curves)) * table.std(axis=0, ddof=1) / np.sqrt(len(curves))
    return Band(times, mean, mean - half, mean + half)


def running_mean(curve: Points, looks: int) -> Points:
    """At each look the mean of the last `looks`; it begins when there are so many."""
    if len(curve.values) < looks:
        return Points(curve.times[:0], curve.values[:0])
    means = np.convolve(curve.values, np.full(looks, 1 / looks), mode="valid")
    return Points(curve.times[looks - 1 :], means)


def reached(curve: Points, target: float, looks: int, mode: Literal["max", "min"]) -> float | None:
    """When the running mean first is as good as `target`; None if never."""
    means = running_mean(curve, looks)
    good = means.values >= target if mode == "max" else means.values <= target
    return float(means.times[np.argmax(good)]) if good.any() else None


def _t(count: int) -> float:
    return float(stdtrit(count - 1, 0.5 + LEVEL / 2))


def _error(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))
