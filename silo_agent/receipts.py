"""The silo's own view of the audit log: it only ever grows, and the agent acts on nothing outside it.

Every receipt is checked three ways: the entry is included under its checkpoint, the log's key signed that checkpoint,
and the checkpoint is consistent with the newest one this silo has seen before. Every request says how much was seen, and
the receipt brings the proof of the third along; where it does not, the agent asks for it. A server that cannot prove it
has shown different logs to different people, or has lost part of one: the agent keeps what it signed and stops.
"""

import base64
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anabranch import durable
from anabranch.errors import Corrupt, Reason, Refused
from anabranch.tlog.checkpoint import Checkpoint, open_checkpoint
from anabranch.tlog.entry import Entry
from anabranch.tlog.merkle import ProofError, verify_consistency
from anabranch.tlog.note import NoteVerifier
from anabranch.tlog.receipt import Receipt, verify_receipt

# (old size, new size) -> consistency proof
Consistency = Callable[[int, int], Sequence[bytes]]


class Untrusted(Refused):
    """The server could not prove what it said. The agent stops; a person looks at the evidence."""

    def __init__(self, message: str, evidence: Path) -> None:
        super().__init__(
            Reason.DIGEST_MISMATCH,
            f"{message}. Evidence is kept in {evidence}: show it to the other silos and to the auditor. "
            "The agent stays stopped until a person has looked at it",
        )


@dataclass(frozen=True)
class LogView:
    """What this silo has seen of the log, kept in log-view.json and shared by every process of this home."""

    path: Path
    evidence: Path  # directory
    origin: str
    verifier: NoteVerifier
    consistency: Consistency

    def current(self) -> Checkpoint | None:
        """The newest verified checkpoint, None before the first. Raises Corrupt when the file was damaged."""
        note = self._note()
        if note is None:
            return None
        try:
            return open_checkpoint(note, self.verifier, self.origin)
        except Refused as error:
            raise Corrupt(
                f"{self.path} holds no checkpoint of {self.origin}: {error}; enrol again"
            ) from error

    def seen(self) -> int:
        """How many entries the newest verified checkpoint has, 0 before the first. Raises Corrupt."""
        known = self.current()
        return 0 if known is None else known.size

    def accept(self, receipt: Receipt) -> Entry:
        """The entry this receipt proves. Raises Untrusted on any failed proof, Unavailable while none can be had."""
        try:
            entry, checkpoint = verify_receipt(receipt, self.verifier, self.origin)
        except Refused as error:
            raise self._untrusted(f"a receipt does not verify: {error}", receipt, ()) from error
        with _locked(self.path):
            known = self.current()
            if known is not None:
                self._connect(known, checkpoint, receipt)
            if known is None or checkpoint.size > known.size:
                # Killed before this write: the view is an older one of the same log, and the next proof spans more.
                self._keep(checkpoint, receipt.checkpoint)
        return entry

    def _connect(self, known: Checkpoint, presented: Checkpoint, receipt: Receipt) -> None:
        old, new = sorted((known, presented), key=lambda c: c.size)
        if old.size == new.size:
            if old.root != new.root:
                raise self._untrusted(f"the log has two different trees of size {old.size}", receipt, ())
            return
        proof: Sequence[bytes] = ()
        try:
            # Another thread or process of this home may have seen more since the request was sent.
            fits = old is known and receipt.seen == known.size
            proof = receipt.consistency if fits else self.consistency(old.size, new.size)
            verify_consistency(old.size, new.size, old.root, new.root, list(proof))
        except ProofError as error:
            raise self._untrusted(
                f"the log of size {new.size} does not continue the log of size {old.size}: {error}",
                receipt,
                proof,
            ) from error
        except Refused as error:
            if error.code in (Reason.REVOKED_IDENTITY, Reason.BAD_CERTIFICATE, Reason.QUOTA):
                raise  # about us, not about the log
            raise self._untrusted(
                f"the server will not prove that its log of size {new.size} continues the one of size {old.size}: "
                f"{error}",
                receipt,
                proof,
            ) from error

    def _untrusted(self, what: str, receipt: Receipt, proof: Sequence[bytes]) -> Untrusted:
        durable.make_dir(self.evidence, 0o700)
        path = self.evidence / f"{time.time_ns()}.json"
        record = {
            "what": what,
            "seen_before": self._note(),
            "receipt": receipt_json(receipt),
            "consistency_proof": [_base64(step) for step in proof],
        }
        durable.write(path, json.dumps(record, indent=1).encode())
        return Untrusted(what, path)

    def _note(self) -> str | None:
        try:
            return str(json.loads(self.path.read_bytes())["checkpoint"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise Corrupt(
                f"{self.path} is damaged: {error}; restore it from a backup or enrol again"
            ) from error

    def _keep(self, checkpoint: Checkpoint, note: str) -> None:
        view = {
            "origin": checkpoint.origin,
            "size": checkpoint.size,
            "root": checkpoint.root.hex(),
            "checkpoint": note,  # with the log's signature: evidence, should the log ever fork
        }
        durable.write(self.path, json.dumps(view).encode())


def require(entry: Entry, kind: str, /, *, job: str | None = None, **detail: Any) -> dict[str, Any]:
    """The entry's detail. Raises Refused(DIGEST_MISMATCH) unless it is a `kind` saying exactly this."""
    stated = entry.detail
    found = stated if isinstance(stated, dict) else stated.model_dump(mode="json", exclude_none=True)
    if entry.type != kind or (job is not None and entry.job != job):
        raise Refused(
            Reason.DIGEST_MISMATCH, f"the receipt is for {entry.type} of job {entry.job}, not {kind} of {job}"
        )
    for name, value in detail.items():
        if found.get(name) != value:
            raise Refused(
                Reason.DIGEST_MISMATCH,
                f"the logged {kind} says {name} = {found.get(name)!r}, the server told us {value!r}",
            )
    return found


def receipt_json(receipt: Receipt) -> dict[str, Any]:
    """One line of a receipts journal, as the auditor reads it."""
    return {
        "entry": _base64(receipt.entry),
        "index": receipt.index,
        "proof": [_base64(step) for step in receipt.proof],
        "checkpoint": receipt.checkpoint,
    }


def journal(path: Path, receipt: Receipt, sync: bool = True) -> None:
    """Append a verified receipt. Killed inside: a torn last line, which the next append cuts off.

    Without `sync` power loss may take it: of what this silo only heard, the server's log has a copy for everybody.
    """
    line = json.dumps(receipt_json(receipt), separators=(",", ":")).encode() + b"\n"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        end = _end_of_lines(fd)
        os.ftruncate(fd, end)
        os.pwrite(fd, line, end)
        if sync:
            durable.sync(fd)
    finally:
        os.close(fd)


def _end_of_lines(fd: int) -> int:
    """Offset after the last newline; 0 without one."""
    end = os.fstat(fd).st_size
    while end:
        start = max(0, end - 65536)
        newline = os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


_threads = threading.Lock()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One reader-and-writer of the view at a time, over all threads and processes of this home."""
    with _threads, open(path.with_suffix(".lock"), "wb", buffering=0) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
