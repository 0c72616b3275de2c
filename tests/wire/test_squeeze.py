"""Chunks as zstd frames: what comes out is what went in, and never more than a chunk."""

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from anabranch.errors import Reason, Refused
from anabranch.wire import limits
from anabranch.wire.squeeze import squeeze, unsqueeze


@given(st.binary(max_size=4096), st.integers(1, 64))
def test_a_chunk_comes_out_as_it_went_in(data: bytes, times: int) -> None:
    assert unsqueeze(squeeze(data * times)) == data * times


def test_the_largest_chunk_fits() -> None:
    assert unsqueeze(squeeze(bytes(limits.CHUNK))) == bytes(limits.CHUNK)


@pytest.mark.parametrize("size", [limits.CHUNK + 1, 64 * limits.MIB])
def test_more_than_a_chunk_is_refused_before_memory_is_taken(size: int) -> None:
    with pytest.raises(Refused) as refused:
        unsqueeze(zstandard.compress(bytes(size)))
    assert refused.value.code is Reason.SIZE_LIMIT


def test_a_frame_that_does_not_say_how_long_it_is_is_refused() -> None:
    compressor = zstandard.ZstdCompressor().compressobj()
    frame = compressor.compress(bytes(64 * limits.MIB)) + compressor.flush()
    with pytest.raises(Refused) as refused:
        unsqueeze(frame)
    assert refused.value.code is Reason.SIZE_LIMIT


@pytest.mark.parametrize(
    "frame",
    [b"", b"abc", squeeze(b"abc") + b"x", squeeze(b"a" * 1000)[:-3], squeeze(b"one") + squeeze(b"two")],
)
def test_what_is_not_one_whole_frame_is_refused(frame: bytes) -> None:
    with pytest.raises(Refused) as refused:
        unsqueeze(frame)
    assert refused.value.code is Reason.MALFORMED
