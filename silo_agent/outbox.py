"""Finished updates that the server has not proven to hold yet.

An update enters whole and signed, before the first byte is sent, and leaves when its receipt has been verified. A
signed update is never made twice: its id, digest and signature are fixed here, so every attempt to send it, by this
process or by the next one, is the same update to the server.
"""

import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from anabranch import durable
from anabranch.errors import Corrupt, Reason, Refused, wording
from anabranch.link import Packing
from anabranch.wire import dsse, limits, statements
from anabranch.wire.packed import pack
from anabranch.wire.statements import UpdateStatement
from anabranch.wire.tensors import Manifest, TensorFile
from silo_agent.feedback import REMAINDER, Feedback

_DELTA = "delta.safetensors"
_ENVELOPE = "envelope.json"
_REFUSAL = "refusal.json"


@dataclass(frozen=True)
class Pending:
    """One update on stable storage: its signed statement and, beside it, the delta it names."""

    directory: Path
    envelope: bytes
    statement: UpdateStatement

    @property
    def delta(self) -> Path:
        return self.directory / _DELTA


@dataclass(frozen=True)
class Adopted:
    """A synced private copy of what a training process wrote; not signed yet."""

    path: Path
    sha256: str
    bytes: int


class Outbox:
    """A directory of updates, one directory each, named by the update's id. Safe for one thread per job."""

    def __init__(self, directory: Path) -> None:
        durable.make_dir(directory, 0o700)
        self._directory = directory
        for leftover in directory.glob(".*"):
            # Killed before its last rename: never sent, its lease is still open, training makes it again.
            shutil.rmtree(leftover)

    def adopt(self, update: str, source: Path, size: int) -> Adopted:
        """Copy what a training process wrote into a new, private entry of exactly `size` bytes.

        Raises Refused(MALFORMED, SIZE_LIMIT), FileNotFoundError.

        A copy, because the process may keep the file open and write to it after it has been checked and signed.
        """
        forming = self._forming(update)
        durable.make_dir(forming, 0o700)
        with open(forming / _DELTA, "xb") as target:
            digest = _copy(source, target, size)
            target.flush()
            durable.sync(target.fileno())
        return Adopted(forming / _DELTA, digest, size)

    def pack(
        self, adopted: Adopted, manifest: Manifest, packing: Packing, feedback: Feedback | None = None
    ) -> Adopted:
        """The adopted entry as it is to travel, in its place. Killed inside: as in `adopt`.

        With `feedback` no other update of the job may be on its way, or both take the same remainder along. Raises Corrupt.
        """
        packed = adopted.path.with_suffix(".packed")
        if feedback is None:
            with TensorFile(adopted.path, manifest) as file:
                digest, size = pack(file, manifest, packing, packed)
        else:
            digest, size = feedback.pack(adopted.path, manifest, packing, packed)
        durable.rename(packed, adopted.path)
        return Adopted(adopted.path, digest, size)

    def put(self, envelope: bytes) -> Pending:
        """Complete an adopted entry by its signed statement. Only what has been put may be sent.

        Killed before the rename: the update was never sent and its lease is still open, so the cycle is done again.
        Killed after it: the update is sent at the next start.
        """
        statement = statements.parse_update(dsse.parse_envelope(envelope).payload)
        forming = self._forming(statement.update)
        durable.write(forming / _ENVELOPE, envelope, 0o600)
        durable.rename(forming, self._directory / statement.update)
        return self._read(self._directory / statement.update)

    def discard(self, update: str) -> None:
        """Drop an entry that was adopted and will not be put."""
        shutil.rmtree(self._forming(update), ignore_errors=True)

    def _forming(self, update: str) -> Path:
        return self._directory / f".{update}"

    def pending(self, job: str) -> Iterator[Pending]:
        """This job's updates in the order they were signed. Raises Corrupt when one cannot be read back."""
        yield from sorted(
            (p for p in self._all() if p.statement.job == job), key=lambda p: p.statement.sequence
        )

    def jobs(self) -> set[str]:
        """Jobs that still have something here, ended ones included."""
        return {pending.statement.job for pending in self._all()}

    def _all(self) -> Iterator[Pending]:
        for path in self._directory.iterdir():
            try:
                if not path.name.startswith("."):
                    yield self._read(path)
            except Corrupt:
                if path.exists():
                    raise
                # Otherwise forgotten by another thread while we looked.

    def settle(self, pending: Pending, folder: Path) -> None:
        """The server has accepted it: what it left out is now the job's, whose folder this is.

        Once, by whoever comes first. Killed after it and before `forget`: there is nothing left to settle.
        """
        with suppress(FileNotFoundError):
            durable.rename(pending.directory / REMAINDER, folder / REMAINDER)

    def forget(self, pending: Pending) -> None:
        """After a verified receipt. Killed before the rename: sent again, answered with its first receipt."""
        leaving = self._forming(pending.directory.name)
        with suppress(FileNotFoundError):  # another thread has sent and forgotten it too
            durable.rename(pending.directory, leaving)
            shutil.rmtree(leaving)

    def set_aside(self, pending: Pending, refusal: Refused, kept: Path) -> Path:
        """Keep what was signed and why the server would not take it, without the delta, under `kept`.

        Killed half-way: the update is still here and is refused again.
        """
        durable.make_dir(kept, 0o700)
        record = kept / pending.directory.name
        durable.make_dir(record, 0o700)
        durable.write(record / _ENVELOPE, pending.envelope, 0o600)
        reason = {"code": refusal.code.value, "message": str(refusal)}
        durable.write(record / _REFUSAL, json.dumps(reason).encode(), 0o600)
        self.forget(pending)
        return record

    def _read(self, directory: Path) -> Pending:
        try:
            envelope = (directory / _ENVELOPE).read_bytes()
            statement = statements.parse_update(dsse.parse_envelope(envelope).payload)
            size = os.stat(directory / _DELTA).st_size
        except (OSError, Refused) as error:
            raise Corrupt(
                f"outbox entry {directory} cannot be read: {wording(error)}; restore it or move it away"
            ) from error
        if size != statement.bytes:
            raise Corrupt(
                f"{directory / _DELTA} has {size} bytes, its signed statement says {statement.bytes}"
            )
        return Pending(directory, envelope, statement)


def _copy(source: Path, target: BinaryIO, size: int) -> str:
    """Copy exactly `size` bytes and return their hex SHA-256; no link is followed, no pipe is waited for."""
    digest = hashlib.sha256()
    fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise Refused(Reason.MALFORMED, f"{source.name} is no regular file")
        left = size
        while left and (chunk := file.read(min(left, limits.CHUNK))):
            digest.update(chunk)
            target.write(chunk)
            left -= len(chunk)
        if left or file.read(1):
            raise Refused(Reason.SIZE_LIMIT, f"{source.name} has {found.st_size} bytes instead of {size}")
    return digest.hexdigest()


def next_sequence(job_directory: Path) -> int:
    """The next number of this silo's updates in one job. Killed after this: a number is skipped, none is reused."""
    path = job_directory / "sequence"
    try:
        text = path.read_text("ascii")
        if not re.fullmatch(r"[0-9]{1,15}\n?", text):
            raise ValueError(text)
        number = int(text) + 1
    except FileNotFoundError:
        number = 0
    except ValueError as error:
        raise Corrupt(f"{path} does not hold a number; write the last used sequence into it") from error
    durable.write(path, b"%d\n" % number)
    return number
