"""The checkpoint register: the newest signed checkpoint, in a file of its own.

It is kept apart from the database so that restoring an old database cannot silently fork the log: the register then
names a larger tree than the database holds, and the server refuses to serve. It moves by compare-and-swap, after the
commit and before anybody is answered.
"""

from dataclasses import dataclass
from pathlib import Path

from anabranch import durable
from anabranch.errors import Corrupt
from anabranch.tlog.checkpoint import Checkpoint, open_checkpoint
from anabranch.tlog.note import NoteVerifier


@dataclass(frozen=True)
class CheckpointRegister:
    path: Path

    def read(self) -> str:
        """The registered note, or "" before the first one. Raises Corrupt when the file was damaged."""
        try:
            return self.path.read_text("utf-8") if self.path.exists() else ""
        except UnicodeDecodeError as error:
            raise Corrupt(f"{self.path} holds no note: {error}; restore it from a backup") from error

    def advance(self, expected: str, note: str) -> None:
        """Replace `expected` by `note`; durable on return. Raises Corrupt when somebody else moved it."""
        if self.read() != expected:
            raise Corrupt(
                f"{self.path} was changed by another process: two servers share this state. Stop both, keep one."
            )
        durable.write(self.path, note.encode())


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
