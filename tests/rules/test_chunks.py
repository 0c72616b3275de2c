"""Ranking within chunks: as a sort of each chunk has it, whatever the sizes, and what keeps more is found."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.link import LARGEST_CHUNK, Packing
from anabranch.rules.packing import BLOCK, InChunks, encode, parse
from tests.rules.test_packing import arrays, ranked

quick = settings(deadline=None)


def in_chunks(flat, chunk, density):
    """The mask, by a stable sort of each chunk."""
    keep = np.zeros(flat.size, bool)
    for start in range(0, flat.size, chunk):
        part = flat[start : start + chunk]
        keep[start : start + chunk] = ranked(part, max(1, math.floor(density * part.size)))
    return keep


chunks = st.integers(0, 12).map(lambda n: 1 << n)
densities = st.sampled_from((1e-9, 1 / 64, 0.1, 1 / 3, 0.5, 0.999))


@quick
@given(arrays(), chunks, densities)
def test_of_each_chunk_the_largest_are_kept_and_of_equal_ones_the_first(flat, chunk, density):
    packing = Packing(density, "fp32", chunk)
    keep = InChunks(packing).mask(flat)
    assert np.array_equal(keep, in_chunks(flat, chunk, density))
    assert keep.sum() <= packing.most([flat.size])
    if flat.all():
        assert keep.sum() == packing.most([flat.size])


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, BLOCK - 1, BLOCK])
def test_blocks_of_many_chunks(size):
    flat = np.round(np.random.default_rng(size).standard_normal(size), 1).astype(np.float32)
    keep = InChunks(Packing(1 / 64, "fp32", 4096)).mask(flat)
    assert np.array_equal(keep, in_chunks(flat, 4096, 1 / 64))


@quick
@given(arrays(), chunks, densities, st.data())
def test_a_chunk_that_keeps_one_more_is_crowded(flat, chunk, density, data):
    flat[flat == 0] = 1
    ranks = InChunks(Packing(density, "fp32", chunk))
    keep = ranks.mask(flat)

    def crowded(mask):
        return ranks.crowded(parse(encode(flat, mask, "fp32"), "fp32", flat.size), flat.size)

    assert not crowded(keep)
    left = np.flatnonzero(~keep)
    if left.size:
        keep[data.draw(st.sampled_from(left.tolist()))] = True
        assert crowded(keep)


def test_a_crowded_chunk_is_found_though_others_keep_less():
    ranks, keep = InChunks(Packing(1 / 4, "fp32", 8)), np.zeros(19, bool)
    keep[[0, 1, 2]] = True  # three of the first eight, none of the rest
    flat = np.ones(19, np.float32)
    assert ranks.crowded(parse(encode(flat, keep, "fp32"), "fp32", 19), 19)
    keep[:] = False
    keep[[0, 1, 8, 9, 16]] = True  # of the last three at least one is kept
    assert not ranks.crowded(parse(encode(flat, keep, "fp32"), "fp32", 19), 19)


def test_chunks_do_not_cross_blocks():
    assert LARGEST_CHUNK == BLOCK
