"""Which elements of the trainable tensors travel, and the one encoding of those that do.

`threshold` ranks all of them by magnitude, `Selection` says which of a piece are kept, `encode` writes the piece as one
block and `decode` reads it. Bytes: docs/packed-files.md. Equal inputs give equal bytes on every machine: float32
magnitudes are ranked by their bits, and rounding is bit arithmetic or one IEEE operation per element.
"""

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from anabranch.errors import Misuse, Reason, Refused
from anabranch.link import WIDTH, Values

BLOCK: Final = 1 << 16  # elements

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
_STRIDE: Final = 17  # few layers have a width that repeats with it
_MOST_BINS: Final = 16  # looked into at once: 8 MiB of counters


@dataclass(frozen=True)
class Threshold:
    """Kept are the elements whose bits of |v| are above `bits`, and the first `ties` in order that equal it."""

    bits: int
    ties: int


@dataclass(frozen=True)
class Kept:
    """What one block holds: `values[i]` stands at `index[i]` of its piece; the rest of the piece is zero."""

    index: Index | slice
    values: Float32


def threshold(pieces: Callable[[], Iterator[Float32]], k: int) -> Threshold:
    """The `k` elements of largest magnitude, of equal ones the earlier; exact zeros are never among them.

    Each call of `pieces` must give the same elements, at most BLOCK in a piece, which the next piece may overwrite. It is
    called twice where a sample shows about where the threshold is, else up to four times.
    """
    if k <= 0:
        return Threshold(int(_NO_SIGN), 0)
    for find in (_likely, _certain):
        bins = find(pieces, k)
        if len(bins) > _MOST_BINS:
            continue
        above, inside = _count(pieces, bins)
        if above < k <= above + inside.sum():
            place, left = _rank(inside, k - above)
            bits = (bins.start << 16) + place
            return Threshold(bits, left if bits else 0)
    return Threshold(0, 0)  # there are no more than k


class Selection:
    """The mask of each piece, which must come in the order that was ranked: ties are counted across them."""

    def __init__(self, threshold: Threshold) -> None:
        self._bits = np.uint32(threshold.bits)
        self._ties = threshold.ties

    def mask(self, piece: Float32) -> Mask:
        magnitude = _magnitude(piece)
        if not self._ties:
            return magnitude > self._bits
        keep, equal = magnitude >= self._bits, magnitude == self._bits
        count = int(np.count_nonzero(equal))
        if count > self._ties:
            keep[np.flatnonzero(equal)[self._ties :]] = False
        self._ties -= min(count, self._ties)
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


def _likely(pieces: Callable[[], Iterator[Float32]], k: int) -> range:
    """Bins that nearly always hold the k-th largest, by one element in _STRIDE."""
    bins, rank = _high_bins(piece[::_STRIDE] for piece in pieces()), k / _STRIDE
    margin = 6 * math.sqrt(rank) + 1
    low, high = (_rank(bins, max(1, math.ceil(one)))[0] for one in (rank + margin, rank - margin))
    return range(low, high + 1)


def _certain(pieces: Callable[[], Iterator[Float32]], k: int) -> range:
    """The one bin that holds it."""
    bin, _ = _rank(_high_bins(pieces()), k)
    return range(bin, bin + 1)


def _high_bins(pieces: Iterator[Float32]) -> Index:
    """How many elements have which high bits of |v|."""
    bins = np.zeros(_HIGH_BINS, np.int64)
    for some in _gathered(_magnitude(piece) for piece in pieces):
        bins += np.bincount(some >> np.uint32(16), minlength=_HIGH_BINS)
    return bins


def _count(pieces: Callable[[], Iterator[Float32]], high: range) -> tuple[int, Index]:
    """How many elements are above the bins `high`, and in these bins how many have which bits."""
    above, inside = 0, np.zeros(len(high) * _LOW_BINS, np.int64)
    base = np.uint32(high.start << 16)

    def offsets() -> Iterator[Bits]:
        nonlocal above
        for piece in pieces():
            offset = _magnitude(piece)
            above += int(np.count_nonzero(offset >= high.stop << 16))
            offset -= base  # wraps: what is below the bins ends up above them
            yield offset[np.flatnonzero(offset < inside.size)]

    for some in _gathered(offsets()):
        inside += np.bincount(some, minlength=inside.size)
    return above, inside


def _gathered(parts: Iterator[Bits]) -> Iterator[Bits]:
    """The same elements in fewer arrays: a histogram of one element costs as much as one of a block."""
    room, size = np.empty(4 * BLOCK, _U32), 0
    for part in parts:
        if size + part.size > room.size:
            yield room[:size]
            size = 0
        room[size : size + part.size] = part
        size += part.size
    yield room[:size]


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


def _decode_index(coding: int, where: NDArray[np.uint8], count: int, elements: int) -> Index | slice:
    bitmap = _bitmap_bytes(elements)
    if coding == _ALL and count == elements and not where.size:
        return slice(None)
    if coding == _BITMAP and count < elements and where.size == bitmap:
        index = np.flatnonzero(np.unpackbits(where, bitorder="little").view(np.bool_))
        if index.size == count and index[-1] < elements:  # so the padding is zero
            if count >= bitmap or _gap_bytes(_gaps(index)) >= bitmap:
                return index
            raise _malformed("a bitmap where gaps are shorter")
    if coding == _GAPS and count < elements and where.size < bitmap:
        return _decode_gaps(where, count, elements)
    raise _malformed(f"coding {coding} of {count} indices in {where.size} bytes")


def _gaps(index: Index) -> NDArray[np.uint16]:
    gaps = index.astype(np.uint16)
    gaps[1:] -= gaps[:-1] + np.uint16(1)
    return gaps


def _gap_bytes(gaps: NDArray[np.uint16]) -> int:
    return gaps.size + int(np.count_nonzero(gaps >= 1 << 7)) + int(np.count_nonzero(gaps >= 1 << 14))


def _encode_gaps(gaps: NDArray[np.uint16]) -> bytes:
    """LEB128. No gap of a block needs more than three bytes, and few need more than one."""
    last = gaps.astype(_U8)
    long = np.flatnonzero(gaps >= 1 << 7)
    if not long.size:
        return last.tobytes()
    longer = long[gaps[long] >= 1 << 14]
    last[long] = gaps[long] >> 7
    last[longer] = gaps[longer] >> 14
    before = np.concatenate([gaps[long], gaps[longer] >> 7]) & 0x7F | 0x80
    # Of two bytes before the same last one, the first given comes first.
    return np.insert(last, np.concatenate([long, longer]), before).tobytes()


def _decode_gaps(where: NDArray[np.uint8], count: int, elements: int) -> Index:
    more = where >= 0x80
    before = np.flatnonzero(more)
    if where.size - before.size != count or more[-1]:
        raise _malformed(f"{where.size - before.size} gaps for {count} values")
    gaps = where[~more].astype(np.int64) if before.size else where.astype(np.int64)
    if before.size:
        gap = before - np.arange(before.size)  # the one that each of these bytes belongs to
        second = np.diff(gap, prepend=-1) == 0
        if not gaps[gap].all() or (second[1:] & second[:-1]).any():
            raise _malformed("a gap that is not in its shortest form")
        for these in (second, ~second):
            gaps[gap[these]] = gaps[gap[these]] << 7 | where[before[these]] & 0x7F
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
            return b"", _planes(kept.view(_U32))
        case "bf16":
            return b"", _planes(_to_bf16(kept))
        case "fp16":
            return b"", _planes(np.clip(kept, -_FP16_LARGEST, _FP16_LARGEST).astype("<f2").view(_U16))
        case "int8":
            scale = np.clip(np.abs(kept).max() / _LEVELS, _SCALE_SMALLEST, _SCALE_LARGEST)
            levels = np.clip(np.rint(kept / scale), -_LEVELS, _LEVELS)
            return _SCALE.pack(scale), levels.astype(np.int8).tobytes()


def _decode_values(data: bytes | memoryview, values: Values, scale: np.float32 | None) -> Float32:
    match values:
        case "fp32":
            bits = _from_planes(data, _U32)
            if not (bits & _NO_SIGN).all():
                raise _malformed("an exact zero is kept")
            return bits.view(_F32)
        case "bf16":
            return (_from_planes(data, _U16).astype(_U32) << 16).view(_F32)
        case "fp16":
            return _from_planes(data, _U16).view("<f2").astype(_F32)
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
    return b"".join((kept >> 8 * byte).astype(_U8).tobytes() for byte in range(kept.itemsize))


def _from_planes(data: bytes | memoryview, dtype: np.dtype[Any]) -> NDArray[Any]:
    planes = np.frombuffer(data, _U8).reshape(dtype.itemsize, -1)
    kept: NDArray[Any] = planes[-1].astype(dtype)
    for plane in planes[-2::-1]:
        kept <<= 8
        kept |= plane
    return kept


def _malformed(what: str) -> Refused:
    return Refused(Reason.MALFORMED, f"not a block: {what}")
