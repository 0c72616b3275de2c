"""What docs/adapters.md says of averaging LoRA's two matrices: the server's own step over A and B of silos."""

import numpy as np
import pytest

from anabranch.terms import Aggregation

RANK, INS, OUTS, SILOS = 4, 12, 10, 3
ROLES = {}  # all of it trains


@pytest.fixture
def start():
    """Version 0: A as drawn, B zero."""
    rng = np.random.default_rng(0)
    return {"A": rng.standard_normal((RANK, INS)).astype(np.float32), "B": np.zeros((OUTS, RANK), np.float32)}


@pytest.fixture
def averaged(run, terms, inputs):
    """A and B of the next version, from what silos added to A and B."""

    def averaged(base, updates):
        job = terms(Aggregation(strategy="fedavg", ema=None))
        return run(job, base, list(zip(inputs([0] * SILOS), updates, strict=True)), roles=ROLES).parameters

    return averaged


def drawn(*, a=1.0):
    """What silos added, each on its own."""
    rng = np.random.default_rng(1)
    return [
        {
            "A": (a * rng.standard_normal((RANK, INS))).astype(np.float32),
            "B": rng.standard_normal((OUTS, RANK)).astype(np.float32),
        }
        for _ in range(SILOS)
    ]


def product(values):
    return values["B"].astype(np.float64) @ values["A"].astype(np.float64)


def mean_of_products(base, updates):
    models = [{name: base[name] + update[name] for name in base} for update in updates]
    return np.mean([product(one) for one in models], axis=0)


def distance(one, other):
    """Relative to `other`."""
    return np.linalg.norm(one - other) / np.linalg.norm(other)


def test_averaging_a_and_b_is_not_averaging_what_they_add(start, averaged):
    updates = drawn()
    assert distance(product(averaged(start, updates)), mean_of_products(start, updates)) > 0.3


def test_with_one_frozen_a_the_average_is_exact(start, averaged):
    updates = drawn(a=0.0)
    assert distance(product(averaged(start, updates)), mean_of_products(start, updates)) < 1e-6


def test_ranks_padded_with_zeros_add_what_they_added(start, averaged):
    """A silo of rank 2 among others of rank 4: its rows of A and columns of B beyond are zero, and add nothing."""
    low = {"A": drawn()[0]["A"][:2], "B": drawn()[0]["B"][:, :2]}
    padded = {"A": np.zeros((RANK, INS), np.float32), "B": np.zeros((OUTS, RANK), np.float32)}
    padded["A"][:2], padded["B"][:, :2] = low["A"], low["B"]
    assert np.array_equal(product(padded), product(low))
    zero = {"A": np.zeros((RANK, INS), np.float32), "B": np.zeros((OUTS, RANK), np.float32)}
    new = averaged(zero, [padded] * SILOS)
    assert distance(product(new), product(low)) < 1e-6
    assert not new["A"][2:].any()
    assert not new["B"][:, 2:].any()


RANKS = (1, 2, RANK)  # of the silos, in one job


def of_rank(update, rank):
    """What a silo of this rank hands in: nothing beyond its own components."""
    cut = {name: values.copy() for name, values in update.items()}
    cut["A"][rank:], cut["B"][:, rank:] = 0, 0
    return cut


def mixed(*, a=1.0):
    return [of_rank(update, rank) for update, rank in zip(drawn(a=a), RANKS, strict=True)]


@pytest.fixture
def later():
    """A version in the middle of a job: no component is zero."""
    rng = np.random.default_rng(2)
    shapes = {"A": (RANK, INS), "B": (OUTS, RANK)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("updates", [drawn(), mixed(), mixed(a=0.0)], ids=["plain", "mixed ranks", "both"])
def test_the_error_is_the_covariance_of_what_silos_hold(later, averaged, updates):
    """mean(BA) - mean(B) mean(A) = mean((B - mean B)(A - mean A)), and so at most the product of their spreads."""
    new = averaged(later, updates)
    spread = {
        name: [(later[name] + one[name]).astype(np.float64) - new[name] for one in updates] for name in later
    }
    covariance = np.mean([b @ a for b, a in zip(spread["B"], spread["A"], strict=True)], axis=0)
    error = mean_of_products(later, updates) - product(new)
    assert np.allclose(error, covariance, atol=1e-5)
    bound = np.prod([np.sqrt(np.mean([np.linalg.norm(one) ** 2 for one in spread[name]])) for name in "AB"])
    assert np.linalg.norm(error) <= bound + 1e-5


def test_with_one_frozen_a_mixed_ranks_are_averaged_exactly(later, averaged):
    updates = mixed(a=0.0)
    assert distance(product(averaged(later, updates)), mean_of_products(later, updates)) < 1e-6


def test_who_does_not_train_a_component_slows_it_and_does_not_shrink_it(later, averaged):
    """Updates are added: where one of three silos trains, its change counts a third, and what was there stays."""
    updates = mixed()
    new = averaged(later, updates)
    last = RANKS[1]  # from here on only the third silo trains
    assert np.allclose(new["A"][last:], later["A"][last:] + updates[2]["A"][last:] / SILOS, atol=1e-6)
    assert np.allclose(
        new["B"][:, last:], later["B"][:, last:] + updates[2]["B"][:, last:] / SILOS, atol=1e-6
    )
    untouched = averaged(later, [of_rank(one, 2) for one in drawn()])
    assert np.array_equal(untouched["A"][2:], later["A"][2:])
    assert np.array_equal(untouched["B"][:, 2:], later["B"][:, 2:])
