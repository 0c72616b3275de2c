"""Receipts a silo kept: what it was promised to be in the log must be in the log.

A file is one receipt as JSON, a list of them, or a journal with one in each line. A receipt is
`{"entry": base64, "index": n, "proof": [base64, …], "checkpoint": note}`.
"""

import base64
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from anabranch.errors import Reason, Refused, wording
from anabranch.tlog.checkpoint import Checkpoint
from anabranch.tlog.merkle import leaf_hash
from anabranch.tlog.receipt import Receipt, verify_receipt
from auditor.pin import Pin
from auditor.tree import Tree

FILE = 256 << 20  # bytes; years of a silo's journal


def read_receipts(paths: Iterable[Path]) -> Iterator[tuple[str, Receipt]]:
    """(where, receipt) of every file, and of every *.json and *.jsonl below a directory. Raises Refused."""
    for path in paths:
        if path.is_dir():
            found = sorted(
                p for p in path.rglob("*.json*") if p.suffix in (".json", ".jsonl") and p.is_file()
            )
            if not found:
                raise Refused(Reason.NOT_FOUND, f"{path} holds no receipts (*.json, *.jsonl)")
            yield from read_receipts(found)
        else:
            yield from _read_file(path)


def check_receipt(receipt: Receipt, pin: Pin, tree: Tree) -> Checkpoint:
    """Its checkpoint, which the caller compares with the log of that size. Raises Refused if it is not in the log."""
    _, checkpoint = verify_receipt(receipt, pin.verifier, pin.origin)
    if checkpoint.size > tree.size:
        raise Refused(
            Reason.NOT_FOUND,
            f"was given when the log had {checkpoint.size} entries, the export has {tree.size}; make a newer export",
        )
    if tree.leaf(receipt.index) != leaf_hash(receipt.entry):
        raise Refused(Reason.DIGEST_MISMATCH, f"entry {receipt.index} of the log is another one")
    return checkpoint


def _read_file(path: Path) -> Iterator[tuple[str, Receipt]]:
    try:
        if path.stat().st_size > FILE:
            raise Refused(Reason.SIZE_LIMIT, f"{path} is larger than {FILE} bytes")
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(Reason.NOT_FOUND, f"{path} cannot be read as receipts: {wording(error)}") from error
    for number, document in enumerate(_documents(path, text), start=1):
        where = f"{path.name}:{number}"
        try:
            yield where, _receipt(document)
        except (KeyError, TypeError, ValueError) as error:
            raise Refused(Reason.MALFORMED, f"{path}, receipt {number}: not a receipt") from error


def _documents(path: Path, text: str) -> list[Any]:
    try:
        whole = json.loads(text)
        return whole if isinstance(whole, list) else [whole]
    except (ValueError, RecursionError):
        pass
    try:
        whole_lines = text[: text.rfind("\n") + 1]  # the last may be torn, the only one may not
        if text and not whole_lines:
            raise ValueError("not one whole line")
        return [json.loads(line) for line in whole_lines.splitlines() if line]
    except (ValueError, RecursionError) as error:
        raise Refused(Reason.MALFORMED, f"{path} is neither JSON nor a journal of receipts") from error


def _receipt(document: Any) -> Receipt:
    if type(document["index"]) is not int:
        raise TypeError("an index is an integer")
    return Receipt(
        entry=base64.b64decode(document["entry"], validate=True),
        index=document["index"],
        proof=tuple(base64.b64decode(step, validate=True) for step in document["proof"]),
        checkpoint=str(document["checkpoint"]),
    )
