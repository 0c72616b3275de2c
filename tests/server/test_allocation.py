"""Shares of jobs, the score they follow from, and which job a free silo takes: numbers worked by hand, and properties."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.rules.buffer import Buffer, Delta, Input
from anabranch.rules.step import CHUNK
from anabranch.wire.manifest import Manifest, TensorSpec
from server.core.allocation import (
    NOISIEST,
    RECENT,
    WINDOW,
    Allocation,
    Standing,
    next_job,
    score,
    shares,
    smoothed,
)
from server.core.sketch import WIDTH, sketched
from simulator.flat import Flat

WEIGHTS = st.one_of(st.none(), st.floats(0, 1e6))
STANDINGS = st.lists(st.tuples(WEIGHTS, st.integers(0, 20), st.integers(1, 20)), min_size=1, max_size=6).map(
    lambda found: [Standing(f"job-{number}", *one) for number, one in enumerate(found)]
)


# --- scores ----------------------------------------------------------------------------------------------------------


def test_a_score_is_the_root_of_variance_over_squared_mean() -> None:
    """Eight updates, 3 ± 1 in one place: mean 3, each off by 1. Variance 1, squared mean 9; the root of a ninth."""
    updates = np.zeros((WINDOW, 4))
    updates[:, 2] = [2.0, 4.0] * (WINDOW // 2)
    assert score(updates) == pytest.approx(1 / 3, rel=1e-12)
    updates[:, 0] = [-2.0, 2.0] * (WINDOW // 2)  # variance 1 + 4
    assert score(updates) == pytest.approx(math.sqrt(5 / 9), rel=1e-12)
    assert score(1000 * updates) == pytest.approx(math.sqrt(5 / 9), rel=1e-12)  # of no scale


def test_no_score_of_few_updates_and_a_bounded_one_where_they_cancel() -> None:
    assert score(np.ones((WINDOW - 1, 4))) is None
    assert score(np.ones((WINDOW, 4))) == 0.0
    assert score(np.zeros((WINDOW, 4))) == 0.0
    assert score(np.array([[1.0], [-1.0]] * (WINDOW // 2))) == NOISIEST
    assert score(np.full((WINDOW, 4), 1e200)) is None  # not finite when squared


def test_a_score_remembers_versions_with_an_eighth_for_the_newest() -> None:
    assert smoothed(None, None) is None
    assert smoothed(None, 2.0) == 2.0
    assert smoothed(2.0, None) == 2.0
    assert smoothed(2.0, 10.0) == 3.0


# --- shares ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "leases", "expected"),
    [
        ([1.0, 1.0], 10, [5, 5]),
        ([3.0, 1.0], 8, [6, 2]),
        ([3.0, 1.0], 10, [8, 2]),  # 7.5 and 2.5: both are half a lease short, and the first comes first
        ([100.0, 1.0], 10, [9, 1]),
        ([1.0, 1.0, 1.0], 2, [1, 1, 1]),
        ([3.0, None, 1.0], 9, [5, 3, 1]),  # not known: 2, the mean; 4.5, 3 and 1.5, a tie
        ([None, None], 4, [2, 2]),
        ([0.0, 0.0], 4, [2, 2]),
    ],
)
def test_shares_by_hand(weights: list[float | None], leases: int, expected: list[int]) -> None:
    found = shares([Standing(str(n), weight, 0, 20) for n, weight in enumerate(weights)], leases)
    assert list(found.values()) == expected


def test_a_job_has_no_larger_share_than_it_has_silos() -> None:
    assert shares([Standing("a", 9.0, 0, 2), Standing("b", 1.0, 0, 10)], 10) == {"a": 2, "b": 8}


@given(standings=STANDINGS, leases=st.integers(0, 40))
def test_shares_sum_to_the_leases_and_nobody_goes_without(standings: list[Standing], leases: int) -> None:
    found = shares(standings, leases)
    assert sum(found.values()) == max(leases, len(standings))
    assert min(found.values()) >= 1
    assert found == shares(standings, leases)
    if leases <= sum(one.silos for one in standings):
        assert all(found[one.job] <= one.silos for one in standings)


@given(standings=STANDINGS, leases=st.integers(0, 40), more=st.floats(1.0, 100.0), data=st.data())
def test_a_higher_weight_never_means_a_smaller_share(
    standings: list[Standing], leases: int, more: float, data: st.DataObject
) -> None:
    known = [Standing(one.job, one.weight or 0.5, one.active, one.silos) for one in standings]
    raised = data.draw(st.integers(0, len(known) - 1))
    higher = list(known)
    one = known[raised]
    higher[raised] = Standing(one.job, (one.weight or 0.0) * more, one.active, one.silos)
    # Rounding of the quotients may turn a tie, by one lease.
    assert shares(higher, leases)[one.job] >= shares(known, leases)[one.job] - (more < 1 + 1e-9)


def test_weights_are_stated_or_scores() -> None:
    stated = Allocation("fedast-static", {"large": 3.0})
    assert [stated.weight(name, 0.7) for name in ("large", "small")] == [3.0, 1.0]
    assert Allocation("fedast").weight("large", 0.7) == 0.7
    assert Allocation("fedast").weight("large", None) is None


# --- the next job ----------------------------------------------------------------------------------------------------


def test_the_job_furthest_below_its_share_comes_next() -> None:
    assert next_job({"a": 6, "b": 4}, {"a": 6, "b": 2}, {"a": [], "b": [8, 9]}) == "b"
    assert next_job({"a": 6, "b": 4}, {"a": 3, "b": 4}, {"a": [8, 9], "b": []}) == "a"


def test_a_silo_that_may_train_for_one_job_takes_it() -> None:
    assert next_job({"a": 6, "b": 4}, {"a": 9}, {"a": [1, 2, 3]}) == "a"


def test_regression_a_silo_does_not_stay_with_the_job_it_comes_back_from() -> None:
    """Its own job is then always the one furthest below: each job would learn from silos of its own."""
    running, active = {n: "a" if n < 5 else "b" for n in range(10)}, Counter({"a": 5, "b": 5})
    taken: dict[int, dict[str, list[int]]] = {n: {"a": [], "b": []} for n in running}
    for entry in range(400):
        silo = entry % 10
        active[running[silo]] -= 1
        running[silo] = next_job({"a": 5, "b": 5}, active, taken[silo])
        active[running[silo]] += 1
        taken[silo][running[silo]].append(entry)
        assert abs(active["a"] - 5) <= 1
    assert all(10 <= len(mine["a"]) <= 30 for mine in taken.values())


def test_a_silo_gives_every_job_a_lease_now_and_then_however_far_behind_another_is() -> None:
    taken: dict[str, list[int]] = {"a": [], "b": []}
    given_to = []
    for entry in range(3 * RECENT):
        given_to.append(next_job({"a": 90, "b": 1}, {"a": 5, "b": 1}, taken))
        taken[given_to[-1]].append(entry)
    assert given_to.count("b") >= 2


@given(
    taken=st.dictionaries(
        st.sampled_from("abcd"), st.lists(st.integers(0, 99), unique=True, max_size=RECENT), min_size=1
    ),
    active=st.dictionaries(st.sampled_from("abcd"), st.integers(0, 9)),
)
def test_the_next_job_is_one_the_silo_may_train_for(
    taken: dict[str, list[int]], active: dict[str, int]
) -> None:
    share = dict.fromkeys("abcd", 3)
    assert next_job(share, active, taken) in taken
    assert next_job(share, active, taken) == next_job(share, dict(active), dict(taken))


# --- sketches --------------------------------------------------------------------------------------------------------

MANIFEST = Manifest(
    (
        TensorSpec("mean", (5000,), "buffer"),
        TensorSpec("small", (7,), "trainable"),
        TensorSpec("wide", (100, 1024), "trainable"),
    )
)


def sketches(updates: list[np.ndarray], passes: int = 1, chunk: int = CHUNK) -> np.ndarray:
    """As an aggregation that reads every file `passes` times."""
    inputs = tuple(Input(str(n), "silo", 0, 0, None, n) for n in range(len(updates)))
    sources = {Delta(str(n)): Flat(MANIFEST, values) for n, values in enumerate(updates)}
    found = sketched(MANIFEST, Buffer(0, inputs), sources)
    out = np.empty(chunk, np.float32)
    for _ in range(passes):
        for spec in MANIFEST.specs:
            for start in range(0, spec.elements, chunk):
                stop = min(start + chunk, spec.elements)
                for one in found.values():
                    one.read(spec.name, start, stop, out[: stop - start])
    return np.array([one.sums for one in found.values()])


def low_rank(seed: int) -> np.ndarray:
    """What a gradient looks like: rows that are multiples of each other."""
    chance = np.random.default_rng(seed)
    wide = np.outer(chance.standard_normal(100), chance.standard_normal(1024)).ravel()
    return np.concatenate([np.full(5000, 1e3), chance.standard_normal(7), wide]).astype(np.float32)


def test_a_sketch_keeps_lengths_and_distances_of_trainable_tensors() -> None:
    common = low_rank(99)
    updates = [common + 0.7 * low_rank(seed) for seed in range(WINDOW)]
    exact = np.array([update[5000:] for update in updates], np.float64)
    found = sketches(updates)
    assert found.shape == (WINDOW, WIDTH)
    for true, sketch in zip(exact, found, strict=True):
        assert np.square(sketch).sum() == pytest.approx(np.square(true).sum(), rel=0.2)
    assert score(found) == pytest.approx(score(exact), rel=0.2)


def test_a_sketch_counts_every_element_once_however_often_files_are_read() -> None:
    updates = [low_rank(seed) for seed in range(3)]
    assert np.array_equal(sketches(updates), sketches(updates, passes=3))


def test_only_the_newest_updates_of_a_version_are_sketched() -> None:
    updates = [low_rank(seed) for seed in range(WINDOW + 2)]
    assert np.array_equal(sketches(updates), sketches(updates)[-WINDOW:])
    assert len(sketches(updates)) == WINDOW
    assert np.array_equal(sketches(updates), sketches(updates[2:]))
