"""A tensor file on its way in: resumable, hashed while it arrives, judged before it becomes a blob."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anabranch import durable
from anabranch.errors import Reason, Refused, Unavailable
from anabranch.wire import limits
from anabranch.wire.values import Bytes
from server.gaps import Gap, Reached
from server.judging import Judge

WRITE_OUT = 8 * limits.MIB  # bytes after which the disk begins to work: little is left to sync at the end


@dataclass
class SpoolFile:
    """`size` bytes with SHA-256 `digest` are announced; `offset` have arrived. One stream at a time, not thread-safe.

    Opening it at an offset above 0 hashes what an earlier stream left. Raises Refused(DIGEST_MISMATCH) where there is
    less than that.
    """

    path: Path
    size: int
    digest: str
    judge: Judge
    offset: int
    reached: Reached
    _hash: Any = field(default_factory=hashlib.sha256)
    _fd: int = -1
    _dirty: int = 0
    _resumed: bool = False

    def __post_init__(self) -> None:
        with _storing():
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        if self.offset > os.fstat(self._fd).st_size:
            self.close()
            raise Refused(
                Reason.DIGEST_MISMATCH, f"cannot resume at {self.offset}: ask UploadStatus where to resume"
            )
        self._resumed = self.offset > 0
        os.ftruncate(self._fd, self.offset)
        try:
            with _storing():
                durable.reserve(self._fd, self.size)
        except Unavailable:
            self.close()
            raise
        try:
            for start in range(0, self.offset, limits.CHUNK):
                self._take(os.pread(self._fd, min(limits.CHUNK, self.offset - start), start))
        except Refused as error:
            raise self._start_over() from error

    def append(self, chunk: Bytes) -> None:
        """Write the next bytes. Raises Refused when there are more than announced, Unavailable on a full disk."""
        if self.offset + len(chunk) > self.size:
            raise Refused(Reason.SIZE_LIMIT, f"more than the {self.size} announced bytes arrived")
        _write(self._fd, chunk, self.offset)
        self.offset += len(chunk)
        self._take(chunk)
        self._dirty += len(chunk)
        if self._dirty >= WRITE_OUT:
            durable.begin_sync(self._fd, self.offset - self._dirty, self._dirty)
            self._dirty = 0
            self.reached(Gap.SPOOLED)

    def _take(self, chunk: Bytes) -> None:
        """Hash it, and refuse what is wrong as soon as it can be told."""
        self._hash.update(chunk)
        self.judge.take(chunk)

    def require_intact_prefix(self) -> None:
        """After a resume, what an earlier stream left may be at fault, so the silo is asked once to send everything.

        Raises Refused(DIGEST_MISMATCH), which nobody records.
        """
        if self._resumed and self._hash.hexdigest() != self.digest:
            raise self._start_over()

    def check(self) -> float:
        """The L2 norm over trainable tensors of a complete, well-formed, finite file. Raises Refused otherwise."""
        if self.offset != self.size:
            raise Refused(Reason.SIZE_LIMIT, f"{self.size} bytes were announced, {self.offset} arrived")
        if self._hash.hexdigest() != self.digest:
            raise Refused(Reason.DIGEST_MISMATCH, "the bytes differ from the digest they were announced by")
        return self.judge.norm(self.path)

    def _start_over(self) -> Refused:
        self.discard()
        return Refused(
            Reason.DIGEST_MISMATCH,
            f"what was kept of {self.digest[:12]}… does not fit its digest; send it from 0",
        )

    def suspend(self) -> None:
        """The stream broke: keep what arrived, so that the silo resumes behind it."""
        with _storing():
            durable.sync(self._fd)
        self.close()

    def discard(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def synced_bytes(path: Path) -> int:
    """How much of a spool file there is; what is there is on stable storage when this returns."""
    try:
        with open(path, "rb") as file:
            durable.sync(file.fileno())
            return os.fstat(file.fileno()).st_size
    except FileNotFoundError:  # nothing has come, or all of it has and is being decided
        return 0


def _write(fd: int, chunk: Bytes, offset: int) -> None:
    """All of `chunk` at `offset`. Raises Unavailable when the disk is full; what was written before stays resumable."""
    view = memoryview(chunk)
    with _storing():
        while view:
            written = os.pwrite(fd, view, offset)
            view, offset = view[written:], offset + written


@contextmanager
def _storing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable(f"the server could not store the update: {error.strerror}") from error
