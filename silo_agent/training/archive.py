"""A job's code as one canonical file, because its digest is what silos approve.

A plain ustar (POSIX.1-1988) of regular files in bytewise order of their names: mode 0644, owner 0, time 0, no
directories, ended by two zero blocks and nothing more. Equal folders have equal archives. The reader takes only this
form: it rebuilds every header and compares, so there is no second parser whose idea of a name could differ from ours.
"""

import contextlib
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from anabranch import durable
from anabranch.errors import Reason, Refused
from anabranch.wire import limits

FILES = 2_000  # in one archive (count)
BLOCK = 512  # bytes; ustar's unit
NAME_BYTES = 100  # the first of ustar's two name fields; one field, so that a name has one spelling

_END = bytes(2 * BLOCK)
_NAME = re.compile(r"[A-Za-z0-9_+@=,][A-Za-z0-9._+@=,-]*(/[A-Za-z0-9_+@=,][A-Za-z0-9._+@=,-]*)*")


def pack(folder: Path) -> bytes:
    """The archive of every file under `folder`, without `__pycache__`, `*.pyc` and names that start with a dot.

    Raises Refused(MALFORMED) for links, devices and names outside `[A-Za-z0-9._+@=,-]`, Refused(SIZE_LIMIT) above
    `FILES` files or limits.ARCHIVE bytes.
    """
    files = sorted(_files(folder), key=lambda pair: pair[0].encode())
    if len(files) > FILES:
        raise Refused(Reason.SIZE_LIMIT, f"{folder} has {len(files)} files; a job's code has at most {FILES}")
    size = sum(BLOCK + _padded(path.stat().st_size) for _, path in files) + len(_END)
    if size > limits.ARCHIVE:
        raise Refused(
            Reason.SIZE_LIMIT,
            f"{folder} packs to {size} bytes; a job's code has at most {limits.ARCHIVE}: keep data out of it",
        )
    return b"".join(_member(name, path.read_bytes()) for name, path in files) + _END


def unpack(data: bytes, destination: Path) -> None:
    """Write the files of an archive to the new folder `destination`, durably; files 0644, folders 0755.

    The folder appears at once and complete: killed before, a hidden `.<name>.*` is left beside it, which nothing
    reads. Everything is checked before the first file is written. Raises Refused(SIZE_LIMIT, MALFORMED);
    FileExistsError.
    """
    members = list(_members(data))
    if destination.exists():
        raise FileExistsError(f"{destination} exists; an archive is unpacked once")
    durable.make_dir(destination.parent)
    beside = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    try:
        beside.chmod(0o755)
        for name, content in members:
            (beside / name).parent.mkdir(parents=True, exist_ok=True)
            durable.write(beside / name, content, 0o644)
        for directory, _, _ in os.walk(beside):
            durable.sync_dir(directory)
        durable.rename(beside, destination)
    except BaseException:
        with contextlib.suppress(OSError):
            shutil.rmtree(beside)
        raise


def check(data: bytes) -> None:
    """That `unpack` would write these files. Raises Refused(SIZE_LIMIT, MALFORMED)."""
    for _ in _members(data):
        pass


def read(data: bytes, name: str) -> bytes:
    """One file of an archive, without unpacking it. Raises Refused(NOT_FOUND) and what `unpack` raises."""
    for found, content in _members(data):
        if found == name:
            return content
    raise Refused(Reason.NOT_FOUND, f"the archive has no file {name!r}")


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for entry in os.scandir(folder):
        if entry.name.startswith(".") or entry.name == "__pycache__" or entry.name.endswith(".pyc"):
            continue
        path = Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            yield from ((f"{entry.name}/{name}", inner) for name, inner in _files(path))
        elif entry.is_file(follow_symlinks=False):
            yield entry.name, path
        else:
            raise Refused(Reason.MALFORMED, f"{path} is a link or a special file; put a plain file there")


def _member(name: str, content: bytes) -> bytes:
    _check_name(name)
    return _header(name, len(content)) + content + bytes(_padded(len(content)) - len(content))


def _members(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and contents, checked one by one: take them all before acting on the first."""
    if len(data) > limits.ARCHIVE:
        raise Refused(Reason.SIZE_LIMIT, f"an archive of {len(data)} bytes; at most {limits.ARCHIVE}")
    position, previous, seen = 0, b"", set[str]()
    while data[position : position + BLOCK] not in (_END[:BLOCK], b""):
        name, size = _parse_header(data[position : position + BLOCK])
        if len(seen) == FILES:
            raise Refused(Reason.SIZE_LIMIT, f"an archive of more than {FILES} files")
        if name.encode() <= previous:
            raise Refused(Reason.MALFORMED, f"archive: {name!r} is repeated or out of order")
        _check_place(name, seen)
        start, stop = position + BLOCK, position + BLOCK + size
        position = start + _padded(size)
        if position > len(data) or any(data[stop:position]):
            raise Refused(Reason.MALFORMED, f"archive: {name!r} is cut short or its padding is not zero")
        previous = name.encode()
        yield name, data[start:stop]
    if data[position:] != _END:
        raise Refused(Reason.MALFORMED, "archive: it does not end with exactly two zero blocks")


def _parse_header(block: bytes) -> tuple[str, int]:
    """Name and size of a member. What is read here is believed only since writing it again gives `block`."""
    try:
        name = block[:NAME_BYTES].rstrip(b"\0").decode("ascii")
        size = int(block[124:135], 8)
    except ValueError:
        raise Refused(Reason.MALFORMED, "archive: a header is not a ustar header of a plain file") from None
    _check_name(name)
    if size < 0:
        raise Refused(Reason.MALFORMED, f"archive: {name!r} declares {size} bytes")
    if size > limits.ARCHIVE:
        raise Refused(Reason.SIZE_LIMIT, f"archive: {name!r} declares {size} bytes; at most {limits.ARCHIVE}")
    if _header(name, size) != block:
        raise Refused(
            Reason.MALFORMED,
            f"archive: {name!r} is not a plain file of mode 0644, owner 0 and time 0; pack it with this platform",
        )
    return name, size


def _check_name(name: str) -> None:
    """A relative path of ordinary characters: no `..`, no leading slash, dot or hyphen, nothing a shell would
    expand."""
    if len(name) > NAME_BYTES or not _NAME.fullmatch(name):
        raise Refused(
            Reason.MALFORMED,
            f"{name[:200]!r} cannot be in an archive: letters, digits and ._+@=,- only, at most {NAME_BYTES}",
        )


def _check_place(name: str, seen: set[str]) -> None:
    """Refuse a name below a file. A file always sorts before the names below it."""
    for folder in PurePosixPath(name).parents:
        if str(folder) in seen:
            raise Refused(Reason.MALFORMED, f"archive: {str(folder)!r} is both a file and a folder")
    seen.add(name)


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
