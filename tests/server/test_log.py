"""The log as the server keeps it: what it remembers of the tree is what was committed."""

import pytest
from sqlalchemy import Connection, event
from sqlalchemy.exc import OperationalError

from anabranch.errors import Unavailable
from anabranch.tlog.note import NoteVerifier
from anabranch.tlog.receipt import Receipt, verify_receipt
from server import startup
from server.audit import log
from server.state.writer import Transaction
from tests.server.harness import ORIGIN, Server


def write(server: Server, entries: int) -> tuple[Receipt, ...]:
    """Log some entries in one transaction; their receipts, verified."""

    def decide(tx: Transaction) -> None:
        for _ in range(entries):
            startup._log_start(tx, server.core.observer, server.core.epoch)

    receipts = server.core.writer.run(decide).receipts
    for receipt in receipts:
        verify_receipt(receipt, NoteVerifier.from_vkey(server.signer.vkey), ORIGIN)
    return receipts


def proven(server: Server) -> int:
    """How many entries there are, each with a receipt that verifies, asked for twice."""
    verifier = NoteVerifier.from_vkey(server.signer.vkey)
    with server.core.reader.connect() as connection:
        size, _ = log.newest_checkpoint(connection)
    for index in [*range(size), *range(size)]:
        verify_receipt(server.core.log.receipt(index), verifier, ORIGIN)
    return size


def test_nodes_of_a_commit_that_failed_prove_nothing(server: Server) -> None:
    failing = [True]

    def fail(_: Connection) -> None:
        if failing:
            failing.clear()
            raise OperationalError("COMMIT", {}, Exception("disk I/O error"))

    event.listen(server.core.writer._engine, "commit", fail)
    with pytest.raises(Unavailable):
        write(server, 4)
    assert not failing
    for entries in (2, 3, 1, 4):
        assert len(write(server, entries)) == entries
    assert proven(server) == 10


def test_a_log_longer_than_what_is_remembered_is_proven(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "KEPT_NODES", 4)
    for entries in range(1, 9):
        write(server, entries)
    assert proven(server) == 36
