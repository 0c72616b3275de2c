"""What the simulator's server does without (a thread, a second connection, syncs), and what it must keep all the same."""

import os
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Column, Integer, MetaData, Table, bindparam, insert, select
from sqlalchemy.exc import IntegrityError

from anabranch import durable
from anabranch.errors import Reason, Refused, Unavailable
from anabranch.tlog.entry import Target
from anabranch.tlog.note import NoteSigner
from server.startup import World, open_core
from server.state import database
from server.state.writer import Transaction
from simulator import sqlite
from tests.server.harness import FEDERATION, ORIGIN, Absent, Clock

ROOT = Path(__file__).parents[2]
NUMBERS = Table("numbers", MetaData(), Column("n", Integer, primary_key=True))
AMONG = select(NUMBERS.c.n).where(NUMBERS.c.n.in_(bindparam("these", expanding=True))).order_by(NUMBERS.c.n)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    engine = database.open_engine(tmp_path / "numbers.db", "BEGIN IMMEDIATE")
    with engine.begin() as connection:
        NUMBERS.create(connection)
        connection.execute(insert(NUMBERS), [{"n": n} for n in range(10)])
    engine.dispose()
    return tmp_path / "numbers.db"


def test_a_list_in_a_statement_may_have_another_length_each_time(path: Path) -> None:
    alone, long = sqlite.Alone(path), database.open_engine(path, "BEGIN")
    for these in ([], [3], [1, 2, 7], [4], [], [9, 8, 99]):
        with long.connect() as connection:
            expected = connection.execute(AMONG, {"these": these}).scalars().all()
        long.dispose()
        with alone.connect() as connection:
            assert connection.execute(AMONG, {"these": these}).scalars().all() == expected
        alone.dispose()


def test_a_batch_that_fails_on_the_one_connection_leaves_nothing(path: Path) -> None:
    alone = sqlite.Alone(path)
    with alone.begin() as connection:
        connection.execute(insert(NUMBERS), {"n": 10})

    def fail() -> None:
        with alone.begin() as connection:
            connection.execute(insert(NUMBERS), {"n": 11})
            connection.execute(insert(NUMBERS), {"n": 10})

    with pytest.raises(IntegrityError):
        fail()
    with alone.connect() as connection:
        assert list(connection.execute(AMONG, {"these": [10, 11]})) == [(10,)]
    alone.dispose()


def test_who_asks_an_inline_writer_commits_in_its_own_thread(tmp_path: Path) -> None:
    signer = NoteSigner(ORIGIN, Ed25519PrivateKey.from_private_bytes(bytes(32)))
    core = open_core(tmp_path, FEDERATION, ORIGIN, signer, Absent(), World(Clock(), os.urandom))
    core.writer.start_inline()

    def log(tx: Transaction) -> int:
        detail, target = {"release": "0.1.0", "epoch": 1}, Target(kind="server", id="aggregator")
        return tx.log("server.started", actor=core.observer, target=target, detail=detail)

    def refuse(tx: Transaction) -> None:
        log(tx)
        raise Refused(Reason.POLICY, "not today")

    where = core.writer.submit(lambda tx: threading.current_thread())
    assert where.done()
    assert where.result().value is threading.current_thread()
    with pytest.raises(Refused):
        core.writer.run(refuse)
    logged = core.writer.run(log)
    assert [receipt.index for receipt in logged.receipts] == [logged.value] == [0]
    core.close()
    with pytest.raises(Unavailable):
        core.writer.run(log)


def test_forgettable_files_are_not_synced_and_later_ones_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    monkeypatch.setattr(os, "fsync", synced.append)

    def forgotten() -> None:
        with durable.forgettable():
            durable.sync(7)
            durable.sync_dir(tmp_path)
            raise Refused(Reason.POLICY, "the run could not be played")

    with pytest.raises(Refused):
        forgotten()
    assert synced == []
    durable.sync(7)
    durable.sync_dir(tmp_path)
    assert synced[0] == 7
    assert len(synced) == 2


def test_only_the_simulator_forgets_files() -> None:
    packages = ("anabranch", "server", "silo_agent", "auditor", "console", "simulator")
    sources = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    naming = {str(path.relative_to(ROOT)) for path in sources if "forgettable" in path.read_text()}
    assert naming == {"anabranch/durable.py", "simulator/run.py"}
