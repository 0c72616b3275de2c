"""The manifest: which tensors travel in a job, and so the exact bytes of a canonical file's header.

A canonical file is a safetensors file with one possible form: names in bytewise order, float32 only, C order,
little-endian, data gapless in name order, header JSON with sorted keys and no white space, padded with spaces
to a multiple of 8, no `__metadata__`. Equal tensors therefore have equal files and equal digests. Format:
https://github.com/huggingface/safetensors, README "Format".
"""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

from anabranch.errors import Misuse, Reason, Refused
from anabranch.wire import canonical, limits

Role = Literal["trainable", "buffer"]

METADATA: Final = "__metadata__"  # the one key of a safetensors header that names no tensor
LENGTH_BYTES: Final = 8  # little-endian, before the header JSON
ITEM_BYTES: Final = 4  # of a float32


@dataclass(frozen=True)
class TensorSpec:
    name: str
    shape: tuple[int, ...]
    role: Role  # trainable: delta, strategy and optimizer; buffer: values, weighted mean

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return ITEM_BYTES * self.elements


@dataclass(frozen=True)
class Manifest:
    """Specs may be given in any order and are kept sorted by name. Raises Refused(SIZE_LIMIT, MALFORMED)."""

    specs: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.specs) <= limits.TENSORS:
            raise Refused(Reason.SIZE_LIMIT, f"{len(self.specs)} tensors; expected 1 to {limits.TENSORS}")
        for spec in self.specs:
            _check_spec(spec)
        # Code point order of str equals the bytewise order of UTF-8.
        object.__setattr__(self, "specs", tuple(sorted(self.specs, key=lambda spec: spec.name)))
        if len(self._by_name) != len(self.specs):
            raise Refused(Reason.MALFORMED, "two tensors of the manifest have the same name")
        if len(self.header()) - LENGTH_BYTES > limits.HEADER:
            raise Refused(Reason.SIZE_LIMIT, f"the header of these tensors is above {limits.HEADER} bytes")
        if self.file_bytes > limits.TENSOR_FILE:
            raise Refused(
                Reason.SIZE_LIMIT, f"{self.file_bytes} bytes of tensors; at most {limits.TENSOR_FILE}"
            )

    def encode(self) -> bytes:
        """Canonical JSON `[{"name", "role", "shape"}]`. Raises Refused(SIZE_LIMIT) above limits.MANIFEST."""
        data = canonical.encode(
            [{"name": s.name, "role": s.role, "shape": list(s.shape)} for s in self.specs]
        )
        if len(data) > limits.MANIFEST:
            raise Refused(Reason.SIZE_LIMIT, f"manifest of {len(data)} bytes; at most {limits.MANIFEST}")
        return data

    def digest(self) -> str:
        """Hex SHA-256 of `encode()`."""
        return canonical.sha256(self.encode())

    def header(self) -> bytes:
        """The first bytes of every canonical file of this manifest: 8-byte length, JSON, padding."""
        return self._header

    @property
    def file_bytes(self) -> int:
        """The size of every canonical file of this manifest."""
        return len(self._header) + sum(spec.bytes for spec in self.specs)

    def trainable(self) -> tuple[TensorSpec, ...]:
        return tuple(spec for spec in self.specs if spec.role == "trainable")

    def spec(self, name: str) -> TensorSpec:
        """Raises Misuse for a name that is not in the manifest."""
        try:
            return self._by_name[name]
        except KeyError:
            raise Misuse(f"no tensor {name[:80]!r} in this manifest") from None

    def offset(self, name: str) -> int:
        """Where the tensor's first byte stands in a canonical file. Raises Misuse for an unknown name."""
        self.spec(name)
        return self._offsets[name]

    @cached_property
    def _by_name(self) -> dict[str, TensorSpec]:
        return {spec.name: spec for spec in self.specs}

    @cached_property
    def _header(self) -> bytes:
        entries, start = {}, 0
        for spec in self.specs:
            stop = start + spec.bytes
            entries[spec.name] = {"dtype": "F32", "shape": list(spec.shape), "data_offsets": [start, stop]}
            start = stop
        text = json.dumps(entries, sort_keys=True, separators=(",", ":")).encode("ascii")
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(LENGTH_BYTES, "little") + text

    @cached_property
    def _offsets(self) -> dict[str, int]:
        offsets, position = {}, len(self._header)
        for spec in self.specs:
            offsets[spec.name] = position
            position += spec.bytes
        return offsets


def parse_manifest(data: bytes) -> Manifest:
    """Read what `Manifest.encode` wrote. Raises Refused(SIZE_LIMIT, MALFORMED)."""
    if len(data) > limits.MANIFEST:
        raise Refused(Reason.SIZE_LIMIT, f"manifest of {len(data)} bytes; at most {limits.MANIFEST}")
    value = canonical.decode(data)
    if not isinstance(value, list):
        raise Refused(Reason.MALFORMED, "manifest: expected a list of tensors")
    manifest = Manifest(tuple(_parse_spec(item) for item in value))
    if manifest.encode() != data:
        raise Refused(Reason.MALFORMED, "manifest: tensors are not sorted by name")
    return manifest


def _parse_spec(item: Any) -> TensorSpec:
    match item:
        case {"name": str(name), "role": "trainable" | "buffer" as role, "shape": list(shape), **rest} if (
            not rest
        ):
            return TensorSpec(name, tuple(shape), role)
    raise Refused(
        Reason.MALFORMED, "manifest: a tensor is exactly name, role (trainable or buffer) and shape"
    )


def _check_spec(spec: TensorSpec) -> None:
    check_name(spec.name)
    check_shape(spec.name, spec.shape)
    if spec.role not in ("trainable", "buffer"):
        raise Refused(Reason.MALFORMED, f"tensor {spec.name!r}: role {spec.role!r}")


def check_name(name: str) -> None:
    """Raises Refused(MALFORMED): tensor names end up in messages on terminals."""
    if not name.isprintable() or not 1 <= len(name.encode("utf-8")) <= limits.TENSOR_NAME or name == METADATA:
        raise Refused(Reason.MALFORMED, f"{name[:80]!r} cannot name a tensor")


def check_shape(name: str, shape: tuple[Any, ...]) -> None:
    """Raises Refused(SIZE_LIMIT, MALFORMED). Bounds the dimensions before anything multiplies them."""
    if len(shape) > limits.DIMENSIONS:
        raise Refused(
            Reason.SIZE_LIMIT, f"tensor {name!r}: {len(shape)} dimensions; at most {limits.DIMENSIONS}"
        )
    for length in shape:
        if type(length) is not int or length < 0:  # a bool is an int to isinstance, not to JSON
            raise Refused(Reason.MALFORMED, f"tensor {name!r}: a dimension is not a natural number")
        if length > limits.TENSOR_FILE:
            raise Refused(Reason.SIZE_LIMIT, f"tensor {name!r}: a dimension of {length}")
    # An empty tensor too: neither numpy nor safetensors takes one whose other dimensions overflow.
    if math.prod(length for length in shape if length) > limits.TENSOR_FILE:
        raise Refused(Reason.SIZE_LIMIT, f"tensor {name!r}: the dimensions {list(shape)}")
