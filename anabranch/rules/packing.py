"""Which elements of the trainable tensors travel, and the one encoding of those that do.

`threshold` ranks all of them by magnitude, `Selection` says which of a piece are kept; `InChunks` ranks and says in one,
chunk by chunk. `encode` writes the piece as one block and `decode` reads it. Bytes: docs/packed-files.md. Equal inputs
give equal bytes on every machine: float32 magnitudes are ranked by their bits.
"""

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from anabranch.errors import Misuse, Reason, Refused
from anabranch.link import Packing, Values
from anabranch.rules.rounding import (
    decode_values,
    encode_values,
    most_value_bytes,
    scale_bytes,
    value_bytes,
)

BLOCK: Final = 1 << 16  # elements

Float32 = NDArray[np.float32]
Bits = NDArray[np.uint32]
Index = NDArray[np.int64]
Mask = NDArray[np.bool_]
T = TypeVar("T", bound=np.generic)

_U32, _U8 = np.dtype("<u4"), np.dtype("u1")
_HEAD: Final = struct.Struct("<BH")  # coding, count - 1
_ALL, _BITMAP, _GAPS = range(3)
_NO_SIGN: Final = np.uint32(0x7FFF_FFFF)
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


class InChunks:
    """As `Selection`, where every `packing.chunk` elements of a piece are ranked by themselves, the rest of it as well."""

    def __init__(self, packing: Packing) -> None:
        self._packing = packing

    def mask(self, piece: Float32) -> Mask:
        magnitude = _magnitude(piece)
        return np.concatenate(
            [_largest(rows, self._packing.kept(rows.shape[1])).ravel() for rows in self._rows(magnitude)]
        )

    def crowded(self, kept: Kept, elements: int) -> bool:
        """Whether more of a piece of so many elements is kept than this would: in some chunk of it."""
        mask = np.zeros(elements, np.bool_)
        mask[kept.index] = True
        return any(
            bool((rows.sum(axis=1) > self._packing.kept(rows.shape[1])).any()) for rows in self._rows(mask)
        )

    def _rows(self, piece: NDArray[T]) -> Iterator[NDArray[T]]:
        """Its chunks, one a row; then what is left."""
        chunk = self._packing.chunk or BLOCK
        whole = piece.size - piece.size % chunk
        if whole:
            yield piece[:whole].reshape(-1, chunk)
        if whole < piece.size:
            yield piece[whole:].reshape(1, -1)


def most_block(elements: int, values: Values) -> int:
    """Bytes that no block of so many elements exceeds."""
    return _head_bytes(values) + _bitmap_bytes(elements) + value_bytes(values, elements)


def most_blocks(elements: int, blocks: int, kept: int, values: Values) -> int:
    """Bytes that `blocks` blocks of `elements` elements in all do not exceed together when `kept` are kept."""
    # A gap takes a second byte only if it passes over 128 elements that are not kept.
    indices = min(_bitmap_bytes(elements) + blocks, kept + elements // 128)
    filled = min(blocks, kept)
    return _head_bytes(values) * filled + indices + most_value_bytes(values, kept, filled)


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
    scales, rounded = encode_values(kept, values)
    return b"".join((_HEAD.pack(coding, index.size - 1), scales, where, rounded))


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
    split = len(block) - value_bytes(values, count)
    if count > elements or split < head:
        raise _malformed(f"{count} values for {elements} elements in {len(block)} bytes")
    where = np.frombuffer(block[head:split], _U8)
    found = Kept(
        _decode_index(coding, where, count, elements),
        decode_values(block[_HEAD.size : head], block[split:], count, values),
    )
    if not np.isfinite(found.values).all():
        raise Refused(Reason.NONFINITE, "NaN or infinite")
    return found


def _magnitude(piece: Float32) -> Bits:
    return piece.view(_U32) & _NO_SIGN


def _largest(rows: Bits, k: int) -> Mask:
    """The `k` largest of each row, of equal ones the earlier; zeros are never among them."""
    at = rows.shape[1] - k
    bar = np.partition(rows, at, axis=1)[:, at, None]
    keep, equal = rows > bar, (rows == bar) & (bar > 0)
    left = k - keep.sum(axis=1)
    keep |= equal
    tied = np.flatnonzero(equal.sum(axis=1) > left)
    keep[tied] &= ~equal[tied] | (np.cumsum(equal[tied], axis=1) <= left[tied, None])
    return keep


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
    return _HEAD.size + scale_bytes(values)


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


def _malformed(what: str) -> Refused:
    return Refused(Reason.MALFORMED, f"not a block: {what}")
