"""The checkpoint register: the newest signed checkpoint, in a file of its own.

It is kept apart from the database so that restoring an old database cannot silently fork the log: the register then
names a larger tree than the database holds, and the server refuses to serve. It moves by compare-and-swap, after the
commit and before anybody is answered.

The file is two slots of one block each, and a note goes where the older one is: an overwritten block costs one sync of
one block, where a new file costs two of the file system's journal. Power lost in the middle tears the slot that is being
written; the other one still has the note before it.

    slot    SHA-256 of the note, hex · LF · the note · NUL …
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from anabranch import durable
from anabranch.errors import Corrupt, Misuse
from anabranch.tlog.checkpoint import Checkpoint, open_checkpoint
from anabranch.tlog.note import NoteVerifier

SLOT = 4096  # bytes: what a disk writes as one


@dataclass(frozen=True)
class CheckpointRegister:
    path: Path

    def read(self) -> str:
        """The registered note, or "" before the first one. Raises Corrupt when the file was damaged."""
        return max(self._slots(), key=size_of)

    def advance(self, expected: str, note: str) -> None:
        """Replace `expected` by `note`, of a larger tree; durable on return.

        Raises Corrupt when somebody else moved it, OSError or Unavailable when the disk failed: then `read` tells which
        of the two it is.
        """
        slots = self._slots()
        if max(slots, key=size_of) != expected:
            raise Corrupt(
                f"{self.path} was changed by another process: two servers share this state. Stop both, keep one."
            )
        if not expected:
            durable.write(self.path, _slot(note) + bytes(SLOT))
            return
        fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(fd, _slot(note), SLOT * (1 - slots.index(expected)))
            durable.sync(fd)
        finally:
            os.close(fd)

    def _slots(self) -> tuple[str, str]:
        """Both notes; "" for one that was torn or never written."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return "", ""
        notes = _note(data[:SLOT]), _note(data[SLOT:])
        if len(data) != 2 * SLOT or notes == ("", ""):
            raise Corrupt(f"{self.path} holds no note; restore it from a backup")
        return notes


def _slot(note: str) -> bytes:
    data = note.encode()
    slot = hashlib.sha256(data).hexdigest().encode() + b"\n" + data
    if len(slot) > SLOT:
        raise Misuse(f"a checkpoint of {len(data)} bytes does not fit the register")
    return slot.ljust(SLOT, b"\0")


def _note(slot: bytes) -> str:
    digest, _, note = slot.rstrip(b"\0").partition(b"\n")
    try:
        return note.decode() if hashlib.sha256(note).hexdigest().encode() == digest else ""
    except UnicodeDecodeError:
        return ""


def size_of(note: str) -> int:
    """Of the tree that a note speaks of: its second line (C2SP tlog-checkpoint)."""
    lines = note.split("\n", 2)
    return int(lines[1]) if len(lines) == 3 and lines[1].isascii() and lines[1].isdigit() else -1


def registered_checkpoint(
    register: CheckpointRegister, verifier: NoteVerifier, origin: str
) -> Checkpoint | None:
    """What the register holds, signature checked. Raises Corrupt when it does not verify."""
    note = register.read()
    if not note:
        return None
    try:
        return open_checkpoint(note, verifier, origin)
    except Exception as error:
        raise Corrupt(f"{register.path} does not hold a checkpoint signed by this log: {error}") from error
