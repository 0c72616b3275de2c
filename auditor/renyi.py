"""What Poisson-sampled, noised steps reveal, computed from the formula: the auditor takes no accountant's word for it.

Silos account with `dp_accounting`, which sums a series; here the same expectation is integrated. One step on a batch that
each unit enters with probability q, noised by σ times the clipping norm, has at order α the Rényi divergence
(Mironov, Talwar, Zhang, arXiv 1908.10530, §3)

    log E[((1 − q) + q · exp((2z − 1) / 2σ²))^α] / (α − 1),    z from a normal distribution of mean 0 and deviation σ.

Divergences of steps add up. They become ε at δ as in Canonne, Kamath, Steinke, arXiv 2004.00010, proposition 12.
"""

import math
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

ORDERS = np.array(
    [*(1 + x / 10 for x in range(1, 100)), *range(11, 64), 80, 100, 128, 180, 256, 360, 512, 720, 1024]
)  # those that silos take
WIDE, FINE = 12.0, 16  # deviations that the integral reaches beyond its peaks, and points in one
Steps = tuple[float, float, int]  # sample rate, noise multiplier, how many


def epsilon(steps: Iterable[Steps], delta: float) -> float:
    """ε at `delta` of all `steps` on one data set; 0.0 for none. Neighbours differ in one unit that is there or not."""
    merged: Counter[tuple[float, float]] = Counter()
    for rate, noise, count in steps:
        merged[rate, noise] += count
    if not merged:
        return 0.0
    divergence = sum((count * _curve(*step) for step, count in merged.items()), np.zeros(len(ORDERS)))
    converted = divergence + np.log1p(-1 / ORDERS) - np.log(delta * ORDERS) / (ORDERS - 1)
    return max(0.0, float(np.min(converted)))


@lru_cache(1024)
def _curve(rate: float, noise: float) -> NDArray[np.float64]:
    """Divergence of one step at each of ORDERS."""
    if rate == 1.0:
        return ORDERS / (2 * noise**2)
    return np.array([_divergence(rate, noise, order) for order in ORDERS.tolist()])


def _divergence(rate: float, noise: float, order: float) -> float:
    """The integrand has its peaks between 0 and `order`; of a smooth one that vanishes at both ends the sum over a grid
    is the integral to nearly all digits.
    """
    step = noise / FINE
    z = np.arange(-WIDE * noise, order + WIDE * noise, step)
    ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * z - 1) / (2 * noise**2))
    logs = order * ratio - z**2 / (2 * noise**2)
    peak = float(logs.max())
    total = peak + math.log(float(np.exp(logs - peak).sum()) * step)
    return max(0.0, (total - math.log(noise) - 0.5 * math.log(2 * math.pi)) / (order - 1))
