"""Figures over seeds against published values and a second implementation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from simulator.statistics import Points, band, interval, paired, reached, running_mean

VALUES = st.lists(st.floats(-100, 100), min_size=2, max_size=12)


def points(*values: float, every: float = 1.0) -> Points:
    return Points(np.arange(len(values)) * every, np.array(values))


def test_an_interval_is_as_wide_as_the_tables_say() -> None:
    # Student's t for 95 % and 4 degrees of freedom is 2.776; this sample's standard error is sqrt(2.5 / 5).
    found = interval([1, 2, 3, 4, 5])
    assert found.mean == 3
    assert found.low is not None
    assert 3 - found.low == pytest.approx(2.776 * np.sqrt(0.5), rel=1e-3)
    assert found.high == pytest.approx(6 - found.low)


def test_a_single_value_has_no_interval() -> None:
    assert (interval([2.0]).low, interval([2.0]).high) == (None, None)
    assert paired([2.0], [1.0]).p is None


@given(VALUES, st.data())
def test_pairs_are_judged_as_scipy_does(ones: list[float], data: st.DataObject) -> None:
    others = data.draw(st.lists(st.floats(-100, 100), min_size=len(ones), max_size=len(ones)))
    found = paired(ones, others)
    if np.std(np.subtract(ones, others)) < 1e-6:
        return
    theirs = stats.ttest_rel(ones, others)
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-6, abs=1e-12)
    bounds = theirs.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((bounds.low, bounds.high), rel=1e-6, abs=1e-9)


def test_pairs_that_differ_by_the_same_are_certain() -> None:
    assert paired([2, 3, 4], [1, 2, 3]).p == 0.0
    assert paired([1, 2, 3], [1, 2, 3]).p == 1.0


def test_a_curve_that_has_ended_stays_where_it_was() -> None:
    found = band([points(0, 1, 2, 3), points(2, 3)])
    assert found.times.tolist() == [0, 1, 2, 3]
    assert found.mean.tolist() == [1, 2, 2.5, 3]
    assert found.low[3] == found.high[3] == 3
    assert found.high[0] - found.mean[0] == pytest.approx(12.706, rel=1e-3)  # t for one degree of freedom


def test_a_band_begins_when_all_curves_have() -> None:
    late = Points(np.array([2.0, 4.0]), np.array([5.0, 6.0]))
    assert band([points(0, 1, 2, 3), late]).times.tolist() == [2, 3, 4]


def test_a_target_is_reached_by_the_mean_of_several_looks() -> None:
    curve = points(0, 9, 0, 9, 9, 9, every=10.0)
    assert running_mean(curve, 3).values.tolist() == [3, 6, 6, 9]
    assert reached(curve, 9, 1, "max") == 10.0
    assert reached(curve, 9, 3, "max") == 50.0
    assert reached(curve, 9.5, 3, "max") is None
    assert reached(curve, 3, 3, "min") == 20.0
    assert reached(points(9), 9, 3, "max") is None
