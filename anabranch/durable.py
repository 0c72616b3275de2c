"""Files that survive power loss: the order of system calls that makes a small file either old or new, never
torn.

A rename is atomic but not durable, and a name may reach the disk before the bytes it names. So: write beside,
sync the bytes, rename, sync the directory. Callers may tell anyone about the file after the call returns, not
before.
"""

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from anabranch.errors import Unavailable

# A disk that is full or was mounted read-only: no bug, and over once somebody has acted.
UNWRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})

# Python has no binding for these two of Linux.
_libc = ctypes.CDLL(None, use_errno=True)
_sync_file_range = getattr(_libc, "sync_file_range", None)
_fallocate = getattr(_libc, "fallocate", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
if _fallocate is not None:
    _fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

StrPath = str | os.PathLike[str]

_syncs = True


@contextlib.contextmanager
def forgettable() -> Iterator[None]:
    """Within, in the whole process, `sync` and `sync_dir` do nothing: for a simulation, whose files nobody needs later."""
    global _syncs
    before, _syncs = _syncs, False
    try:
        yield
    finally:
        _syncs = before


def write(path: StrPath, data: bytes, mode: int = 0o644) -> None:
    """Replace `path` by `data`, durably, with exactly the permission bits `mode`.

    Killed before the rename: the old content stands, and a file `.<name>.<random>.tmp` is left beside it,
    which nothing reads. Killed after: old or new, whole. Raises Unavailable when the disk is full or
    read-only; the old content stands.
    """
    target = Path(path)
    try:
        _write_beside_and_rename(target, data, mode)
    except OSError as error:
        if error.errno in UNWRITABLE:
            raise Unavailable(f"{target}: {error.strerror}; make it writable again, then retry") from error
        raise
    sync_dir(target.parent)


def make_dir(path: StrPath, mode: int = 0o755) -> None:
    """Create `path` and its missing parents, each durable in its own parent; `mode` is subject to the umask.

    An existing directory keeps its mode and is synced again: whoever made it may have died before doing so.
    """
    directory = Path(path)
    if not directory.parent.is_dir():
        make_dir(directory.parent, mode)
    directory.mkdir(mode, exist_ok=True)
    sync_dir(directory.parent)


def rename(src: StrPath, dst: StrPath) -> None:
    """Move `src` to `dst`, replacing it, durably. The content of `src` must have been synced before.

    The destination's directory is synced first: killed between the two, both names may exist, but never
    neither.
    """
    source, target = Path(src), Path(dst)
    os.rename(source, target)
    sync_dir(target.parent)
    if source.parent != target.parent:
        sync_dir(source.parent)


def remove(path: StrPath) -> None:
    """Delete the file `path`, durably. A file that is already gone is no error: the step may be a repeated
    one.
    """
    target = Path(path)
    target.unlink(missing_ok=True)
    sync_dir(target.parent)


def sync(fd: int) -> None:
    """Put the bytes of an open file on stable storage (fdatasync: with its size, without its times)."""
    if _syncs:
        os.fdatasync(fd)


def reserve(fd: int, size: int) -> None:
    """Take room on the disk for `size` bytes of an open file without making it longer. Raises OSError (ENOSPC, EDQUOT).

    Besides an early answer this keeps small files quick: on ext4 their sync waits for the data of every file that has
    been given new blocks meanwhile, and this one needs none. Nothing happens where the file system has no such call.
    """
    if size and _fallocate is not None and _fallocate(fd, 1, 0, size):  # FALLOC_FL_KEEP_SIZE
        number = ctypes.get_errno()
        os.ftruncate(fd, os.fstat(fd).st_size)  # a disk that became full on the way gets its room back
        if number in UNWRITABLE:
            raise OSError(number, os.strerror(number))


def begin_sync(fd: int, offset: int, size: int) -> None:
    """Have the kernel begin to write these bytes out, without waiting, so that a later `sync` has less to wait for.

    It promises nothing, and does nothing where the system has no sync_file_range.
    """
    if _sync_file_range is not None:
        _sync_file_range(fd, offset, size, 2)  # SYNC_FILE_RANGE_WRITE


def sync_dir(path: StrPath) -> None:
    """Put the names in the directory `path` on stable storage."""
    if not _syncs:
        return
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_beside_and_rename(target: Path, data: bytes, mode: int) -> None:
    # A random name, so that two writers of one path cannot tear each other's file; 0600 until `mode` is set.
    beside = f"{target.parent}/.{target.name}.{os.urandom(8).hex()}.tmp"
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(fd, mode)
            os.fsync(fd)
        os.rename(beside, target)
    except BaseException:
        # After a failed fsync the kernel may have dropped the dirty pages: the only safe retry is a new file.
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise
