"""Intake, scheduling and aggregation over the real state store."""

import numpy as np
from sqlalchemy import select

from anabranch.tlog.entry import parse_entry
from anabranch.tlog.note import NoteVerifier
from anabranch.tlog.receipt import verify_receipt
from anabranch.wire.tensors import read_tensors
from server.state import tables
from tests.server.harness import MANIFEST, ORIGIN, Server

TWO = "[aggregation]\nbuffer = 2\n[silos]\nmin = 2\n"


def rows(server: Server, table: object) -> list[object]:
    with server.core.reader.connect() as connection:
        return list(connection.execute(select(table)))  # type: ignore[call-overload]


def logged(server: Server) -> list[str]:
    with server.core.reader.connect() as connection:
        data = connection.execute(select(tables.entries.c.data).order_by(tables.entries.c.index)).scalars()
        return [parse_entry(bytes(one)).type for one in data]


def test_two_updates_become_a_version(server: Server) -> None:
    a, b = server.enrol("a"), server.enrol("b")
    job, terms = server.submit(TWO)
    server.decide(a, job, terms)
    server.decide(b, job, terms)
    for silo, value in ((a, 1.0), (b, 2.0)):
        decided = server.send(silo, job, terms, value)
        assert decided.reason == ""
        entry, _ = verify_receipt(decided.receipt, NoteVerifier.from_vkey(server.signer.vkey), ORIGIN)
        assert entry.type == "update.received"
    assert server.core.aggregation.advance(job)
    [status] = server.core.jobs.status(job)
    assert status.head == 1
    path = server.core.jobs.export(
        a.actor.model_copy(update={"id": "spiffe://fed.test/admin/owner"}), job, "head"
    ).path
    assert np.all(read_tensors(path, MANIFEST)["layer.weight"] == 1.5)
    assert [r.status for r in rows(server, tables.updates)] == ["merged", "merged"]
    assert logged(server)[-3:] == ["aggregation.performed", "model.published", "model.exported"]
