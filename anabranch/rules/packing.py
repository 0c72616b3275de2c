"""Which elements of the trainable tensors travel, and the one encoding of those that do.

`threshold` ranks all of them by magnitude, `Selection` says which of a piece are kept, `encode` writes the piece as one
block and `decode` reads it. Bytes: docs/packed-files.md. Equal inputs give equal bytes on every machine: float32
magnitudes are ranked by their bits, and rounding is bit arithmetic or one IEEE operation per element.
"""

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from anabranch.errors import Misuse, Reason, Refused

BLOCK: Final = 1 << 16  # elements
Values = Literal["fp32", "bf16", "fp16", "int8"]
WIDTH: Final[dict[Values, int]] = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}  # bytes of a value

Float32 = NDArray[np.float32]
Bits = NDArray[np.uint32]
Index = NDArray[np.int64]
Mask = NDArray[np.bool_]

_F32, _U32, _U16, _U8 = np.dtype("<f4"), np.dtype("<u4"), np.dtype("<u2"), np.dtype("u1")
_HEAD: Final = struct.Struct("<BH")  # coding, count - 1
_SCALE: Final = struct.Struct("<f")
_ALL, _BITMAP, _GAPS = range(3)
_SIGN: Final = np.uint32(0x8000_0000)
_NO_SIGN: Final = np.uint32(0x7FFF_FFFF)
_BF16_LARGEST: Final = np.uint32(0x7F7F)
_FP16_LARGEST: Final = np.float32(65504)
_LEVELS: Final = np.float32(127)
# A subnormal scale has too few bits to divide by, and this largest one is the last that decodes to a finite value.
_SCALE_SMALLEST: Final = np.float32(2.0**-126)
_SCALE_LARGEST: Final = np.float32(float.fromhex("0x1.020406p+121"))
_HIGH_BINS: Final = 1 << 15
_LOW_BINS: Final = 1 << 16


@dataclass(frozen=True)
class Packing:
    """How a file of tensors travels."""

    density: float  # of the trainable elements, at most this part; above 0, at most 1
    values: Values

    def kept(self, elements: int) -> int:
        """At most so many of `elements`."""
        return math.floor(self.density * elements)


@dataclass(frozen=True)
class Threshold:
    """Kept are the elements whose bits of |v| are above `bits`, and the first `ties` in order that equal it."""

    bits: int
    ties: int


@dataclass(frozen=True)
class Kept:
    """What one block holds: `values[i]` stands at `index[i]` of its piece; the rest of the piece is zero."""

    index: Index
    values: Float32


def threshold(pieces: Callable[[], Iterator[Float32]], k: int) -> Threshold:
    """The `k` elements of largest magnitude, of equal ones the earlier; exact zeros are never among them.

    `pieces` is called twice and must give the same elements each time; a piece may be reused after the next is asked for.
    """
    if k <= 0:
        return Threshold(int(_NO_SIGN), 0)
    high, left = _rank(_high_bins(pieces), k)
    low, left = _rank(_low_bins(pieces, high), left)
    bits = high << 16 | low
    return Threshold(bits, left if bits else 0)


class Selection:
    """The mask of each piece, which must come in the order that was ranked: ties are counted across them."""

    def __init__(self, threshold: Threshold) -> None:
        self._bits = np.uint32(threshold.bits)
        self._ties = threshold.ties

    def mask(self, piece: Float32) -> Mask:
        magnitude = _magnitude(piece)
        keep: Mask = magnitude > self._bits
        if self._ties:
            equal = np.flatnonzero(magnitude == self._bits)[: self._ties]
            keep[equal] = True
            self._ties -= equal.size
        return keep


def most_block(elements: int, values: Values) -> int:
    """Bytes that no block of so many elements exceeds."""
    return _head_bytes(values) + _bitmap_bytes(elements) + WIDTH[values] * elements


def most_blocks(elements: int, blocks: int, kept: int, values: Values) -> int:
    """Bytes that `blocks` blocks of `elements` elements in all do not exceed together when `kept` are kept."""
    # A gap takes a second byte only if it passes over 128 elements that are not kept.
    indices = min(_bitmap_bytes(elements) + blocks, kept + elements // 128)
    return _head_bytes(values) * min(blocks, kept) + indices + WIDTH[values] * kept


def encode(piece: Float32, keep: Mask, values: Values) -> bytes:
    """One block: the elements of `piece` under `keep`, none of which is zero. Raises Refused(NONFINITE)."""
    if not 0 < piece.size <= BLOCK:
        raise Misuse(f"a piece of {piece.size} elements; expected 1 to {BLOCK}")
    index = np.flatnonzero(keep)
    if not index.size:
        return b""
    kept = piece[index]
    if not np.isfinite(kept).all():
        raise Refused(Reason.NONFINITE, "NaN or infinite")
    coding, where = _encode_index(index, keep)
    scale, planes = _encode_values(kept, values)
    return b"".join((_HEAD.pack(coding, index.size - 1), scale, where, planes))


def decode(block: bytes | memoryview, values: Values, out: Float32) -> None:
    """Fill `out`, as large as the piece, with what `encode` kept and zeros. Raises Refused(MALFORMED, NONFINITE)."""
    out.fill(0)
    if len(block):
        found = parse(block, values, out.size)
        out[found.index] = found.values


def parse(block: bytes | memoryview, values: Values, elements: int) -> Kept:
    """What a block that is not empty says of a piece of `elements`.

    Raises Refused(MALFORMED) unless `encode` could have written it, Refused(NONFINITE).
    """
    head = _head_bytes(values)
    if len(block) < head:
        raise _malformed(f"a block of {len(block)} bytes")
    coding, count = _HEAD.unpack_from(block)
    count += 1
    split = len(block) - WIDTH[values] * count
    if count > elements or split < head:
        raise _malformed(f"{count} values for {elements} elements in {len(block)} bytes")
    scale = np.float32(_SCALE.unpack_from(block, _HEAD.size)[0]) if values == "int8" else None
    where = np.frombuffer(block[head:split], _U8)
    found = Kept(_decode_index(coding, where, count, elements), _decode_values(block[split:], values, scale))
    if not np.isfinite(found.values).all():
        raise Refused(Reason.NONFINITE, "NaN or infinite")
    return found


def _magnitude(piece: Float32) -> Bits:
    return piece.view(_U32) & _NO_SIGN


def _high_bins(pieces: Callable[[], Iterator[Float32]]) -> Index:
    bins = np.zeros(_HIGH_BINS, np.int64)
    for piece in pieces():
        bins += np.bincount(_magnitude(piece) >> np.uint32(16), minlength=_HIGH_BINS)
    return bins


def _low_bins(pieces: Callable[[], Iterator[Float32]], high: int) -> Index:
    """Of the elements in bin `high` alone."""
    bins = np.zeros(_LOW_BINS, np.int64)
    base = np.uint32(high << 16)
    for piece in pieces():
        low = _magnitude(piece) - base  # wraps: what is below the bin ends up above it
        bins += np.bincount(low[low < _LOW_BINS], minlength=_LOW_BINS)
    return bins


def _rank(bins: Index, k: int) -> tuple[int, int]:
    """The bin of the k-th largest, and its rank in there; bin 0 if there are fewer than `k`."""
    from_top = np.cumsum(bins[::-1])
    place = int(np.searchsorted(from_top, k))
    if place >= bins.size:
        return 0, k
    return bins.size - 1 - place, k - int(from_top[place] - bins[bins.size - 1 - place])


def _head_bytes(values: Values) -> int:
    return _HEAD.size + (_SCALE.size if values == "int8" else 0)


def _bitmap_bytes(elements: int) -> int:
    return (elements + 7) // 8


def _encode_index(index: Index, keep: Mask) -> tuple[int, bytes]:
    """The coding of fewest bytes, and its bytes."""
    if index.size == keep.size:
        return _ALL, b""
    bitmap = _bitmap_bytes(keep.size)
    if index.size < bitmap:
        gaps = _gaps(index)
        if _gap_bytes(gaps) < bitmap:
            return _GAPS, _encode_gaps(gaps)
    return _BITMAP, np.packbits(keep, bitorder="little").tobytes()


def _decode_index(coding: int, where: NDArray[np.uint8], count: int, elements: int) -> Index:
    bitmap = _bitmap_bytes(elements)
    if coding == _ALL and count == elements and not where.size:
        return np.arange(elements)
    if coding == _BITMAP and count < elements and where.size == bitmap:
        bits = np.unpackbits(where, bitorder="little")
        index = np.flatnonzero(bits)
        if index.size == count and index[-1] < elements:  # so the padding is zero
            if count >= bitmap or _gap_bytes(_gaps(index)) >= bitmap:
                return index
            raise _malformed("a bitmap where gaps are shorter")
    if coding == _GAPS and count < elements and where.size < bitmap:
        return _decode_gaps(where, count, elements)
    raise _malformed(f"coding {coding} of {count} indices in {where.size} bytes")


def _gaps(index: Index) -> Index:
    gaps = np.diff(index, prepend=-1)
    gaps -= 1
    return gaps


def _gap_bytes(gaps: Index) -> int:
    return gaps.size + int(np.count_nonzero(gaps >= 1 << 7)) + int(np.count_nonzero(gaps >= 1 << 14))


def _encode_gaps(gaps: Index) -> bytes:
    """LEB128. No gap of a block needs more than three bytes, and few need more than one."""
    first = gaps.astype(_U8)
    long = np.flatnonzero(gaps >= 1 << 7)
    if not long.size:
        return first.tobytes()
    first[long] |= 0x80
    second, third = gaps[long] >> 7, gaps[long] >> 14
    longer = np.flatnonzero(third)
    second = second & 0x7F | (third > 0) << 7
    after = np.concatenate([long, long[longer]]) + 1
    bytes_after = np.concatenate([second, third[longer]]).astype(_U8)
    order = np.argsort(after, kind="stable")  # the third byte of a gap stands behind its second
    return np.insert(first, after[order], bytes_after[order]).tobytes()


def _decode_gaps(where: NDArray[np.uint8], count: int, elements: int) -> Index:
    more = where >= 0x80
    ends = np.flatnonzero(~more)
    if ends.size != count or more[-1]:
        raise _malformed(f"{ends.size} gaps for {count} values")
    gaps = where[ends].astype(np.int64)
    if ends.size < where.size:
        length = np.diff(ends, prepend=-1)
        long = np.flatnonzero(length > 1)
        if length.max() > 3 or not gaps[long].all():
            raise _malformed("a gap that is not in its shortest form")
        gaps[long] <<= 7 * (length[long] - 1)
        gaps[long] |= (where[ends[long] - length[long] + 1] & 0x7F).astype(np.int64)
        longer = np.flatnonzero(length > 2)
        gaps[longer] |= (where[ends[longer] - 1] & 0x7F).astype(np.int64) << 7
    gaps += 1
    index = np.cumsum(gaps)
    index -= 1
    if index[-1] >= elements:
        raise _malformed(f"element {index[-1]} of {elements}")
    return index


def _encode_values(kept: Float32, values: Values) -> tuple[bytes, bytes]:
    """The scale, of int8 alone; and the rounded values as byte planes: all lowest bytes, then all second ones."""
    match values:
        case "fp32":
            return b"", _planes(kept)
        case "bf16":
            return b"", _planes(_to_bf16(kept))
        case "fp16":
            return b"", _planes(np.clip(kept, -_FP16_LARGEST, _FP16_LARGEST).astype("<f2"))
        case "int8":
            scale = np.clip(np.abs(kept).max() / _LEVELS, _SCALE_SMALLEST, _SCALE_LARGEST)
            levels = np.clip(np.rint(kept / scale), -_LEVELS, _LEVELS)
            return _SCALE.pack(scale), _planes(levels.astype(np.int8))


def _decode_values(data: bytes | memoryview, values: Values, scale: np.float32 | None) -> Float32:
    match values:
        case "fp32":
            kept: Float32 = _from_planes(data, 4).view(_F32)
            if not kept.all():
                raise _malformed("an exact zero is kept")
            return kept
        case "bf16":
            return (_from_planes(data, 2).view(_U16).astype(_U32) << np.uint32(16)).view(_F32)
        case "fp16":
            return _from_planes(data, 2).view("<f2").astype(_F32)
        case "int8":
            assert scale is not None
            return _from_levels(np.frombuffer(data, np.int8), scale)


def _to_bf16(kept: Float32) -> NDArray[np.uint16]:
    """To nearest, ties to even; what is finite stays finite."""
    bits = kept.view(_U32)
    magnitude = bits & _NO_SIGN
    magnitude += np.uint32(0x7FFF) + ((magnitude >> np.uint32(16)) & np.uint32(1))
    magnitude >>= np.uint32(16)
    np.minimum(magnitude, _BF16_LARGEST, out=magnitude)
    return (magnitude | (bits & _SIGN) >> np.uint32(16)).astype(_U16)


def _from_levels(levels: NDArray[np.int8], scale: np.float32) -> Float32:
    if not np.isfinite(scale):
        raise Refused(Reason.NONFINITE, "a scale that is NaN or infinite")
    largest = int(np.abs(levels.astype(np.int16)).max())
    if not _SCALE_SMALLEST <= scale <= _SCALE_LARGEST or largest > _LEVELS:
        raise _malformed(f"scale {scale}, level {largest}")
    if largest < _LEVELS and scale > _SCALE_SMALLEST:
        raise _malformed("a scale that is larger than its values need")
    return levels.astype(_F32) * scale


def _planes(kept: NDArray[Any]) -> bytes:
    planes: bytes = kept.view(_U8).reshape(kept.size, -1).T.tobytes()
    return planes


def _from_planes(data: bytes | memoryview, width: int) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.frombuffer(data, _U8).reshape(width, -1).T).reshape(-1)


def _malformed(what: str) -> Refused:
    return Refused(Reason.MALFORMED, f"not a block: {what}")
