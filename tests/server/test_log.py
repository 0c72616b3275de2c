"""The log as the server keeps it: what it remembers of the tree is what was committed."""

import pytest
from sqlalchemy import Connection, event
from sqlalchemy.exc import OperationalError

from anabranch.errors import Unavailable
from anabranch.tlog.note import NoteVerifier
from anabranch.tlog.receipt import verify_receipt
from server.audit import log
from tests.server.harness import ADMIN, ORIGIN, Server


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
    with pytest.raises(Unavailable):  # two entries, each in the proof of the other
        server.submit()
    job, _ = server.submit()
    for action in ("pause", "resume", "pause", "abort"):
        receipt = server.core.jobs.change(ADMIN, job, action, "kept")
        verify_receipt(receipt, NoteVerifier.from_vkey(server.signer.vkey), ORIGIN)
    assert not failing
    assert proven(server) == 6


def test_a_log_longer_than_what_is_remembered_is_proven(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "KEPT_NODES", 4)
    job, _ = server.submit()
    for action in ("pause", "resume") * 12:
        server.core.jobs.change(ADMIN, job, action, "again")
    assert proven(server) == 26
