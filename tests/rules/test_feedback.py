"""What is left out is not lost: with nothing forgotten, all that was sent and what is left is all there was."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anabranch.errors import Reason, Refused
from anabranch.link import Packing
from anabranch.rules.feedback import Candidate, layout, leave_out
from anabranch.rules.packing import BLOCK
from anabranch.wire.manifest import Manifest, TensorSpec
from anabranch.wire.packed import PackedFile, pack
from tests.rules.conftest import Collected, Held

quick = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
MANIFEST = Manifest(
    (
        TensorSpec("a", (3,), "trainable"),
        TensorSpec("running", (4,), "buffer"),
        TensorSpec("w", (BLOCK + 100,), "trainable"),
    )
)
PACKINGS = (
    Packing(1 / 64, "int2", 4096),
    Packing(1 / 16, "bf16"),
    Packing(0.5, "int8", 64),
    Packing(1.0, "fp16"),
)


def cycle(tmp_path, delta, remainder, decay, packing):
    """What the server reads of one update, and the next remainder."""
    candidate = Candidate(Held(delta), remainder and Held(remainder), decay, MANIFEST)
    pack(candidate, MANIFEST, packing, tmp_path / "packed")
    sent, left = {}, Collected()
    with PackedFile(tmp_path / "packed", MANIFEST, packing.values) as file:
        for spec in MANIFEST.specs:
            sent[spec.name] = np.empty(spec.elements, np.float32)
            file.read(spec.name, 0, spec.elements, sent[spec.name])
        leave_out(candidate, file, MANIFEST, left)
    return sent, left.arrays(layout(MANIFEST))


def drawn(chance):
    return {spec.name: chance.standard_normal(spec.elements, np.float32) for spec in MANIFEST.specs}


@quick
@given(st.sampled_from(PACKINGS), st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_nothing_is_lost(tmp_path, packing, seed, cycles):
    chance, remainder = np.random.default_rng(seed), None
    total = {spec.name: np.zeros(spec.elements) for spec in MANIFEST.trainable()}
    for _ in range(cycles):
        delta = drawn(chance)
        sent, remainder = cycle(tmp_path, delta, remainder, 1.0, packing)
        for name in total:
            total[name] += delta[name].astype(np.float64) - sent[name]
    assert remainder is not None
    for name in total:
        np.testing.assert_allclose(remainder[name], total[name], atol=1e-5 * cycles, rtol=0)


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_cycle_is_its_formula_bit_for_bit(tmp_path, packing):
    chance = np.random.default_rng(1)
    delta, before = drawn(chance), {n: v for n, v in drawn(chance).items() if n != "running"}
    sent, after = cycle(tmp_path, delta, before, 0.95, packing)
    for name in before:
        candidate = np.float32(0.95) * before[name] + delta[name]
        assert (candidate - sent[name]).tobytes() == after[name].tobytes()
    assert sent["running"].tobytes() == delta["running"].tobytes()
    assert "running" not in after


@pytest.mark.parametrize("kept", [True, False])
def test_what_is_left_out_again_and_again_travels_at_last(tmp_path, kept):
    delta = {spec.name: np.full(spec.elements, 0.1, np.float32) for spec in MANIFEST.specs}
    delta["w"][::8] = 1  # as many of a chunk as it may send
    remainder, seen = None, np.zeros(BLOCK, bool)
    for _ in range(40):
        sent, left = cycle(tmp_path, delta, remainder, 1.0, Packing(1 / 8, "fp32", 64))
        seen |= sent["w"][:BLOCK] != 0
        remainder = left if kept else None
    assert seen.sum() == (BLOCK if kept else BLOCK // 8)


def test_a_sum_that_leaves_float32_is_refused(tmp_path):
    huge = {spec.name: np.full(spec.elements, 3e38, np.float32) for spec in MANIFEST.specs}
    with pytest.raises(Refused) as caught:
        cycle(tmp_path, huge, huge, 1.0, PACKINGS[0])
    assert caught.value.code is Reason.NONFINITE
    assert not (tmp_path / "packed").exists()
