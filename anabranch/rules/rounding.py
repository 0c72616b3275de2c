"""The values of one block as they travel. Bytes: docs/packed-files.md.

Equal values give equal bytes on every machine: rounding is bit arithmetic or one IEEE operation per element, and sums are
taken in order.
"""

import struct
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from anabranch.errors import Reason, Refused
from anabranch.link import BITS, Values

Float32 = NDArray[np.float32]
Octets = NDArray[np.uint8]
Mask = NDArray[np.bool_]

_F32, _U32, _U16, _U8 = np.dtype("<f4"), np.dtype("<u4"), np.dtype("<u2"), np.dtype("u1")
_SCALE: Final = struct.Struct("<f")
_MAGNITUDES: Final = struct.Struct("<ff")
_SIGN: Final = np.uint32(0x8000_0000)
_NO_SIGN: Final = np.uint32(0x7FFF_FFFF)
_BF16_LARGEST: Final = np.uint32(0x7F7F)
_FP16_LARGEST: Final = np.float32(65504)
_LEVELS: Final = np.float32(127)
# A subnormal scale has too few bits to divide by, and this largest one is the last that decodes to a finite value.
_SCALE_SMALLEST: Final = np.float32(2.0**-126)
_SCALE_LARGEST: Final = np.float32(float.fromhex("0x1.020406p+121"))


def scale_bytes(values: Values) -> int:
    """Bytes before the indices that say how values are to be read."""
    return {"int8": _SCALE.size, "int2": _MAGNITUDES.size}.get(values, 0)


def value_bytes(values: Values, count: int) -> int:
    return (BITS[values] * count + 7) // 8


def most_value_bytes(values: Values, count: int, blocks: int) -> int:
    """Bytes that `count` values in so many blocks do not exceed."""
    return value_bytes(values, count) + (blocks if BITS[values] % 8 else 0)


def encode_values(kept: Float32, values: Values) -> tuple[bytes, bytes]:
    """The scales; and the rounded values as byte planes, of int2 as codes. `kept` is finite, and nothing in it zero."""
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
        case "int2":
            low, high, takes_high = _two_magnitudes(np.abs(kept))
            codes = np.stack([takes_high, np.signbit(kept)], axis=1)
            return _MAGNITUDES.pack(low, high), np.packbits(codes, bitorder="little").tobytes()


def decode_values(
    scales: bytes | memoryview, data: bytes | memoryview, count: int, values: Values
) -> Float32:
    """`data` has `value_bytes` of `count` values. Raises Refused(MALFORMED), and NONFINITE for a scale."""
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
            return _from_levels(np.frombuffer(data, np.int8), _finite(scales)[0])
        case "int2":
            return _from_codes(np.frombuffer(data, _U8), count, _finite(scales))


def _to_bf16(kept: Float32) -> NDArray[np.uint16]:
    """To nearest, ties to even; what is finite stays finite."""
    bits = kept.view(_U32)
    magnitude = bits & _NO_SIGN
    magnitude += np.uint32(0x7FFF) + ((magnitude >> np.uint32(16)) & np.uint32(1))
    magnitude >>= np.uint32(16)
    np.minimum(magnitude, _BF16_LARGEST, out=magnitude)
    return (magnitude | (bits & _SIGN) >> np.uint32(16)).astype(_U16)


def _from_levels(levels: NDArray[np.int8], scale: np.float32) -> Float32:
    largest = int(np.abs(levels.astype(np.int16)).max())
    if not _SCALE_SMALLEST <= scale <= _SCALE_LARGEST or largest > _LEVELS:
        raise _malformed(f"scale {scale}, level {largest}")
    if largest < _LEVELS and scale > _SCALE_SMALLEST:
        raise _malformed("a scale that is larger than its values need")
    return levels.astype(_F32) * scale


def _two_magnitudes(magnitude: Float32) -> tuple[np.float32, np.float32, Mask]:
    """The two that all are replaced by at the least squared error, and who takes the higher one.

    They are the means below and above one place in the order, so every place where the order rises is tried.
    """
    ordered = np.sort(magnitude)
    rises = ordered[1:] > ordered[:-1]
    if not rises.any():
        return ordered[0], ordered[0], np.zeros(magnitude.size, np.bool_)
    wide, below = ordered.astype(np.float64), np.arange(1.0, ordered.size)  # how many take the lower one
    # One after the other, where a sum adds in an order of its own.
    low, high = np.cumsum(wide)[:-1], np.cumsum(wide[::-1])[-2::-1]
    above = ordered.size - below
    gain = low * low / below + high * high / above
    gain[~rises] = -1
    best = int(np.argmax(gain))
    means = np.float32(low[best] / below[best]), np.float32(high[best] / above[best])
    return *means, magnitude >= ordered[best + 1]


def _from_codes(data: Octets, count: int, magnitudes: Float32) -> Float32:
    low, high = magnitudes
    bits = np.unpackbits(data, bitorder="little")
    codes = bits[: 2 * count].reshape(-1, 2)
    if bits[2 * count :].any():
        raise _malformed("padding behind the last code")
    takes_high = int(np.count_nonzero(codes[:, 0]))
    if not 0 < low <= high or not (takes_high == 0 if low == high else 0 < takes_high < count):
        raise _malformed(f"magnitudes {low} and {high}, the higher one {takes_high} times of {count}")
    found: Float32 = np.array([low, high, -low, -high], _F32)[codes[:, 0] | codes[:, 1] << 1]
    return found


def _finite(scales: bytes | memoryview) -> Float32:
    found = np.frombuffer(scales, _F32)
    if not np.isfinite(found).all():
        raise Refused(Reason.NONFINITE, "a scale that is NaN or infinite")
    return found


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
