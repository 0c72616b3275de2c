"""Two bits for a value: its sign and one of two magnitudes, the two of least squared error; a block has one spelling."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.errors import Reason, Refused
from anabranch.rules.packing import BLOCK, decode, encode, most_block, most_blocks
from tests.rules.test_packing import LEAST, TOP, arrays, code, ranked

quick = settings(deadline=None)


def sent(flat, keep):
    out = np.full(flat.size, np.nan, np.float32)
    decode(encode(flat, keep, "int2"), "int2", out)
    return out


def least_error(magnitudes):
    """Of all two values for these, by trying every split of their order."""
    ordered = np.sort(magnitudes.astype(np.float64))
    errors = [
        sum(np.square(part - part.mean()).sum() for part in (ordered[:at], ordered[at:]) if part.size)
        for at in range(ordered.size)
    ]
    return min(errors)


@quick
@given(arrays(most=400), st.data())
def test_signs_come_back_and_no_other_two_magnitudes_are_closer(flat, data):
    keep = ranked(flat, data.draw(st.integers(1, flat.size)))
    out = sent(flat, keep)
    assert np.array_equal(out != 0, keep)
    assert np.array_equal(np.signbit(out[keep]), np.signbit(flat[keep]))
    assert len(set(np.abs(out[keep]).tolist())) <= 2
    if keep.any():
        kept = np.abs(flat[keep]).astype(np.float64)
        error = np.square(kept - np.abs(out[keep])).sum()
        rounding = kept.size * (kept.max() * 2.0**-24) ** 2 + kept.size * float(LEAST) ** 2
        assert error <= least_error(kept) * (1 + 1e-6) + rounding


@quick
@given(arrays(), st.data())
def test_what_was_decoded_encodes_to_the_same_bytes(flat, data):
    keep = ranked(flat, data.draw(st.integers(0, flat.size)))
    block = encode(flat, keep, "int2")
    assert len(block) <= most_block(flat.size, "int2")
    assert len(block) <= most_blocks(flat.size, 1, int(keep.sum()), "int2")
    out = sent(flat, keep)
    assert encode(out, out != 0, "int2") == block
    assert np.array_equal(sent(out, out != 0), out)


@quick
@given(st.integers(1, 40), st.binary(max_size=60))
def test_any_bytes_are_the_one_spelling_of_what_they_say_or_refused(size, block):
    out = np.empty(size, np.float32)
    try:
        decode(block, "int2", out)
    except Refused:
        return
    assert np.isfinite(out).all()
    assert encode(out, out != 0, "int2") == block


positive = st.integers(1, int(TOP.view(np.uint32))).map(lambda bits: np.uint32(bits).view(np.float32))


@quick
@given(st.lists(positive, min_size=2, max_size=2, unique=True), st.integers(1, BLOCK - 1))
def test_any_two_magnitudes_stand_for_themselves(pair, many):
    """A block's worth of them: the means are exact although the sums need not be."""
    low, high = sorted(pair)
    flat = np.full(BLOCK, high, np.float32)
    flat[:many] = -low
    assert np.array_equal(sent(flat, np.ones(BLOCK, bool)), flat)


@pytest.mark.parametrize(
    ("kept", "magnitudes", "codes"),
    [
        ([1, -1, 1, -1], (1, 1), "88"),  # one magnitude: all take the low one
        ([1, -3, 1, 3], (1, 3), "4c"),
        ([1, 2, -9, 9, -1.5], (1.5, 9), "7002"),
        ([LEAST, -LEAST], (LEAST, LEAST), "08"),
        ([TOP, -TOP], (TOP, TOP), "08"),
        ([LEAST, TOP], (LEAST, TOP), "04"),
        ([1, 2, 3], (1, 2.5), "14"),  # two splits leave as much: the first
        ([-7], (7, 7), "02"),
    ],
)
def test_vectors(kept, magnitudes, codes):
    flat = np.array(kept, np.float32)
    block = encode(flat, np.ones(flat.size, bool), "int2")
    assert block == struct.pack("<BHff", 0, flat.size - 1, *magnitudes) + bytes.fromhex(codes)


def test_a_subnormal_scale_is_one_like_any_other():
    flat = np.array([3 * LEAST, -5 * LEAST], np.float32)
    assert np.array_equal(sent(flat, np.ones(2, bool)), flat)


ONE, TWO, NAN, INF = "0000803f", "00000040", "0000c07f", "0000807f"
WRONG = {
    "no magnitudes": "02" "0000",
    "one magnitude": "02" "0000" + ONE,
    "no codes": "02" "0000" + ONE + ONE + "05",
    "a byte of codes too many": "02" "0000" + ONE + ONE + "05" "00" "00",
    "the higher one first": "02" "0100" + TWO + ONE + "0505" "04",
    "a magnitude of zero": "02" "0100" + "00000000" + ONE + "0505" "04",
    "a magnitude of minus zero": "02" "0000" + "00000080" + "00000080" + "05" "00",
    "a negative magnitude": "02" "0100" + "000080bf" + ONE + "0505" "04",
    "one magnitude, called the high one": "02" "0000" + ONE + ONE + "05" "01",
    "a high one that nobody takes": "02" "0100" + ONE + TWO + "0505" "00",
    "a low one that nobody takes": "02" "0100" + ONE + TWO + "0505" "05",
    "padding": "02" "0000" + ONE + ONE + "05" "04",
    "padding in the highest bit": "02" "0000" + ONE + ONE + "05" "80",
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_no_other_spelling_is_taken(name):
    assert code("int2", bytes.fromhex(WRONG[name])) is Reason.MALFORMED


@pytest.mark.parametrize("magnitudes", [NAN + ONE, ONE + NAN, ONE + INF, INF + INF, "000080ff" + ONE])
def test_what_is_not_finite_is_refused(magnitudes):
    assert code("int2", bytes.fromhex("020100" + magnitudes + "050504")) is Reason.NONFINITE


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_encoded(bad):
    with pytest.raises(Refused) as caught:
        encode(np.array([1, bad, 2], np.float32), np.ones(3, bool), "int2")
    assert caught.value.code is Reason.NONFINITE
