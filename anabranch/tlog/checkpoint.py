"""The signed tree head of the log (C2SP tlog-checkpoint): origin, size and root as the text of a note.

Whoever holds a checkpoint can be shown any entry below its size, and any later checkpoint must extend it. The
identity of a log is its pinned origin and key, never something a server sends.
"""

import base64
import re
from dataclasses import dataclass

from anabranch.errors import Misuse, Reason, Refused
from anabranch.tlog.merkle import EMPTY_ROOT, HASH_SIZE
from anabranch.tlog.note import NoteSigner, NoteVerifier, decode_base64, is_name, open_note
from anabranch.wire.canonical import MAX_INT

_SIZE = re.compile(r"0|[1-9][0-9]{0,15}")


@dataclass(frozen=True)
class Checkpoint:
    """A tree of `size` entries with this `root` (32 bytes), in the log named `origin`."""

    origin: str
    size: int
    root: bytes

    def __post_init__(self) -> None:
        if not is_name(self.origin) or not 0 <= self.size <= MAX_INT or len(self.root) != HASH_SIZE:
            raise Misuse(
                f"no log {self.origin[:200]!r} of size {self.size} has a root of {len(self.root)} bytes"
            )
        if self.size == 0 and self.root != EMPTY_ROOT:
            raise Misuse(f"an empty log has the root {EMPTY_ROOT.hex()}, not {self.root.hex()}")

    def encode(self) -> str:
        """Three lines: the text that is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


def parse(text: str) -> Checkpoint:
    """Read a checkpoint's text. Raises Refused(MALFORMED).

    Extension lines are refused: our logs write none, and not every kind of cosignature would cover them.
    """
    lines = text.split("\n")
    if len(lines) != 4 or lines[3] != "" or not _SIZE.fullmatch(lines[1]):
        raise Refused(Reason.MALFORMED, "not a checkpoint: three lines, origin, size and root")
    try:
        return Checkpoint(lines[0], int(lines[1]), decode_base64(lines[2], "root of a checkpoint"))
    except Misuse as error:
        raise Refused(Reason.MALFORMED, f"checkpoint: {error}") from error


def sign(checkpoint: Checkpoint, signer: NoteSigner) -> str:
    """The signed note. Raises Misuse when the signer is not the key of this log."""
    if signer.name != checkpoint.origin:
        raise Misuse(f"the key {signer.name} does not sign for the log {checkpoint.origin}")
    return signer.sign(checkpoint.encode())


def open_checkpoint(note: str, verifier: NoteVerifier, origin: str) -> Checkpoint:
    """The checkpoint of a signed note, which must be of the log `origin` and signed by `verifier`'s key.

    Raises Refused: BAD_SIGNATURE, or MALFORMED (also for another origin: the same key may serve two logs).
    """
    checkpoint = parse(open_note(note, verifier))
    if checkpoint.origin != origin:
        raise Refused(
            Reason.MALFORMED, f"checkpoint of the log {checkpoint.origin[:200]!r}, not of {origin!r}"
        )
    return checkpoint
