"""Held against accountants of another library. Opacus' Rényi accountant sums the same series with the signs of its terms,
dp_accounting without: at the same orders ours is the same or a little above, never below.
"""

import math
import random
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.errors import Reason, Refused
from silo_agent.budget import accounting
from silo_agent.budget.accounting import GRID, ORDERS, Event, check_data, noise_for, spent

opacus = pytest.importorskip("opacus.accountants")
analysis = pytest.importorskip("opacus.accountants.analysis.rdp")


def drawn(mechanisms: int, uses: int, seed: int) -> Iterator[tuple[Event, float]]:
    """Settings in which somebody might train: ε between 0.3 and 5, of so many mechanisms, each used so many times.

    Above that ε follows from small orders between two integers, where the two libraries' series part.
    """
    chance = random.Random(seed)
    for number in range(mechanisms):
        rate = 10 ** chance.uniform(-3, -0.2) if number % 10 else 1.0
        found, noise = 0, 10 ** chance.uniform(-0.2, 1.0)
        for _ in range(1000):
            event, delta = Event(rate, noise, int(10 ** chance.uniform(0, 5))), 10 ** chance.uniform(-9, -3)
            if found < uses and 0.3 <= spent([event], delta) <= 5:
                found += 1
                yield event, delta


def theirs(event: Event, delta: float) -> float:
    rdp = event.steps * one_step(event.sample_rate, event.noise_multiplier)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the best order is the largest
        return float(analysis.get_privacy_spent(orders=ORDERS, rdp=rdp, delta=delta)[0])


@cache
def one_step(rate: float, noise: float) -> Any:
    return analysis.compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=ORDERS)


def test_within_a_percent_of_opacus_and_never_below_it() -> None:
    ratios = [spent([event], delta) / theirs(event, delta) for event, delta in drawn(24, 12, 1)]
    assert len(ratios) >= 200
    assert min(ratios) >= 1 - 1e-9, min(ratios)  # what is left of 16 digits after two sums of a series
    assert max(ratios) <= 1.01, max(ratios)


@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:Optimal order")
@pytest.mark.parametrize(
    ("event", "delta"),
    [(Event(0.01, 1.0, 1000), 1e-5), (Event(0.2, 1.5, 50), 1e-6), (Event(0.002, 0.6, 3000), 1e-5)],
)
def test_the_distribution_is_within_a_percent_of_opacus_prv_and_not_above_renyi(
    event: Event, delta: float
) -> None:
    """Another method of another library: numerical composition (arXiv 2106.02848), an upper bound as well."""
    accountant = opacus.PRVAccountant()
    accountant.history = [(event.noise_multiplier, event.sample_rate, event.steps)]
    ours = spent([event], delta, "pld")
    assert ours == pytest.approx(accountant.get_epsilon(delta, eps_error=0.005 * ours), rel=0.01)
    assert ours <= spent([event], delta)


def test_known_answers() -> None:
    """Computed by both libraries. Of full batches there is a closed form as well: the Gaussian mechanism's."""
    assert spent([Event(0.01, 1.0, 1000)], 1e-5) == pytest.approx(2.101, abs=0.001)
    whole = min(10 * a / 8 + math.log1p(-1 / a) - (math.log(1e-5) + math.log(a)) / (a - 1) for a in ORDERS)
    assert spent([Event(1.0, 2.0, 10)], 1e-5) == pytest.approx(whole, rel=1e-12)
    assert spent([], 1e-5) == 0.0


def test_equal_events_are_one_and_thousands_of_cycles_are_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    curve = accounting._curve
    monkeypatch.setattr(accounting, "_curve", lambda *which: asked.append(which) or curve(*which))
    one = Event(0.02, 1.1, 20)
    assert spent([one] * 5000, 1e-5) == spent([Event(0.02, 1.1, 100_000)], 1e-5)
    assert len(asked) == 2


@given(
    rate=st.floats(1e-3, 1.0),
    steps=st.integers(10, 2000),
    epsilon=st.floats(0.3, 8.0),
    exponent=st.floats(-8, -3),
)
@settings(max_examples=3, deadline=None)
def test_the_noise_is_enough_and_less_is_not(
    rate: float, steps: int, epsilon: float, exponent: float
) -> None:
    delta = 10**exponent
    noise = noise_for(epsilon, delta, rate, steps)
    assert spent([Event(rate, noise, steps)], delta) <= epsilon
    assert noise * GRID == int(noise * GRID)
    less = noise - 1 / GRID
    assert less == 0 or spent([Event(rate, less, steps)], delta) > epsilon


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: noise_for(0.0, 1e-5, 0.1, 10), "epsilon"),
        (lambda: noise_for(-1.0, 1e-5, 0.1, 10), "epsilon"),
        (lambda: noise_for(math.nan, 1e-5, 0.1, 10), "epsilon"),
        (lambda: noise_for(1e-3, 1e-12, 1.0, 1000), "no noise is known to be enough"),
        (lambda: noise_for(1.0, 1e-5, 1.01, 10), "sample rate of 1.01"),
        (lambda: noise_for(1.0, 1e-5, 0.0, 10), "sample rate of 0.0"),
        (lambda: noise_for(1.0, 1e-5, 0.1, 0), "0 steps"),
        (lambda: noise_for(1.0, 1.0, 0.1, 10), "delta = 1.0"),
        (lambda: spent([Event(0.1, 0.0, 10)], 1e-5), "noise multiplier of 0.0"),
        (lambda: spent([Event(0.1, math.inf, 10)], 1e-5), "noise multiplier of inf"),
        (lambda: spent([], 0.0), "delta = 0.0"),
    ],
)
def test_what_is_no_budget_is_refused_by_name(call, says: str) -> None:
    with pytest.raises(Refused, match=says) as refusal:
        call()
    assert refusal.value.code is Reason.MALFORMED


def test_the_data_set_has_a_word() -> None:
    check_data(1000, 32, 1e-5)
    with pytest.raises(Refused, match="too large for 1000 units"):
        check_data(1000, 32, 1e-3)
    with pytest.raises(Refused, match="31 units and batch_size is 32"):
        check_data(31, 32, 1e-5)


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    accounting._library.cache_clear()
    accounting._curve.cache_clear()
    try:
        with pytest.raises(Refused, match=r"anabranch\[privacy\]") as refusal:
            spent([Event(0.1, 1.0, 1)], 1e-5)
    finally:
        accounting._library.cache_clear()
    assert refusal.value.code is Reason.NOT_FOUND
