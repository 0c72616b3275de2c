"""Weights and coefficients against the formulas."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.errors import Misuse
from anabranch.rules.buffer import Buffer, Input
from anabranch.rules.strategies import measure, plan
from anabranch.terms import Aggregation

STALENESS = [0, 3, 0, 17]
EXAMPLES = [10, 200, 1, 64]


def planned(aggregation, inputs, weighting="equal"):
    buffer = Buffer(100, inputs)
    return plan(aggregation, weighting, buffer, measure(aggregation, buffer))


def shares(found):
    return tuple(term.coefficient for term in found.buffers)


@pytest.mark.parametrize("weighting", ["equal", "examples"])
def test_fedavg_ignores_staleness_and_normalises_by_the_sum_of_weights(inputs, weighting):
    found = planned(Aggregation(strategy="fedavg"), inputs(STALENESS, EXAMPLES), weighting)
    sizes = np.ones(4) if weighting == "equal" else np.array(EXAMPLES, float)
    assert found.weights == tuple(sizes)
    np.testing.assert_allclose(found.coefficients, sizes / sizes.sum(), rtol=1e-15)
    assert shares(found) == found.coefficients


@pytest.mark.parametrize("exponent", [0.0, 0.25, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("normalise", ["count", "weights"])
@pytest.mark.parametrize("weighting", ["equal", "examples"])
def test_fedbuff_formulas(inputs, exponent, normalise, weighting):
    aggregation = Aggregation(staleness_exponent=exponent, normalise=normalise)
    found = planned(aggregation, inputs(STALENESS, EXAMPLES), weighting)

    sizes = np.ones(4) if weighting == "equal" else np.array(EXAMPLES, float)
    weights = sizes * (1.0 + np.array(STALENESS)) ** -exponent
    np.testing.assert_allclose(found.weights, weights, rtol=1e-15)
    divisor = sizes.sum() if normalise == "count" else weights.sum()
    np.testing.assert_allclose(found.coefficients, weights / divisor, rtol=1e-14)
    np.testing.assert_allclose(shares(found), weights / weights.sum(), rtol=1e-14)


def test_staleness_is_off_by_default_and_two_updates_then_count_half_each(inputs):
    assert planned(Aggregation(), inputs([0, 40])).coefficients == (0.5, 0.5)


def test_count_shrinks_a_stale_buffer_and_weights_does_not(inputs):
    late = inputs([8, 8])
    by_count = planned(Aggregation(staleness_exponent=0.5, normalise="count"), late)
    by_weight = planned(Aggregation(staleness_exponent=0.5, normalise="weights"), late)
    assert math.fsum(by_count.coefficients) == pytest.approx(1 / 3)
    assert math.fsum(by_weight.coefficients) == pytest.approx(1.0)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_exponents_of_square_root_and_division_need_no_logged_scalar(inputs, exponent):
    assert measure(Aggregation(staleness_exponent=exponent), Buffer(100, inputs(STALENESS))) == {}
    assert measure(Aggregation(strategy="fedavg"), Buffer(100, inputs(STALENESS))) == {}


def test_other_exponents_use_the_logged_scalar_and_nothing_else(inputs):
    aggregation = Aggregation(staleness_exponent=0.3)
    some = Buffer(100, inputs(STALENESS))
    measured = measure(aggregation, some)
    assert sorted(measured) == ["staleness_weight_0", "staleness_weight_17", "staleness_weight_3"]

    nudged = {**measured, "staleness_weight_17": math.nextafter(measured["staleness_weight_17"], 1.0)}
    assert plan(aggregation, "equal", some, nudged).weights[3] == nudged["staleness_weight_17"]
    with pytest.raises(Misuse, match="staleness_weight_3"):
        plan(aggregation, "equal", some, {"staleness_weight_0": 1.0})


@given(
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 10**9)), min_size=1, max_size=20),
    st.sampled_from([None, 0.0, 0.5, 1.0, 0.123]),
)
def test_shares_are_a_partition_of_one_and_every_update_counts(inputs, drawn, exponent):
    some = inputs([late for late, _ in drawn], [count for _, count in drawn])
    fedavg = Aggregation(strategy="fedavg")
    found = planned(
        fedavg if exponent is None else Aggregation(staleness_exponent=exponent), some, "examples"
    )
    assert math.fsum(shares(found)) == pytest.approx(1.0, rel=1e-12)
    assert min(found.coefficients) > 0


def test_the_sum_of_weights_is_taken_left_to_right(inputs):
    sizes = [2**53, 1, 1]  # a compensated sum would not lose the ones
    found = planned(Aggregation(strategy="fedavg"), inputs([0, 0, 0], sizes), "examples")
    assert found.coefficients[0] == 1.0


@pytest.mark.parametrize(
    ("some", "weighting"),
    [
        ([], "equal"),
        ([Input("u", "s", 1, -1, None, 0)], "equal"),
        ([Input("u", "s", 1, 0, None, 0)], "examples"),
        ([Input("u", "s", 1, 0, 0, 0)], "examples"),
        ([Input("u", "s", 1, 0, None, 1), Input("v", "s", 1, 0, None, 1)], "equal"),
        ([Input("u", "s", 1, 0, None, 1), Input("v", "s", 1, 0, None, 0)], "equal"),
    ],
    ids=["none", "from the future", "no count", "zero count", "equal order", "wrong order"],
)
def test_inputs_that_admission_never_lets_through_are_our_bug(some, weighting):
    with pytest.raises(Misuse):
        plan(Aggregation(), weighting, Buffer(1, some), {})
