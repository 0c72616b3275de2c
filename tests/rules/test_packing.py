"""The ranking is exact, a block has one encoding, and what is read is the source rounded under its mask."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.errors import Misuse, Reason, Refused
from anabranch.rules import packing
from anabranch.rules.packing import BLOCK, Selection, Threshold, decode, encode, threshold

VALUES = ("fp32", "bf16", "fp16", "int8")
TINY, LEAST, TOP = np.float32(2.0**-126), np.float32(2.0**-149), np.finfo(np.float32).max
quick = settings(deadline=None)


def rounded(kept, values):
    """What the kept values of one block become, said in another way than the code's."""
    wide = kept.astype(np.float64)
    if values == "fp32":
        return kept
    if values == "fp16":
        return np.clip(kept, -65504, 65504).astype(np.float16).astype(np.float32)
    if values == "bf16":
        return np.array([_bf16(float(x)) for x in wide], np.float32)
    scale = np.float32(np.abs(kept).max()) / np.float32(127)
    scale = min(max(scale, TINY), np.float32(float.fromhex("0x1.020406p+121")))
    return np.clip(np.rint(kept / scale), -127, 127).astype(np.int8) * scale  # int8 has one zero


def _bf16(x):
    exponent = max(np.frexp(abs(x))[1] - 8, -133) if x else 0
    step = 2.0**exponent
    nearest = round(x / step) * step  # Python rounds halves to even
    return float(np.copysign(min(abs(nearest), float.fromhex("0x1.fep127")), x))


def ranked(flat, k):
    """The mask of the k largest, by a stable sort."""
    order = np.argsort(-np.abs(flat).astype(np.float64), kind="stable")[:k]
    keep = np.zeros(flat.size, bool)
    keep[order] = True
    return keep & (flat != 0)


def select(flat, k, cuts=()):
    pieces = np.split(flat, cuts)
    chosen = Selection(threshold(lambda: iter(pieces), k))
    return np.concatenate([chosen.mask(piece) for piece in pieces])


def code(values, block):
    with pytest.raises(Refused) as caught:
        decode(block, values, np.empty(64, np.float32))
    return caught.value.code


@st.composite
def arrays(draw, most=3000):
    """Gaussian, of few different values, of any bits, or with runs of zeros."""
    size, seed = draw(st.integers(1, most)), draw(st.integers(0, 2**32 - 1))
    chance = np.random.default_rng(seed)
    match draw(st.sampled_from(["normal", "few", "bits", "tiny"])):
        case "normal":
            flat = chance.standard_normal(size).astype(np.float32)
        case "few":
            flat = chance.integers(-3, 4, size).astype(np.float32)
        case "tiny":
            flat = (chance.integers(-9, 10, size) * LEAST).astype(np.float32)
        case "bits":
            flat = chance.integers(0, 2**32, size, np.uint32).view(np.float32)
            flat[~np.isfinite(flat)] = 0
    if draw(st.booleans()):
        flat[chance.random(size) < draw(st.floats(0, 1))] = 0
    return flat


@quick
@given(arrays(), st.data())
def test_the_largest_are_kept_and_of_equal_ones_the_first(flat, data):
    k = data.draw(st.integers(0, flat.size + 1))
    cuts = sorted(data.draw(st.lists(st.integers(0, flat.size), max_size=4)))
    keep = select(flat, k, cuts)
    assert np.array_equal(keep, ranked(flat, k))
    assert keep.sum() == min(k, np.count_nonzero(flat))


def test_ties_are_counted_across_pieces():
    flat = np.ones(3 * BLOCK + 7, np.float32)
    flat[BLOCK + 5] = -2
    k = 2 * BLOCK + 3
    keep = select(flat, k, (BLOCK, 2 * BLOCK, 3 * BLOCK))
    assert keep[: 2 * BLOCK + 2].all()
    assert keep.sum() == k


@quick
@given(arrays(), st.sampled_from(VALUES), st.data())
def test_what_is_read_is_the_source_rounded_under_the_mask(flat, values, data):
    keep = ranked(flat, data.draw(st.integers(0, flat.size)))
    block = encode(flat, keep, values)
    assert len(block) <= packing.most_block(flat.size, values)
    assert len(block) <= packing.most_blocks(flat.size, 1, int(keep.sum()), values)
    expected = np.zeros(flat.size, np.float32)
    if keep.any():
        expected[keep] = rounded(flat[keep], values)
    out = np.full(flat.size, np.nan, np.float32)
    decode(block, values, out)
    assert out.tobytes() == expected.tobytes()
    assert np.isfinite(out).all()


@quick
@given(st.integers(1, BLOCK), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_indices_of_any_density_come_back(size, seed, density):
    flat = np.ones(size, np.float32)
    keep = np.random.default_rng(seed).random(size) < density**4
    out = np.empty(size, np.float32)
    decode(encode(flat, keep, "int8"), "int8", out)
    assert np.array_equal(out != 0, keep)


@pytest.mark.parametrize(
    ("positions", "where"),
    [
        ((0,), "00"),
        ((127,), "7f"),
        ((128,), "8001"),
        ((16511,), "ff8001"),
        ((16383,), "ff7f"),
        ((16384,), "808001"),
        ((65535,), "ffff03"),
        ((5, 134, 20000, 20001), "05" "8001" "999b01" "00"),
    ],
)  # fmt: skip
def test_gaps_are_leb128(positions, where):
    keep = np.zeros(BLOCK, bool)
    keep[list(positions)] = True
    block = encode(np.ones(BLOCK, np.float32), keep, "fp16")
    count = len(positions)
    assert block.hex() == ("02" + struct.pack("<H", count - 1).hex() + where + "00" * count + "3c" * count)
    out = np.empty(BLOCK, np.float32)
    decode(block, "fp16", out)
    assert np.array_equal(np.flatnonzero(out), positions)


@pytest.mark.parametrize("k", [1, 1000, 20 * BLOCK // 16, 19 * BLOCK])
@pytest.mark.parametrize("kind", ["normal", "coarse", "striped", "ascending", "sparse"])
def test_the_threshold_of_many_blocks_is_that_of_a_sort(kind, k):
    """Whether the guess of a sample is right, too wide or wrong."""
    chance, size = np.random.default_rng(k), 20 * BLOCK + 777
    flat = chance.standard_normal(size).astype(np.float32)
    match kind:
        case "coarse":
            flat = np.round(flat, 1)
        case "striped":
            flat[:: packing._STRIDE] *= 1e6  # of a piece, as the sample takes them
        case "ascending":
            flat = np.sort(flat)
        case "sparse":
            flat[chance.random(size) < 0.97] = 0
    cuts = range(BLOCK, size, BLOCK)
    found = threshold(lambda: iter(np.split(flat, cuts)), k)
    keep = ranked(flat, k)
    assert np.array_equal(select(flat, k, cuts), keep)
    if keep.sum() == k:
        least = np.abs(flat[keep]).min()
        above = np.count_nonzero(np.abs(flat) > least)
        assert found == Threshold(int(least.view(np.uint32)), k - above)


def test_a_wrong_guess_is_found_out():
    """One element in 17 is large, in each piece just those the sample sees: by them alone the threshold were too high."""
    piece = np.ones(BLOCK, np.float32)
    piece[:: packing._STRIDE] = np.linspace(2, 3, -(-BLOCK // packing._STRIDE), dtype=np.float32)
    k = 4 * BLOCK // 2

    def pieces():
        return iter([piece] * 4)

    guess = packing._likely(pieces, k)
    assert np.float32(1).view(np.uint32) >> 16 not in guess
    large = 4 * np.count_nonzero(piece > 1)
    assert threshold(pieces, k) == Threshold(int(np.float32(1).view(np.uint32)), k - large)


def test_nothing_and_everything():
    flat = np.array([0, -0.0, LEAST, -TOP], np.float32)
    assert not select(flat, 0).any()
    assert select(flat, 4).tolist() == [False, False, True, True]
    assert threshold(lambda: iter([flat]), 2) == Threshold(1, 1)
    assert threshold(lambda: iter([]), 3) == Threshold(0, 0)


@pytest.mark.parametrize(
    ("value", "becomes"),
    [
        ("0x3f800000", "0x3f80"),
        ("0x3f808000", "0x3f80"),  # a tie, to even
        ("0x3f808001", "0x3f81"),
        ("0x3f818000", "0x3f82"),  # a tie, to even
        ("0xbf818000", "0xbf82"),
        ("0x3fffffff", "0x4000"),  # into the next exponent
        ("0x00000001", "0x0000"),
        ("0x80000001", "0x8000"),
        ("0x00008000", "0x0000"),
        ("0x00018000", "0x0002"),
        ("0x007fffff", "0x0080"),  # a subnormal becomes normal
        ("0x7f7f0000", "0x7f7f"),
        ("0x7f7f8000", "0x7f7f"),  # would round to infinity
        ("0xff7fffff", "0xff7f"),
    ],
)
def test_bf16_vectors(value, becomes):
    kept = np.array([int(value, 16)], np.uint32).view(np.float32)
    block = encode(kept, np.ones(1, bool), "bf16")
    assert block == bytes([0, 0, 0]) + int(becomes, 16).to_bytes(2, "little")
    out = np.empty(1, np.float32)
    decode(block, "bf16", out)
    assert out.view(np.uint32)[0] == int(becomes, 16) << 16


@pytest.mark.parametrize(
    ("value", "becomes"),
    [
        (1.0, 0x3C00),
        (1 + 2**-11, 0x3C00),  # a tie, to even
        (1 + 3 * 2**-11, 0x3C02),
        (65504.0, 0x7BFF),
        (65519.996, 0x7BFF),
        (65520.0, 0x7BFF),  # would round to infinity
        (-1e30, 0xFBFF),
        (2.0**-24, 0x0001),
        (2.0**-25, 0x0000),
        (-(2.0**-26), 0x8000),
    ],
)
def test_fp16_vectors(value, becomes):
    block = encode(np.array([value], np.float32), np.ones(1, bool), "fp16")
    assert block == bytes([0, 0, 0]) + becomes.to_bytes(2, "little")


@pytest.mark.parametrize(
    ("kept", "scale", "levels"),
    [
        ([127, -127, 1, 0.5, 1.5], 1.0, [127, -127, 1, 0, 2]),  # ties to even
        ([254, -3], 2.0, [127, -2]),
        ([-1e-3], np.float32(1e-3) / np.float32(127), [-127]),
        ([127 * TINY, TINY, TINY / 4], TINY, [127, 1, 0]),
        ([LEAST, -TINY], TINY, [0, -1]),  # the quotient were subnormal
        ([TOP, -TOP], float.fromhex("0x1.020406p+121"), [127, -127]),  # 127 * TOP/127 overflows
    ],
)
def test_int8_vectors(kept, scale, levels):
    flat = np.array(kept, np.float32)
    block = encode(flat, np.ones(flat.size, bool), "int8")
    assert block == (struct.pack("<BHf", 0, flat.size - 1, scale) + np.array(levels, np.int8).tobytes())
    out = np.empty(flat.size, np.float32)
    decode(block, "int8", out)
    assert np.array_equal(out, np.array(levels, np.float32) * np.float32(scale))


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_encoded(values, bad):
    flat = np.array([1, bad, 2], np.float32)
    with pytest.raises(Refused) as caught:
        encode(flat, np.ones(3, bool), values)
    assert caught.value.code is Reason.NONFINITE


@pytest.mark.parametrize(
    ("values", "block"),
    [
        ("fp32", "02 0000 05 0000807f"),
        ("fp32", "02 0000 05 010080ff"),
        ("bf16", "02 0000 05 807f"),
        ("bf16", "02 0000 05 c1ff"),
        ("fp16", "02 0000 05 007c"),
        ("fp16", "02 0000 05 01fe"),
        ("int8", "02 0000 0000807f 05 7f"),
        ("int8", "02 0000 0000c07f 05 7f"),
    ],
)
def test_what_is_not_finite_is_refused(values, block):
    assert code(values, bytes.fromhex(block)) is Reason.NONFINITE


ONE = "000000803f"  # 1.0 of fp32, in planes, behind an index byte of zero
WRONG = {
    "nothing": ("fp32", "00"),
    "a head alone": ("fp32", "020000"),
    "a count above the elements": ("int8", "00" "4000" "0000803f" + "7f" * 65),
    "all, with an index": ("int8", "00" "3f00" "0000803f" "00" + "7f" * 64),
    "all, of some": ("int8", "00" "3e00" "0000803f" + "7f" * 63),
    "a bitmap of all": ("int8", "01" "3f00" "0000803f" + "ff" * 8 + "7f" * 64),
    "gaps of all": ("int8", "02" "3f00" "0000803f" + "00" * 64 + "7f" * 64),
    "a bitmap where gaps are shorter": ("int8", "01" "0000" "0000803f" "0100000000000000" "7f"),
    "gaps where a bitmap is as short": ("int8", "02" "0700" "0000803f" + "00" * 8 + "7f" * 8),
    "a bitmap of fewer": ("int8", "01" "0900" "0000803f" "ff01000000000000" + "7f" * 10),
    "a bitmap of more": ("int8", "01" "0700" "0000803f" "ff01000000000000" + "7f" * 8),
    "a bitmap too short": ("int8", "01" "0800" "0000803f" "ff010000000000" + "7f" * 9),
    "an unknown coding": ("int8", "03" "0000" "0000803f" "00" "7f"),
    "a gap in two bytes that needs one": ("fp32", "020000" "8500" "0000803f"),
    "a gap in three bytes that needs one": ("fp32", "020000" "858000" "0000803f"),
    "a gap in four bytes": ("fp32", "020000" "85808001" "0000803f"),
    "a gap without an end": ("fp32", "020000" "85" "0000803f"),
    "a gap beyond the piece": ("fp32", "020000" "40" "0000803f"),
    "gaps beyond the piece": ("fp32", "020100" "2020" "0000" "0000" "8080" "3f3f"),
    "a second gap without a value": ("fp32", "020000" "0505" "0000803f"),
    "a value without a gap": ("fp32", "020100" "05" "0000" "0000" "8080" "3f3f"),
    "a byte too many": ("fp32", "020000" "05" "0000803f" "00"),
    "an exact zero": ("fp32", "020000" "05" "00000000"),
    "an exact minus zero": ("fp32", "020000" "05" "00000080"),
    "level -128": ("int8", "02" "0000" "0000803f" "05" "80"),
    "a scale too large": ("int8", "02" "0000" "0000803f" "05" "7e"),
    "levels of nothing": ("int8", "02" "0000" "0000803f" "05" "00"),
    "a scale of zero": ("int8", "02" "0000" "00000000" "05" "7f"),
    "a subnormal scale": ("int8", "02" "0000" "ffff7f00" "05" "7f"),
    "a negative scale": ("int8", "02" "0000" "000080bf" "05" "7f"),
    "a scale that overflows": ("int8", "02" "0000" "0402017c" "05" "7f"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_no_other_spelling_is_taken(name):
    values, block = WRONG[name]
    assert code(values, bytes.fromhex(block)) is Reason.MALFORMED


def test_padding_bits_of_a_bitmap_are_zero():
    keep = np.arange(12) % 2 == 0
    block = bytearray(encode(np.ones(12, np.float32), keep, "int8"))
    assert block[0] == 1
    out = np.empty(12, np.float32)
    decode(block, "int8", out)
    more = bytes([1, 6, 0]) + bytes(block[3:8]) + bytes([block[8] | 0x20]) + b"\x7f" * 7
    for wrong in (bytes(block[:8]) + bytes([block[8] | 0x80]) + bytes(block[9:]), more):
        with pytest.raises(Refused) as caught:
            decode(wrong, "int8", out)
        assert caught.value.code is Reason.MALFORMED


@quick
@given(st.sampled_from(VALUES), st.integers(1, 40), st.binary(max_size=60))
def test_any_bytes_are_a_block_of_one_spelling_or_refused(values, size, block):
    out = np.empty(size, np.float32)
    try:
        decode(block, values, out)
    except Refused:
        return
    if values == "fp32":  # its values are exact: what was decoded encodes to the same bytes
        assert encode(out, out != 0, values) == block


def test_a_piece_is_at_most_a_block():
    for size in (0, BLOCK + 1):
        with pytest.raises(Misuse):
            encode(np.ones(size, np.float32), np.ones(size, bool), "fp32")
