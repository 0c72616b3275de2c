"""Chunks of packed files on the wire, each a zstd frame of its own (RFC 8878).

Digests, offsets and signatures are of the bytes inside: no release of a compression library changes what anything is.
"""

import zstandard

from anabranch.errors import Reason, Refused
from anabranch.wire import limits
from anabranch.wire.values import Bytes

LEVEL = 3


def squeeze(chunk: Bytes) -> bytes:
    """At most limits.CHUNK bytes as one frame, which says how many there are."""
    return zstandard.ZstdCompressor(level=LEVEL, write_content_size=True).compress(chunk)


def unsqueeze(frame: Bytes) -> bytes:
    """What `squeeze` was given. Takes memory for limits.CHUNK bytes. Raises Refused(SIZE_LIMIT, MALFORMED)."""
    try:
        said = zstandard.get_frame_parameters(frame)
    except zstandard.ZstdError as error:
        raise Refused(Reason.MALFORMED, f"chunk: no zstd frame ({error})") from error
    if (
        said.content_size > limits.CHUNK
    ):  # also where the frame does not say: then it reads as the largest number
        raise Refused(
            Reason.SIZE_LIMIT, f"chunk of {said.content_size} bytes once unpacked; at most {limits.CHUNK}"
        )
    try:
        return zstandard.ZstdDecompressor().decompress(
            frame, max_output_size=limits.CHUNK, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise Refused(Reason.MALFORMED, f"chunk: a damaged zstd frame ({error})") from error
