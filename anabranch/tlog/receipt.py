"""Proof that one entry is in the log: what the server answers with, and all of it that has to be kept."""

from dataclasses import dataclass

from anabranch.tlog.checkpoint import Checkpoint, open_checkpoint
from anabranch.tlog.entry import Entry, parse_entry
from anabranch.tlog.merkle import leaf_hash, verify_inclusion
from anabranch.tlog.note import NoteVerifier


@dataclass(frozen=True)
class Receipt:
    """`entry` (leaf bytes) is at `index` of the tree under `checkpoint` (a signed note), by `proof`.

    For a reader who knows the first `seen` entries, `consistency` proves that this tree continues them; that part is
    of use once and is not kept.
    """

    entry: bytes
    index: int
    proof: tuple[bytes, ...]
    checkpoint: str
    seen: int = 0
    consistency: tuple[bytes, ...] = ()


def verify_receipt(receipt: Receipt, verifier: NoteVerifier, origin: str) -> tuple[Entry, Checkpoint]:
    """The entry and the checkpoint it is proven under.

    Raises ProofError when the proof fails, Refused(BAD_SIGNATURE) when the log has not signed,
    Refused(MALFORMED or SIZE_LIMIT) when a part does not parse. It stays the caller's to check that the entry
    says what it should, and that the checkpoint is consistent with the last one seen.
    """
    checkpoint = open_checkpoint(receipt.checkpoint, verifier, origin)
    leaf = leaf_hash(receipt.entry)
    verify_inclusion(receipt.index, checkpoint.size, leaf, receipt.proof, checkpoint.root)
    return parse_entry(receipt.entry), checkpoint
