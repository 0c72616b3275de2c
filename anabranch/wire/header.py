"""The gate every tensor file passes before a byte of its data is read, and before any library sees it.

A canonical header is known from the manifest byte for byte, so admission is one comparison. Only a header
that differs is parsed, within bounds and only to name the reason; nothing read that way is used. safetensors
itself accepts headers of 100 MB, over a million tensors and duplicate keys.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from anabranch.errors import Reason, Refused
from anabranch.wire import limits
from anabranch.wire.manifest import (
    ITEM_BYTES,
    LENGTH_BYTES,
    METADATA,
    Manifest,
    TensorSpec,
    check_name,
    check_shape,
)


@dataclass(frozen=True)
class Slot:
    """What a header says about one tensor; `start` and `stop` count from the first byte after the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def check_header_bytes(prefix: bytes, total: int, manifest: Manifest) -> bool:
    """Judge the first bytes of a stream or file of `total` bytes.

    True: the header is complete, right, and `total` fits it. False: nothing wrong so far, but more bytes are
    needed (never more than 8 + limits.HEADER). Raises Refused(SIZE_LIMIT, MALFORMED, NAME_MISMATCH,
    SHAPE_MISMATCH, DTYPE_MISMATCH).
    """
    expected = manifest.header()
    if prefix[: len(expected)] == expected[: len(prefix)]:
        if total != manifest.file_bytes:
            raise Refused(
                Reason.MALFORMED,
                f"the file has {total} bytes, its tensors need {manifest.file_bytes}: truncated or extended",
            )
        return len(prefix) >= len(expected)
    if len(prefix) < LENGTH_BYTES:
        return False
    end = LENGTH_BYTES + declared_bytes(prefix, total)
    if len(prefix) < end:
        return False
    raise _difference(prefix[LENGTH_BYTES:end], manifest)


def declared_bytes(prefix: bytes, total: int) -> int:
    """How long the header JSON claims to be. Raises Refused(SIZE_LIMIT, MALFORMED) before anything is read
    for it.
    """
    if len(prefix) < LENGTH_BYTES:
        raise Refused(Reason.MALFORMED, f"{len(prefix)} bytes cannot hold a safetensors header")
    length = int.from_bytes(prefix[:LENGTH_BYTES], "little")
    if length > limits.HEADER:
        raise Refused(Reason.SIZE_LIMIT, f"the header declares {length} bytes; at most {limits.HEADER}")
    if LENGTH_BYTES + length > total:
        raise Refused(
            Reason.MALFORMED, f"the header declares {length} bytes, the file has {total}: truncated"
        )
    return length


def parse_slots(text: bytes) -> dict[str, Slot]:
    """Any safetensors header within our limits; `__metadata__` is dropped. Raises Refused(SIZE_LIMIT,
    MALFORMED).
    """
    # An object per tensor, one around them, one of the metadata; two lists per tensor.
    if text.count(b"{") > limits.TENSORS + 2 or text.count(b"[") > 2 * limits.TENSORS:
        raise Refused(Reason.SIZE_LIMIT, f"the header names more than {limits.TENSORS} tensors")
    try:
        entries = json.loads(
            text.decode("utf-8"),  # `json` itself would take UTF-16 too
            object_pairs_hook=_without_duplicates,
            parse_int=_natural,
            parse_constant=_no_number,
        )
    except (ValueError, RecursionError) as error:
        raise Refused(Reason.MALFORMED, f"the header is not JSON: {str(error)[:80]}") from error
    if not isinstance(entries, dict):
        raise Refused(Reason.MALFORMED, "the header is not a JSON object")
    metadata = entries.get(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise Refused(Reason.MALFORMED, f"the header's {METADATA} holds something other than text")
    return {name: _slot(name, entry) for name, entry in entries.items() if name != METADATA}


def check_ranges(slots: Mapping[str, Slot], data_bytes: int) -> None:
    """Byte ranges fit their shapes and cover the data without gap or overlap. Raises Refused(MALFORMED)."""
    position = 0
    for name, slot in sorted(slots.items(), key=lambda item: (item[1].start, item[1].stop)):
        size = ITEM_BYTES * TensorSpec(name, slot.shape, "buffer").elements
        if slot.start != position or slot.stop - slot.start != size:
            raise Refused(
                Reason.MALFORMED,
                f"tensor {name[:80]!r}: bytes {slot.start} to {slot.stop} leave a gap, overlap, or misfit",
            )
        position = slot.stop
    if position != data_bytes:
        raise Refused(
            Reason.MALFORMED,
            f"the tensors cover {position} bytes, the file has {data_bytes} after its header",
        )


def check_names(found: Mapping[str, object], expected: Mapping[str, object]) -> None:
    """Raises Refused(NAME_MISMATCH) naming the first of each kind."""
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or extra:
        parts = [
            f"{len(names)} {what}, first {names[0][:80]!r}"
            for names, what in ((missing, "missing"), (extra, "not in the manifest"))
            if names
        ]
        raise Refused(Reason.NAME_MISMATCH, "tensors differ from the job's: " + "; ".join(parts))


def check_dtype(name: str, dtype: str) -> None:
    """Raises Refused(DTYPE_MISMATCH)."""
    if dtype != "F32":
        raise Refused(Reason.DTYPE_MISMATCH, f"tensor {name[:80]!r} is {dtype[:20]!r}; only F32 travels")


def check_same_shape(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raises Refused(SHAPE_MISMATCH)."""
    if shape != expected:
        raise Refused(
            Reason.SHAPE_MISMATCH,
            f"tensor {name[:80]!r} has shape {list(shape)}; the job's is {list(expected)}",
        )


def _difference(text: bytes, manifest: Manifest) -> Refused:
    slots = parse_slots(text)
    specs = {spec.name: spec for spec in manifest.specs}
    check_names(slots, specs)
    for name, slot in slots.items():
        check_dtype(name, slot.dtype)
        check_same_shape(name, slot.shape, specs[name].shape)
    check_ranges(slots, sum(spec.bytes for spec in manifest.specs))
    return Refused(
        Reason.MALFORMED,
        "the header is not in canonical form: key order, offsets, spacing, padding or metadata differ",
    )


def _slot(name: str, entry: Any) -> Slot:
    check_name(name)
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(stop)], **rest} if (
            not rest
        ):
            check_shape(name, tuple(shape))
            if type(start) is int and type(stop) is int and 0 <= start <= stop <= limits.TENSOR_FILE:
                return Slot(dtype, tuple(shape), start, stop)
    raise Refused(
        Reason.MALFORMED, f"tensor {name[:80]!r}: expected exactly dtype, shape and data_offsets in range"
    )


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return entries


def _natural(text: str) -> int:
    """safetensors reads unsigned numbers, and does not take -0 for one."""
    if text.startswith("-"):
        raise ValueError(f"{text[:40]} is not a natural number")
    return int(text)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")
