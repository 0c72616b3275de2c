"""Tensor files: checked before use, read by position, written once in order.

Readers use positional reads into the caller's buffers. A mapped file would count as resident memory and a
file cut short under it would kill the process with SIGBUS; a short read is an exception.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from anabranch import durable
from anabranch.errors import Misuse
from anabranch.wire import limits
from anabranch.wire.files import bytes_of, disk_full, open_plain, read_exactly
from anabranch.wire.header import (
    Slot,
    check_dtype,
    check_header_bytes,
    check_names,
    check_ranges,
    check_same_shape,
    declared_bytes,
    parse_slots,
)
from anabranch.wire.manifest import ITEM_BYTES, LENGTH_BYTES, Manifest, Role, TensorSpec, parse_manifest
from anabranch.wire.values import Values

__all__ = [
    "Checked",
    "Manifest",
    "Role",
    "TensorFile",
    "TensorSpec",
    "TensorWriter",
    "canonicalise",
    "check_file",
    "check_header_bytes",
    "check_span",
    "check_values",
    "parse_manifest",
    "read_manifest",
    "read_tensors",
    "write_tensors",
]

_F32: Final = np.dtype("<f4")
_CHUNK_ELEMENTS: Final = limits.CHUNK // ITEM_BYTES
_WRITE_OUT: Final = 8 * limits.MIB  # bytes after which the disk begins to work
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Checked:
    bytes: int  # size of the file


class TensorFile:
    """A canonical file of `manifest`, checked on opening and readable from several threads at once.

    Raises Refused as `check_file` does; Corrupt when the file becomes shorter while open.
    """

    def __init__(self, path: str | os.PathLike[str], manifest: Manifest) -> None:
        self.path = Path(path)
        self.manifest = manifest
        self._fd = open_plain(self.path)
        try:
            total = os.fstat(self._fd).st_size
            check_header_bytes(_read_header(self._fd, total), total, manifest)
        except BaseException:
            os.close(self._fd)
            raise

    def read(self, name: str, start: int, stop: int, out: Floats) -> None:
        """Elements [start, stop) of the flattened tensor into `out` (float32, contiguous, stop - start
        elements).
        """
        check_span(self.manifest, name, start, stop, out)
        read_exactly(self._fd, self.manifest.offset(name) + ITEM_BYTES * start, bytes_of(out), self.path)

    def read_bytes(self, offset: int, out: memoryview) -> None:
        """Fill `out` from `offset` on. Raises Corrupt when the file ends before."""
        read_exactly(self._fd, offset, out, self.path)

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TensorWriter:
    """Writes a canonical file of `manifest` to `path` in order, hashing on the way.

    Left without `close`, the context manager removes the file. If the process dies, what is at `path` is
    shorter than `manifest.file_bytes` or unsynced: write to a temporary name and rename it after `close`.
    Raises Unavailable when the disk is full.
    """

    def __init__(self, path: str | os.PathLike[str], manifest: Manifest) -> None:
        self.path = Path(path)
        self.manifest = manifest
        self._hash = hashlib.sha256()
        self._left = manifest.file_bytes
        self._begun = 0  # bytes the disk has been told to write
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self.path, flags, 0o644)
        try:
            with disk_full(self.path):
                durable.reserve(self._fd, manifest.file_bytes)
            self._put(memoryview(manifest.header()))
        except BaseException:
            self.abandon()
            raise

    def write(self, chunk: Floats) -> None:
        """The next elements in canonical order (float32, contiguous, any shape); a chunk may span tensors."""
        if chunk.dtype != _F32 or not chunk.flags.c_contiguous:
            raise Misuse(f"a chunk is contiguous float32, not {chunk.dtype}")
        if chunk.nbytes > self._left:
            raise Misuse(
                f"{chunk.nbytes} bytes for {self.path.name}, whose tensors need only {self._left} more"
            )
        if chunk.nbytes:
            self._put(bytes_of(chunk))

    def close(self) -> str:
        """Sync the data; the file's hex SHA-256. The name is durable once its directory is synced too."""
        if self._left:
            raise Misuse(f"{self.path.name} is closed with {self._left} bytes missing")
        with disk_full(self.path):
            durable.sync(self._fd)
        os.close(self._fd)
        self._fd = -1
        return self._hash.hexdigest()

    def abandon(self) -> None:
        """Remove the unfinished file; after `close`, do nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abandon()

    def _put(self, data: memoryview) -> None:
        self._hash.update(data)
        self._left -= len(data)
        with disk_full(self.path):
            while len(data):
                data = data[os.write(self._fd, data) :]
        written = self.manifest.file_bytes - self._left
        if written - self._begun >= _WRITE_OUT:
            durable.begin_sync(self._fd, self._begun, written - self._begun)
            self._begun = written


def check_span(manifest: Manifest, name: str, start: int, stop: int, out: Floats) -> None:
    """Raises Misuse unless `out` can take elements [start, stop) of that tensor: contiguous float32, as many."""
    if not 0 <= start <= stop <= manifest.spec(name).elements or out.size != stop - start:
        raise Misuse(f"elements {start} to {stop} of {name!r} into a buffer of {out.size}")
    if out.dtype != _F32 or not out.flags.c_contiguous:
        raise Misuse(f"{name!r} is read into contiguous float32, not {out.dtype}")


def check_file(path: str | os.PathLike[str], manifest: Manifest) -> Checked:
    """Judge size and header, not values. Takes memory for a header of at most limits.HEADER.

    Raises Refused(SIZE_LIMIT, MALFORMED, NAME_MISMATCH, SHAPE_MISMATCH, DTYPE_MISMATCH).
    """
    with TensorFile(path, manifest):
        return Checked(manifest.file_bytes)


def check_values(path: str | os.PathLike[str], manifest: Manifest) -> float:
    """The L2 norm over the trainable tensors, in float64.

    Raises Refused(NONFINITE) naming the tensor, and what `check_file` raises.
    """
    with TensorFile(path, manifest) as file:
        values, buffer = Values(manifest), bytearray(limits.CHUNK)
        for start in range(0, manifest.file_bytes, limits.CHUNK):
            piece = memoryview(buffer)[: min(limits.CHUNK, manifest.file_bytes - start)]
            file.read_bytes(start, piece)
            values.take(piece)
    return values.norm


def write_tensors(
    path: str | os.PathLike[str], manifest: Manifest, arrays: Mapping[str, NDArray[Any]]
) -> str:
    """Write `arrays` (float32, shapes of the manifest) and return the file's hex SHA-256.

    Raises Refused(NAME_MISMATCH, DTYPE_MISMATCH, SHAPE_MISMATCH); nothing is cast.
    """
    check_names(arrays, {spec.name: spec for spec in manifest.specs})
    for spec in manifest.specs:
        array = arrays[spec.name]
        check_dtype(spec.name, "F32" if array.dtype == _F32 else str(array.dtype))
        check_same_shape(spec.name, array.shape, spec.shape)
    with TensorWriter(path, manifest) as writer:
        for spec in manifest.specs:
            writer.write(np.ascontiguousarray(arrays[spec.name]))
        return writer.close()


def read_tensors(path: str | os.PathLike[str], manifest: Manifest) -> dict[str, Floats]:
    """Every tensor of a canonical file, float32 in its shape. Raises Refused as `check_file` does."""
    arrays: dict[str, Floats] = {}
    with TensorFile(path, manifest) as file:
        for spec in manifest.specs:
            arrays[spec.name] = np.empty(spec.shape, _F32)
            file.read(spec.name, 0, spec.elements, arrays[spec.name])
    return arrays


def read_manifest(path: str | os.PathLike[str], roles: Mapping[str, Role] | None = None) -> Manifest:
    """The manifest of a canonical or any other all-F32 safetensors file.

    `roles` names every tensor's role; without it all are trainable. Raises Refused(SIZE_LIMIT, MALFORMED,
    DTYPE_MISMATCH, NAME_MISMATCH).
    """
    with _plain(path) as (_, _, slots):
        return _manifest_of(slots, roles)


def canonicalise(
    source: str | os.PathLike[str], target: str | os.PathLike[str], roles: Mapping[str, Role] | None = None
) -> tuple[Manifest, str]:
    """Rewrite any all-F32 safetensors file in canonical form, in 1 MiB pieces; its manifest and hex SHA-256.

    `roles` and what is raised: as `read_manifest`.
    """
    buffer = np.empty(_CHUNK_ELEMENTS, _F32)
    with _plain(source) as (fd, data_start, slots):
        manifest = _manifest_of(slots, roles)
        with TensorWriter(target, manifest) as writer:
            for spec in manifest.specs:
                for start in range(0, spec.elements, buffer.size):
                    piece = buffer[: min(buffer.size, spec.elements - start)]
                    offset = data_start + slots[spec.name].start + ITEM_BYTES * start
                    read_exactly(fd, offset, bytes_of(piece), Path(source))
                    writer.write(piece)
            return manifest, writer.close()


def _manifest_of(slots: Mapping[str, Slot], roles: Mapping[str, Role] | None) -> Manifest:
    if roles is not None:
        check_names(slots, roles)
    return Manifest(
        tuple(
            TensorSpec(name, slot.shape, "trainable" if roles is None else roles[name])
            for name, slot in slots.items()
        )
    )


@contextmanager
def _plain(path: str | os.PathLike[str]) -> Iterator[tuple[int, int, dict[str, Slot]]]:
    """A file descriptor, the offset of the data, and the slots of an all-F32 safetensors file."""
    fd = open_plain(Path(path), follow=True)
    try:
        total = os.fstat(fd).st_size
        header = _read_header(fd, total)
        slots = parse_slots(header[LENGTH_BYTES:])
        for name, slot in slots.items():
            check_dtype(name, slot.dtype)
        check_ranges(slots, total - len(header))
        yield fd, len(header), slots
    finally:
        os.close(fd)


def _read_header(fd: int, total: int) -> bytes:
    """Length and JSON, as many bytes as the file has. Raises Refused before reading a header above
    limits.HEADER.
    """
    length = declared_bytes(os.pread(fd, LENGTH_BYTES, 0), total)
    return os.pread(fd, LENGTH_BYTES + length, 0)
