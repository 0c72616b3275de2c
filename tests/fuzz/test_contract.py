"""Every parser of the table keeps its contract. A few examples of each; `make fuzz` looks for longer."""

import tracemalloc
from random import Random

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from anabranch.wire.limits import MIB
from tests.fuzz.table import TARGETS
from tests.fuzz.target import check

MEMORY = 64 * MIB  # that a hostile input may take
EXAMPLES = 20
SLOW = {"log of a lying server": 4, "export: keys/ca.pem": 4, "health port": 8}  # examples
# Well formed, and still refused for what the scene holds: the signed documents of the table get further.
REFUSED = {
    "Decide", "ReleaseLease", "Renew", "SubmitEvaluation", "ChangeJob", "Enrol", "Submit", "Skip", "error of a peer",
}  # fmt: skip


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_any_input_is_read_or_refused(name: str) -> None:
    target = TARGETS[name]
    seeds = target.seeds()
    accepted = [seed for seed in seeds if check(target, seed)]
    assert accepted or name in REFUSED

    @settings(
        max_examples=SLOW.get(name, EXAMPLES),
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(random=st.randoms(use_true_random=False), noise=st.none() | st.none() | st.binary(max_size=100))
    def holds(random: Random, noise: bytes | None) -> None:
        data = target.shape(random.choice(seeds), random) if noise is None else noise
        note(f"{name}: {data[:2000]!r}")
        tracemalloc.start()
        try:
            check(target, data)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < MEMORY

    holds()
