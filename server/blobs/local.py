"""Blobs on a local disk, named by SHA-256.

A blob is written to the spool, synced, renamed into place, and the directory synced: whoever holds its digest after
`adopt` or `put` returned may commit it, and the bytes survive power loss. A blob that no transaction names (the
process died in between) is harmless: the same content lands on the same name.
"""

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from anabranch import durable
from anabranch.errors import Corrupt, Unavailable

HEADROOM = 64 * 1024 * 1024  # bytes kept free for the database and the log


@dataclass(frozen=True)
class BlobStore:
    """`root/<first two hex digits>/<digest>`, and `root/spool/` for what is still arriving."""

    root: Path

    def prepare(self) -> None:
        """Create the directories once, so that no later write has to sync a parent's parent."""
        self.root.mkdir(parents=True, exist_ok=True)
        wanted = {"spool", *(f"{i:02x}" for i in range(256))}
        for name in wanted.difference(os.listdir(self.root)):
            (self.root / name).mkdir()
        durable.sync_dir(self.root)

    def path(self, digest: str) -> Path:
        return self.root.joinpath(digest[:2], digest)

    def require(self, digest: str) -> Path:
        """The path of a blob that must be there. Raises Corrupt when it is not."""
        path = self.path(digest)
        if not path.exists():
            raise Corrupt(
                f"blob {digest} is missing from {self.root}; restore it from a backup before serving"
            )
        return path

    def intact(self, digest: str) -> Path:
        """The path of a blob that still has the content its name promises, however large. Raises Corrupt."""
        path = self.require(digest)
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != digest:
            raise Corrupt(f"{path} does not have the content its name promises; restore it from a backup")
        return path

    def spool(self, name: str | None = None) -> Path:
        """A file to write into: a fresh one, or the resumable one called `name`."""
        return self.root / "spool" / (name or uuid.uuid4().hex)

    def adopt(self, spooled: Path, digest: str) -> None:
        """Make a finished, already hashed spool file the blob `digest`; durable on return."""
        with _room():
            with open(spooled, "rb") as file:
                durable.sync(file.fileno())
            os.rename(spooled, self.path(digest))
            durable.sync_dir(self.path(digest).parent)

    def put(self, data: bytes) -> str:
        """Store small content; return its digest; durable on return."""
        digest = hashlib.sha256(data).hexdigest()
        if self.path(digest).exists():
            durable.sync_dir(self.path(digest).parent)  # whoever renamed it may not have come so far
            return digest
        spooled = self.spool()
        try:
            with _room():
                spooled.write_bytes(data)
            self.adopt(spooled, digest)
        except BaseException:
            spooled.unlink(missing_ok=True)
            raise
        return digest

    def read(self, digest: str) -> bytes:
        """Small content, checked against its name. Raises Corrupt."""
        data = self.require(digest).read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            raise Corrupt(f"blob {digest} does not have the content its name promises")
        return data

    def reserve(self, needed: int) -> None:
        """Refuse work the disk cannot hold. Raises Unavailable."""
        free = shutil.disk_usage(self.root).free
        if free < needed + HEADROOM:
            raise Unavailable(
                f"the server's disk has {free >> 20} MiB left; {needed >> 20} MiB more are needed"
            )

    def holds(self, digest: str) -> bool:
        return self.path(digest).exists()

    def set_aside(self, digest: str) -> Path | None:
        """Take a blob out of its place, in no time whatever its size; the caller unlinks what is returned.

        Dies here: it lies in the spool as something unfinished, and the next start removes it.
        """
        aside = self.spool()
        try:
            os.rename(self.path(digest), aside)
        except FileNotFoundError:
            return None
        return aside

    def shelf(self, prefix: str) -> list[str]:
        """Digests of the blobs whose first two digits are `prefix`."""
        return os.listdir(self.root / prefix)

    def spooled(self, prefix: str = "") -> list[Path]:
        """What is still arriving, or was left behind."""
        spool = self.root / "spool"
        return [spool / name for name in os.listdir(spool) if name.startswith(prefix)]


@contextmanager
def _room() -> Iterator[None]:
    """A full or read-only disk is no bug. Raises Unavailable."""
    try:
        yield
    except OSError as error:
        if error.errno in durable.UNWRITABLE:
            raise Unavailable(
                f"the server could not store it: {error.strerror}; retry when its operator has seen to the disk"
            ) from error
        raise
