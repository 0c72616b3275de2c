"""Heads of the ledger that this silo has signed, found where its signatures are kept: in the outbox, among refused updates,
and in the log's receipts.
"""

import base64
import json
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from anabranch.errors import Refused
from anabranch.tlog.details import UpdateReceived
from anabranch.tlog.entry import parse_entry
from anabranch.wire import dsse, statements
from silo_agent.config import Home

LOOKED = 2000  # newest receipts of a job that are searched for one of a private update
_BLOCK = 65536


def signed_heads(home: Home) -> dict[str, Path]:
    """Head → the file that names it: all of unfinished and refused updates, of each job's receipts the newest.

    What cannot be read is no witness; whoever owns the file complains about it.
    """
    heads: dict[str, Path] = {}
    for folder in (home.outbox, home.path / "refused"):
        for path in folder.glob("[!.]*/envelope.json"):
            with suppress(Refused, OSError):
                claim = statements.parse_update(dsse.parse_envelope(path.read_bytes()).payload).privacy
                if claim is not None:
                    heads[claim.ledger_head] = path
    for path in (home.path / "jobs").glob("*/receipts.jsonl"):
        with suppress(OSError):
            newest = next(filter(None, map(_head, islice(_backwards(path), LOOKED))), None)
            if newest is not None:
                heads[newest] = path
    return heads


def _head(line: bytes) -> str | None:
    try:
        detail = parse_entry(base64.b64decode(json.loads(line)["entry"])).detail
    except (Refused, ValueError, KeyError, TypeError, RecursionError):
        return None
    return detail.privacy.ledger_head if isinstance(detail, UpdateReceived) and detail.privacy else None


def _backwards(path: Path) -> Iterator[bytes]:
    """Lines from the last to the first."""
    with open(path, "rb") as file:
        end, rest = file.seek(0, 2), b""
        while end:
            start = max(0, end - _BLOCK)
            file.seek(start)
            lines = (file.read(end - start) + rest).split(b"\n")
            end, rest = start, lines[0]
            yield from filter(None, reversed(lines[1:]))
        if rest:
            yield rest
