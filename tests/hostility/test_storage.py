"""Storage that is no longer what was written: said to whom it concerns, never served, never merged, whole again later."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select, update

from anabranch.errors import Corrupt, Reason
from anabranch.v1 import federation_pb2
from server.state import records, tables
from tests.e2e.federation import BIN, Federation, environment
from tests.hostility.target import met
from tests.server.at_work import at_work
from tests.server.edge import Edge
from tests.server.harness import ADMIN, Server

ONE = "[aggregation]\nbuffer = 1\n"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path / "server")
    yield running
    running.core.close()


def flip(path: Path) -> None:
    """The last byte: of a tensor, still finite and of the same size."""
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


def job_of(server: Server, job: str) -> tuple[str, str, int]:
    with server.core.reader.connect() as connection:
        row = records.job_row(connection, job)
        return row.status, row.reason, row.head


def waiting(server: Server, job: str) -> list[str]:
    with server.core.reader.connect() as connection:
        query = select(tables.updates.c.status).where(tables.updates.c.job == job)
        return list(connection.execute(query).scalars())


@pytest.mark.parametrize("what", ["delta", "base"])
@pytest.mark.parametrize("how", ["changed", "deleted"])
def test_a_damaged_blob_pauses_its_job_and_no_other(server: Server, what: str, how: str) -> None:
    """A version made of other bytes than the silos signed would be published, and only an auditor would find it."""
    silo = server.enrol("hospital-a")
    job, terms = server.submit(ONE)
    other, other_terms = server.submit(ONE + "max_staleness = 5\n")
    for name, agreed in ((job, terms), (other, other_terms)):
        server.decide(silo, name, agreed)
    # The other job starts from a model of its own, or the same damage would be its damage too.
    server.send(silo, other, other_terms, 3.0)
    assert server.core.aggregation.advance(other)
    assert server.send(silo, job, terms, 1.0).reason == ""
    digest = _delta(server, job) if what == "delta" else terms.initial_sha256
    path = server.core.blobs.path(digest)
    good = path.read_bytes()
    flip(path) if how == "changed" else path.unlink()

    assert not server.core.aggregation.advance(job)
    assert job_of(server, job) == ("paused", "storage_damaged", 0)
    assert waiting(server, job) == ["received"]
    server.send(silo, other, other_terms, 2.0)
    assert server.core.aggregation.advance(other)

    path.write_bytes(good)
    server.core.jobs.change(ADMIN, job, "resume", "restored")
    assert server.core.aggregation.advance(job)
    assert job_of(server, job)[2] == 1
    assert waiting(server, job) == ["merged"]


def _delta(server: Server, job: str) -> str:
    with server.core.reader.connect() as connection:
        query = select(tables.updates.c.delta).where(tables.updates.c.job == job)
        return str(connection.execute(query).scalar_one())


def test_a_missing_model_is_no_answer_and_the_operator_reads_which_one(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    edge = Edge(server).start()
    try:
        silo = at_work(edge)
        lease = server.lease(silo.signer, silo.job)
        server.core.blobs.path(lease.view.digest).unlink()
        request = federation_pb2.FetchModelRequest(job=silo.job, digest=lease.view.digest)
        assert met(lambda: list(silo.member.federation.FetchModel(request, timeout=10))) == "corrupt"
        said = capsys.readouterr()
        assert lease.view.digest in said.out + said.err
        assert "restore it from a backup" in said.out + said.err
        assert "silo north" in said.out + said.err
    finally:
        edge.stop()


def test_a_restored_old_database_is_not_served_and_the_message_says_what_to_do(tmp_path: Path) -> None:
    """The real command on a real directory: exit code 4, and after the newest database is back it serves again."""
    federation = Federation(tmp_path)
    a, b, c = federation.ports
    flags = ["--port", a, "--enrolment-port", b, "--health-port", c]
    federation.call("anabranch-server", "init", federation.server_dir, "--host", "localhost", *flags)
    state = federation.server_dir / "state"
    old = {path: path.read_bytes() for path in state.glob("state.db*")}
    federation.call("anabranch-server", "admin", federation.server_dir, "bob")  # the log grows
    new = {path: path.read_bytes() for path in state.glob("state.db*")}
    _put(state, old)
    command = [str(BIN / "anabranch-server"), "serve", str(federation.server_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment(), check=False)
    assert done.returncode == 4, done.stderr
    assert "an old database was restored" in done.stderr
    assert "restore the newest database" in done.stderr
    _put(state, new)
    federation.serve()
    federation.close()


def _put(state: Path, files: dict[Path, bytes]) -> None:
    for path in state.glob("state.db*"):
        path.unlink()
    for path, data in files.items():
        path.write_bytes(data)


def test_a_database_that_was_changed_by_hand_is_not_served(tmp_path: Path) -> None:
    """As many entries as before, but not the same tree: the register knows the root."""
    server = Server(tmp_path / "server")
    server.submit(ONE)
    server.core.writer.run(lambda tx: tx.connection.execute(update(tables.nodes).values(hash=bytes(32))))
    server.core.close()
    with pytest.raises(Corrupt, match="restore the right database"):
        server._open()


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_model_that_arrives_changed_is_not_trained_on_and_everybody_reads_why(tmp_path: Path) -> None:
    """The silo gives its lease back with the reason: it stands in the log and in the job's status."""
    federation = Federation(tmp_path)
    federation.create()
    try:
        federation.enrol("hospital-a")
        job = federation.submit(versions=3)
        federation.approve("hospital-a", job)
        (published,) = federation.entries("model.published")
        digest = published["detail"]["parameters_sha256"]
        blob = federation.server_dir / "blobs" / digest[:2] / digest
        good = blob.read_bytes()
        flip(blob)
        federation.agent("hospital-a")
        federation.until(lambda: federation.entries("lease.released"), "the lease comes back")
        assert federation.entries("lease.released")[0]["detail"]["reason"] == Reason.DIGEST_MISMATCH
        assert not federation.entries("update.received")
        assert "tell its operator" in (federation.root / "hospital-a.log").read_text()
        assert federation.silo(job, "hospital-a")["last_reason"] == Reason.DIGEST_MISMATCH
        blob.write_bytes(good)
        assert federation.finish(job)["head"] == 3
        federation.verified()
    finally:
        federation.close()
