"""Files of tensors as the disk gives them: opened warily, read by position, and a full disk told from a fault."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch import durable
from anabranch.errors import Corrupt, Reason, Refused, Unavailable


@contextmanager
def disk_full(path: Path) -> Iterator[None]:
    """Raises Unavailable where the system says that `path` cannot be written."""
    try:
        yield
    except OSError as error:
        if error.errno in durable.UNWRITABLE:
            raise Unavailable(f"{path.name}: {error.strerror}; make room for it, then retry") from error
        raise


def open_plain(path: Path, *, follow: bool = False) -> int:
    """A file a job's code may have made: no link is followed into the site, no pipe is waited for.

    Raises Refused(MALFORMED) for anything but a regular file.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW))
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Refused(Reason.MALFORMED, f"{path.name} is a link, not a tensor file") from error
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Refused(Reason.MALFORMED, f"{path.name} is not a regular file")
    return fd


def bytes_of(values: NDArray[Any]) -> memoryview:
    return values.reshape(-1).view(np.uint8).data


def read_exactly(fd: int, offset: int, view: memoryview, path: Path) -> None:
    """Fill `view` from `offset` on. Raises Corrupt when the file ends before."""
    while len(view):
        count = os.preadv(fd, [view], offset)
        if not count:
            raise Corrupt(f"{path.name} became shorter while it was read; fetch or restore it")
        view, offset = view[count:], offset + count
