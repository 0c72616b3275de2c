"""Values judged while the bytes go by, however they are cut."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.errors import Reason, Refused
from anabranch.wire import limits
from anabranch.wire.manifest import Manifest, TensorSpec
from anabranch.wire.values import Values

MANIFEST = Manifest(
    (
        TensorSpec("empty", (0,), "trainable"),
        TensorSpec("mean", (3,), "buffer"),
        TensorSpec("one", (), "trainable"),
        TensorSpec("weight", (4, 5), "trainable"),
    )
)
ELEMENTS = 24


def passed(data: bytes, cuts: list[int]) -> Values:
    values = Values(MANIFEST)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, stop in pairwise(edges):
        values.take(memoryview(data)[start:stop])
    return values


def file_of(numbers: np.ndarray) -> bytes:
    return MANIFEST.header() + numbers.astype("<f4").tobytes()


@given(
    st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=ELEMENTS, max_size=ELEMENTS),
    st.lists(st.integers(0, 600), max_size=12),
)
def test_the_norm_is_the_same_however_the_bytes_are_cut(numbers: list[float], cuts: list[int]) -> None:
    array = np.array(numbers, np.float32)
    expected = math.sqrt(float(np.sum(array[3:].astype(np.float64) ** 2)))  # the buffer's values do not count
    assert passed(file_of(array), cuts).norm == pytest.approx(expected, rel=1e-12, abs=0)


@given(
    st.integers(0, ELEMENTS - 1),
    st.sampled_from([math.nan, math.inf, -math.inf]),
    st.lists(st.integers(0, 600)),
)
def test_a_value_that_is_not_finite_is_named_however_the_bytes_are_cut(
    place: int, value: float, cuts: list[int]
) -> None:
    array = np.ones(ELEMENTS, np.float32)
    array[place] = value
    name, first = ("mean", 0) if place < 3 else ("one", 3) if place == 3 else ("weight", 4)
    with pytest.raises(Refused, match=f"'{name}': element {place - first} ") as caught:
        passed(file_of(array), cuts)
    assert caught.value.code is Reason.NONFINITE


def test_a_tensor_larger_than_a_piece_keeps_its_count() -> None:
    elements = limits.CHUNK // 4 * 2 + 7
    manifest = Manifest((TensorSpec("w", (elements,), "trainable"),))
    array = np.ones(elements, np.float32)
    array[-2] = np.nan
    with pytest.raises(Refused, match=f"element {elements - 2} "):
        Values(manifest).take(manifest.header() + array.tobytes())
