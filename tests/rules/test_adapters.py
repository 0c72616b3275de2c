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
