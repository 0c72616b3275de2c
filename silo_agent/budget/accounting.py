"""The accountant: how much steps of Poisson-sampled, noised training reveal, by the `dp_accounting` library.

Two data sets are neighbours when one has one unit (a record, a subject) more than the other. What is decided is decided
by Rényi accounting: anybody can derive its ε again from the same few numbers with another library, to the same digits.
The privacy loss distribution gives a smaller, also valid ε for the same events; it is shown, and decides nothing.
"""

import logging
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from anabranch.errors import Reason, Refused

Accountant = Literal["rdp", "pld"]
ORDERS = (  # of Rényi divergence: the library's, and large ones, which small ε follow from
    *(1 + x / 10 for x in range(1, 100)),
    *range(11, 64),
    *(80, 100, 128, 180, 256, 360, 512, 720, 1024),
)
GRID = 4096  # noise multipliers are multiples of 1/GRID: exact in a float, and in decimal digits
MOST_NOISE = 2**12  # a multiplier beyond which nobody learns anything


@dataclass(frozen=True)
class Event:
    """`steps` steps, each on a batch that every unit enters with probability `sample_rate`, independently; to the sum of
    clipped gradients is added Gaussian noise of `noise_multiplier` times the clipping norm.
    """

    sample_rate: float  # above 0, at most 1
    noise_multiplier: float  # above 0
    steps: int


def spent(events: Iterable[Event], delta: float, accountant: Accountant = "rdp") -> float:
    """The ε that `events` on one data set spend together at `delta`; 0.0 for none. An upper bound, infinite at worst.

    Raises Refused(MALFORMED) for an event or a δ that is none, Refused(NOT_FOUND) without the library.
    """
    check_delta(delta)
    kinds = merged(events)
    if not kinds:
        return 0.0
    if accountant == "rdp":
        together = sum(one.steps * _curve(one.sample_rate, one.noise_multiplier) for one in kinds)
        return float(_library().rdp.rdp_privacy_accountant.compute_epsilon(ORDERS, together, delta)[0])
    losses = _library().pld.PLDAccountant()
    for one in kinds:
        losses.compose(_mechanism(one.sample_rate, one.noise_multiplier), one.steps)
    return float(losses.get_epsilon(delta))


def merged(events: Iterable[Event]) -> list[Event]:
    """One event for each kind of step. Raises Refused(MALFORMED) for an event that is none."""
    kinds: Counter[tuple[float, float]] = Counter()
    for event in events:
        _check_event(event)
        kinds[event.sample_rate, event.noise_multiplier] += event.steps
    return [Event(rate, noise, steps) for (rate, noise), steps in kinds.items()]


def noise_for(
    epsilon: float, delta: float, sample_rate: float, steps: int, accountant: Accountant = "rdp"
) -> float:
    """The smallest noise multiplier, in steps of 1/GRID, with which so many steps spend at most `epsilon` at `delta`.

    Raises Refused(MALFORMED) for numbers that are no budget, and for one so small that no noise is enough.
    """
    if not epsilon > 0:
        raise Refused(Reason.MALFORMED, f"epsilon = {epsilon}: a budget is above 0")

    def fits(noise: int) -> bool:
        return spent([Event(sample_rate, noise / GRID, steps)], delta, accountant) <= epsilon

    low, high = 0, GRID
    while not fits(high):  # ε falls as the noise grows
        low, high = high, 4 * high
        if high > MOST_NOISE * GRID:
            raise Refused(
                Reason.MALFORMED,
                f"epsilon = {epsilon} at delta = {delta}: no noise is known to be enough for that; take a larger epsilon",
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high / GRID


def check_data(units: int, batch: int, delta: float) -> None:
    """Raises Refused(POLICY) for a data set that cannot be trained on privately with this batch size and δ."""
    if units < batch:
        raise Refused(
            Reason.POLICY,
            f"the data set has {units} units and batch_size is {batch}: take a smaller batch_size, or more data",
        )
    check_delta_for(units, delta)


def check_delta_for(units: int, delta: float) -> None:
    """Raises Refused(POLICY) where δ is so large that publishing somebody's record outright would count as private."""
    if delta * units >= 1:
        raise Refused(
            Reason.POLICY,
            f"delta = {delta} is too large for {units} units: it must be below 1/{units}, and is best far below",
        )


def check_delta(delta: float) -> None:
    """Raises Refused(MALFORMED)."""
    if not 0 < delta < 1:
        raise Refused(Reason.MALFORMED, f"delta = {delta}: it is a probability above 0 and below 1")


def _check_event(event: Event) -> None:
    if not 0 < event.sample_rate <= 1:
        raise Refused(Reason.MALFORMED, f"a sample rate of {event.sample_rate}: it is above 0 and at most 1")
    if not 0 < event.noise_multiplier < math.inf:
        raise Refused(Reason.MALFORMED, f"a noise multiplier of {event.noise_multiplier}: it is above 0")
    if event.steps < 1:
        raise Refused(Reason.MALFORMED, f"{event.steps} steps: there is at least one")


def require() -> None:
    """Raises Refused(NOT_FOUND) without the library."""
    _library()


@lru_cache(1024)
def _curve(sample_rate: float, noise_multiplier: float) -> Any:
    """Rényi divergence of one step at each of ORDERS."""
    divergence = _library().rdp.RdpAccountant(ORDERS)
    divergence.compose(_mechanism(sample_rate, noise_multiplier))
    return divergence.rdp


def _mechanism(sample_rate: float, noise_multiplier: float) -> Any:
    library = _library()
    return library.PoissonSampledDpEvent(sample_rate, library.GaussianDpEvent(noise_multiplier))


@lru_cache(1)
def _library() -> Any:
    """A second of CPU to import: only jobs with [privacy] pay it."""
    try:
        import dp_accounting
    except ImportError as error:
        raise Refused(
            Reason.NOT_FOUND,
            "the job has [privacy] and the accountant is not installed here: pip install 'anabranch[privacy]' beside "
            "the agent",
        ) from error
    # It says of each Rényi order that a series did not converge for; leaving the order out is sound.
    logging.getLogger("absl").setLevel(logging.ERROR)
    return dp_accounting
