"""Packed files: a version or an update of which only the largest elements travel, rounded.

The bytes are those of docs/packed-files.md: a header that the manifest gives byte for byte, the length of each block,
the blocks. A block is at most BLOCK elements of one tensor, so files are written, read and judged in the memory of one
block and of the table of lengths, which has 4 bytes for 256 KiB of tensors.
"""

import hashlib
import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from anabranch import durable
from anabranch.errors import Reason, Refused
from anabranch.link import Packing, Values
from anabranch.rules.packing import (
    BLOCK,
    InChunks,
    Kept,
    Selection,
    Threshold,
    decode,
    encode,
    most_block,
    most_blocks,
    parse,
    threshold,
)
from anabranch.rules.step import TensorReader
from anabranch.wire import canonical, limits
from anabranch.wire.blocks import Block, blocks, blocks_of, count_blocks, first_blocks, pieces
from anabranch.wire.files import bytes_of, disk_full, open_plain, read_exactly
from anabranch.wire.manifest import ITEM_BYTES, Manifest, TensorSpec
from anabranch.wire.tensors import TensorFile, TensorWriter, check_span

MAGIC: Final = b"anabrpk1"

_F32 = np.dtype("<f4")
_LENGTH = np.dtype("<u4")  # of the header's JSON, and of each block
_WRITE_OUT: Final = 8 * limits.MIB  # bytes after which the disk begins to work
_NOTHING: Final = Kept(np.empty(0, np.int64), np.empty(0, _F32))
Floats = NDArray[np.float32]


def header(manifest: Manifest, values: Values) -> bytes:
    """The first bytes of every packed file of this manifest with such values, up to the lengths of its blocks."""
    text = canonical.encode(
        {"blocks": count_blocks(manifest.specs), "manifest": manifest.digest(), "values": values}
    )
    text += b" " * (-len(text) % 8)
    return MAGIC + len(text).to_bytes(_LENGTH.itemsize, "little") + text


def most_bytes(manifest: Manifest, packing: Packing) -> int:
    """No packed file of this manifest is larger: what to reserve, and to admit before any of its bytes have come."""
    trainable = sum(spec.elements for spec in manifest.trainable())
    buffers = sum(spec.bytes for spec in manifest.specs if spec.role == "buffer")
    table = _LENGTH.itemsize * count_blocks(manifest.specs)
    of_trainable = most_blocks(
        trainable, count_blocks(manifest.trainable()), _kept(manifest, packing), packing.values
    )
    return len(header(manifest, packing.values)) + table + buffers + of_trainable


def pack(
    source: TensorReader, manifest: Manifest, packing: Packing, path: str | os.PathLike[str]
) -> tuple[str, int]:
    """Write `source` packed to `path`, synced; the file's hex SHA-256 and its bytes.

    `source` is read three times, up to five where a sample of it misleads; once if all of it may be kept, or if chunks
    are ranked by themselves. If the process dies, what is at `path` has no header or is unsynced: write to a temporary
    name and rename it. Raises Refused(NONFINITE) naming the tensor, if a value to be written is not finite, and
    Unavailable when the disk is full; the file is removed then.
    """
    kept = _selection(source, manifest, packing)
    with _Writer(Path(path), manifest, packing) as writer:
        for block, piece in pieces(source, manifest.specs):
            with _naming(block.tensor):
                if block.tensor.role == "buffer":
                    _check_finite(piece)
                    writer.write(bytes_of(piece))
                else:
                    writer.write(memoryview(encode(piece, kept.mask(piece), packing.values)))
        return writer.close()


def is_packed(path: str | os.PathLike[str]) -> bool:
    """By its first bytes; the rest is not judged."""
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def expand(
    path: str | os.PathLike[str], manifest: Manifest, values: Values, target: str | os.PathLike[str]
) -> str:
    """Write the packed file at `path` as a dense canonical file to `target`; that file's hex SHA-256.

    Raises what `PackedFile` raises, and Unavailable when the disk is full.
    """
    with PackedFile(path, manifest, values) as file, TensorWriter(target, manifest) as writer:
        for _, piece in pieces(file, manifest.specs):
            writer.write(piece)
        return writer.close()


def check_packed(path: str | os.PathLike[str], manifest: Manifest, packing: Packing) -> float:
    """Every block judged: `pack` could have written them. The L2 norm over the trainable tensors, in float64.

    Raises Refused(MALFORMED, SIZE_LIMIT, NONFINITE), naming the tensor where one is to blame.
    """
    most = _kept(manifest, packing)
    left, squares = most, 0.0
    chunks = None if packing.chunk is None else InChunks(packing)
    with PackedFile(path, manifest, packing.values) as file:
        for block in blocks(manifest.specs):
            found = file.found(block)
            if block.tensor.role == "buffer":
                continue
            left -= found.values.size
            squares += float(np.add.reduce(np.square(found.values, dtype=np.float64)))
            if left < 0:
                raise Refused(
                    Reason.SIZE_LIMIT, f"more than {most} elements of the trainable tensors are kept"
                )
            if chunks is not None and chunks.crowded(found, block.elements):
                name = block.tensor.name
                raise Refused(Reason.SIZE_LIMIT, f"tensor {name!r}: a chunk keeps more than its largest")
    return math.sqrt(squares)


class PackedFile:
    """A packed file, its header and table of lengths checked on opening; readable from several threads at once.

    Raises Refused(MALFORMED, SIZE_LIMIT): before memory is taken for anything but header and table, whose sizes the manifest
    gives, no block is longer than it may be. Raises Corrupt when the file becomes shorter while open.
    """

    def __init__(self, path: str | os.PathLike[str], manifest: Manifest, values: Values) -> None:
        self.path = Path(path)
        self.manifest = manifest
        self.values = values
        self._first = first_blocks(manifest)
        self._cache = threading.local()
        self._fd = open_plain(self.path)
        try:
            self._offsets = self._check_layout()
        except BaseException:
            os.close(self._fd)
            raise

    def read(self, name: str, start: int, stop: int, out: Floats) -> None:
        """As `TensorFile.read`. Raises Refused(MALFORMED, NONFINITE) naming the tensor, for a block that it reads of.

        Of a block that is read in parts the last one stays decoded, for each thread.
        """
        check_span(self.manifest, name, start, stop, out)
        tensor, flat = self.manifest.spec(name), out.reshape(-1)
        if tensor.role == "buffer":
            offset = int(self._offsets[self._first[name]]) + ITEM_BYTES * start if out.size else 0
            read_exactly(self._fd, offset, bytes_of(out), self.path)
            return
        for block in blocks_of(tensor, self._first[name], start, stop):
            low, high = max(start, block.start), min(stop, block.stop)
            part = flat[low - start : high - start]
            if part.size == block.elements:
                self._decode(block, part)
            else:
                part[:] = self._decoded(block)[low - block.start : high - block.start]

    def found(self, block: Block) -> Kept:
        """What one block does not leave out. Raises as `read`, and also for a buffer that is not finite."""
        data = self._bytes(block)
        with _naming(block.tensor):
            if block.tensor.role == "buffer":
                values = np.frombuffer(data, _F32)
                _check_finite(values)
                return Kept(slice(None), values)
            return parse(data, self.values, block.elements) if data else _NOTHING

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_layout(self) -> NDArray[np.int64]:
        """Where each block begins, and at last where the file ends."""
        expected, total = header(self.manifest, self.values), os.fstat(self._fd).st_size
        most = _block_bounds(self.manifest, self.values)
        lengths = np.empty(most.size, _LENGTH)
        begin = len(expected) + lengths.nbytes
        if total < begin:
            raise _malformed(f"{total} bytes, its header alone has {begin}: truncated")
        found = bytearray(len(expected))
        read_exactly(self._fd, 0, memoryview(found), self.path)
        if found != expected:
            raise _malformed("another header than that of the job's tensors, or not in canonical form")
        read_exactly(self._fd, len(expected), bytes_of(lengths), self.path)
        if (lengths > most).any():
            raise Refused(Reason.SIZE_LIMIT, "a block is longer than any of so many elements")
        offsets = np.cumsum(np.concatenate([[begin], lengths]), dtype=np.int64)
        if offsets[-1] != total:
            raise _malformed(f"{total} bytes, its blocks end at {offsets[-1]}: truncated or extended")
        for spec in self.manifest.specs:
            first = self._first[spec.name]
            after = first + count_blocks((spec,))
            if spec.role == "buffer" and offsets[after] - offsets[first] != spec.bytes:
                raise _malformed(f"tensor {spec.name!r}: {offsets[after] - offsets[first]} bytes of a buffer")
        return offsets

    def _bytes(self, block: Block) -> memoryview:
        begin, end = (int(offset) for offset in self._offsets[block.number : block.number + 2])
        data = memoryview(bytearray(end - begin))
        read_exactly(self._fd, begin, data, self.path)
        return data

    def _decode(self, block: Block, out: Floats) -> None:
        data = self._bytes(block)
        with _naming(block.tensor):
            decode(data, self.values, out)

    def _decoded(self, block: Block) -> Floats:
        number, whole = getattr(self._cache, "last", (-1, np.empty(0, _F32)))
        if number != block.number:
            whole = np.empty(block.elements, _F32)
            self._decode(block, whole)
            self._cache.last = block.number, whole
        return whole


def open_tensors(
    path: str | os.PathLike[str], manifest: Manifest, packing: Packing | None
) -> TensorFile | PackedFile:
    """A file that travelled, or one that never does (`packing` None). Raises as they do."""
    if packing is None:
        return TensorFile(path, manifest)
    return PackedFile(path, manifest, packing.values)


class _Writer:
    """Blocks in order, then what stands before them: their lengths are known only then, and so is the hash."""

    def __init__(self, path: Path, manifest: Manifest, packing: Packing) -> None:
        self.path = path
        self._header = header(manifest, packing.values)
        self._lengths = np.zeros(count_blocks(manifest.specs), _LENGTH)
        self._done = 0  # blocks
        self._end = len(self._header) + self._lengths.nbytes
        self._begun = self._end  # bytes the disk has been told to write
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(path, flags, 0o644)
        try:
            with disk_full(path):
                durable.reserve(self._fd, most_bytes(manifest, packing))
        except BaseException:
            self.abandon()
            raise

    def write(self, block: memoryview) -> None:
        self._put(block, self._end)
        self._lengths[self._done] = len(block)
        self._done += 1
        self._end += len(block)
        if self._end - self._begun >= _WRITE_OUT:
            durable.begin_sync(self._fd, self._begun, self._end - self._begun)
            self._begun = self._end

    def close(self) -> tuple[str, int]:
        self._put(memoryview(self._header), 0)
        self._put(bytes_of(self._lengths), len(self._header))
        os.ftruncate(self._fd, self._end)  # gives back what was reserved and not needed
        with disk_full(self.path):
            durable.sync(self._fd)
        digest = self._hash()
        os.close(self._fd)
        self._fd = -1
        return digest, self._end

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

    def _put(self, data: memoryview, offset: int) -> None:
        with disk_full(self.path):
            while len(data):
                count = os.pwrite(self._fd, data, offset)
                data, offset = data[count:], offset + count

    def _hash(self) -> str:
        found, buffer = hashlib.sha256(), memoryview(bytearray(limits.CHUNK))
        for start in range(0, self._end, limits.CHUNK):
            piece = buffer[: min(limits.CHUNK, self._end - start)]
            read_exactly(self._fd, start, piece, self.path)
            found.update(piece)
        return found.hexdigest()


def _kept(manifest: Manifest, packing: Packing) -> int:
    return packing.most(spec.elements for spec in manifest.trainable())


def _selection(source: TensorReader, manifest: Manifest, packing: Packing) -> Selection | InChunks:
    if packing.density == 1:
        return Selection(Threshold(0, 0))  # all but exact zeros
    if packing.chunk is not None:
        return InChunks(packing)
    trainable, most = manifest.trainable(), _kept(manifest, packing)
    return Selection(threshold(lambda: (piece for _, piece in pieces(source, trainable)), most))


def _block_bounds(manifest: Manifest, values: Values) -> NDArray[np.int64]:
    """The most bytes of each block."""
    bounds: list[int] = []
    for spec in manifest.specs:
        rest = spec.elements % BLOCK
        for elements, count in ((BLOCK, spec.elements // BLOCK), (rest, min(rest, 1))):
            most = ITEM_BYTES * elements if spec.role == "buffer" else most_block(elements, values)
            bounds += [most] * count
    return np.array(bounds, np.int64)


def _check_finite(values: Floats) -> None:
    if not np.isfinite(values).all():
        raise Refused(Reason.NONFINITE, "NaN or infinite")


@contextmanager
def _naming(tensor: TensorSpec) -> Iterator[None]:
    try:
        yield
    except Refused as error:
        raise Refused(error.code, f"tensor {tensor.name!r}: {error}") from error


def _malformed(what: str) -> Refused:
    return Refused(Reason.MALFORMED, f"not a packed file of these tensors: {what}")
