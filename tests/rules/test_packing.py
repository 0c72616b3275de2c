"""The ranking is exact, a block has one encoding, and what is read is the source rounded under its mask."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.errors import Refused
from anabranch.rules import packing
from anabranch.rules.packing import BLOCK, Selection, decode, encode, threshold

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
