"""The life of a job and of its updates: every update reaches a terminal state, every exclusion is logged."""

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import select

from anabranch.errors import Conflict, Corrupt, Reason, Refused
from anabranch.tlog.entry import Entry, parse_entry
from anabranch.wire import canonical, dsse, statements
from server import lifecycle
from server.attendance import Attendance
from server.scheduling import Lease, Wait
from server.startup import lock
from server.state import tables
from server.state.database import open_engine
from server.state.writer import raise_epoch
from tests.server.harness import ADMIN, FEDERATION, Absent, FakeSilo, Server


def entries(server: Server, type: str = "") -> list[Entry]:
    with server.core.reader.connect() as connection:
        data = connection.execute(select(tables.entries.c.data).order_by(tables.entries.c.index)).scalars()
        return [entry for one in data if (entry := parse_entry(bytes(one))).type.startswith(type)]


def start(server: Server, text: str, *names: str) -> tuple[str, object, list[FakeSilo]]:
    silos = [server.enrol(name) for name in names]
    job, terms = server.submit(text)
    for silo in silos:
        server.decide(silo, job, terms)
    return job, terms, silos


def states(server: Server) -> dict[str, str]:
    with server.core.reader.connect() as connection:
        return {
            row.silo: f"{row.status} {row.reason}".strip()
            for row in connection.execute(select(tables.updates))
        }


def evaluate(server: Server, silo: FakeSilo, lease: Lease, accuracy: float) -> None:
    statement = statements.EvaluationStatement(
        federation=FEDERATION,
        job=lease.job,
        lease=lease.id,
        nonce=lease.nonce,
        version=lease.view.version,
        view_sha256=lease.view.digest,
        split=lease.split,
        metrics={"accuracy": canonical.hexfloat(accuracy)},
        num_examples=10,
    )
    envelope = dsse.sign(statements.PAYLOAD_TYPE, statement.encode(), silo.key).encode()
    server.core.intake.evaluation(silo.name, silo.actor, lease.id, envelope)


def test_a_job_waits_for_its_silos(server: Server) -> None:
    a, b = server.enrol("a"), server.enrol("b")
    job, terms = server.submit("[silos]\nmin = 2\n")
    server.decide(a, job, terms)
    assert isinstance(server.core.scheduling.next_task("a", [job]), Wait)
    server.decide(b, job, terms)
    assert isinstance(server.core.scheduling.next_task("a", [job]), Lease)
    assert [e.detail.silos for e in entries(server, "job.started")] == [("a", "b")]


def test_an_open_lease_is_returned_again(server: Server) -> None:
    job, _, [a] = start(server, "", "a")
    assert server.lease(a, job).id == server.lease(a, job).id
    server.core.scheduling.release(
        "a", a.actor, server.lease(a, job).id, Reason.TASK_FAILED, "ValueError", "task.py:3"
    )
    [released] = entries(server, "lease.released")
    assert (released.detail.reason, released.detail.exception, released.detail.code_line) == (
        "task_failed",
        "ValueError",
        "task.py:3",
    )
    [status] = server.core.jobs.status(job)
    assert status.silos[0].last_reason == "task_failed: ValueError at task.py:3"
    assert server.lease(a, job).id != released.detail.lease


def test_fedavg_supersedes_the_late_and_names_the_absent(server: Server) -> None:
    job, terms, [a, b, c] = start(server, '[aggregation]\nstrategy="fedavg"\nmax_wait="1m"\n', "a", "b", "c")
    late = server.lease(c, job)
    server.send(a, job, terms, 1.0)
    server.send(b, job, terms, 3.0)
    assert isinstance(server.core.scheduling.next_task("a", [job]), Wait)
    assert not server.core.aggregation.advance(job)
    server.clock.advance(60)
    assert server.core.aggregation.advance(job)
    [performed] = entries(server, "aggregation.performed")
    assert (performed.detail.closed_by, performed.detail.absent) == ("max_wait", ("c",))
    delta = c.delta(server.directory, 9.0)
    server.upload(c, c.statement(late, terms, delta), delta.read_bytes())
    for silo in (a, b, c):
        server.send(silo, job, terms, 1.0)
    assert server.core.aggregation.advance(job)
    [retired] = entries(server, "update.retired")
    assert (retired.detail.silo, retired.detail.reason) == ("c", "superseded")


def test_a_withdrawn_update_is_not_published_even_when_frozen(server: Server) -> None:
    job, terms, [a, b, c] = start(server, "[aggregation]\nbuffer = 2\n[silos]\nmin = 3\n", "a", "b", "c")
    server.send(a, job, terms, 1.0)
    server.send(b, job, terms, 2.0)
    aggregation = server.core.aggregation
    frozen = server.core.writer.run(lambda tx: aggregation._freeze(tx, job)).value
    assert frozen is not None
    server.decide(a, job, terms, "withdraw")
    snapshot = aggregation._compute(frozen)
    assert not server.core.writer.run(lambda tx: aggregation._publish(tx, frozen, snapshot)).value
    assert states(server) == {"a": "retired withdrawn", "b": "received"}
    server.send(c, job, terms, 4.0)
    assert aggregation.advance(job)
    [performed] = entries(server, "aggregation.performed")
    assert [one.silo for one in performed.detail.inputs] == ["b", "c"]


def test_pause_keeps_updates_and_abort_retires_them(server: Server) -> None:
    job, terms, [a] = start(server, "[aggregation]\nbuffer = 5\n", "a")
    lease = server.lease(a, job)
    server.core.jobs.change(ADMIN, job, "pause", "maintenance")
    assert isinstance(server.core.scheduling.next_task("a", [job]), Wait)
    delta = a.delta(server.directory, 1.0)
    assert server.upload(a, a.statement(lease, terms, delta), delta.read_bytes()).reason == ""
    server.core.jobs.change(ADMIN, job, "resume", "")
    with pytest.raises(Refused, match="running; resume needs it paused"):
        server.core.jobs.change(ADMIN, job, "resume", "")
    server.core.jobs.change(ADMIN, job, "abort", "wrong data")
    assert states(server) == {"a": "retired job_ended"}
    assert [e.type for e in entries(server, "job.")][-3:] == ["job.paused", "job.resumed", "job.aborted"]


def test_it_completes_after_the_last_evaluation(server: Server) -> None:
    text = "[aggregation]\nbuffer = 1\n[evaluation]\nevery = 1\n[stop]\nversions = 2\n"
    job, terms, [a] = start(server, text, "a")
    for accuracy in (0.9, 0.7):
        server.send(a, job, terms, 1.0)
        assert server.core.aggregation.advance(job)
        lease = server.lease(a, job)
        assert lease.kind == "evaluate"
        evaluate(server, a, lease, accuracy)
        server.core.aggregation.advance(job)
    [status] = server.core.jobs.status(job)
    assert (status.status, status.head, status.best) == ("completed", 2, 1)
    assert status.evaluations[-1].metrics == {"accuracy": 0.7}
    assert b"version 1" in server.core.jobs.export(ADMIN, job, "best").card


def test_patience_ends_a_job_early(server: Server) -> None:
    text = "[aggregation]\nbuffer = 1\n[evaluation]\nevery = 1\n[stop]\nversions = 50\npatience = 2\n"
    job, terms, [a] = start(server, text, "a")
    for accuracy in (0.9, 0.8, 0.7):
        server.send(a, job, terms, 1.0)
        server.core.aggregation.advance(job)
        evaluate(server, a, server.lease(a, job), accuracy)
        server.core.aggregation.advance(job)
    [status] = server.core.jobs.status(job)
    assert (status.status, status.reason, status.head) == ("completed", "patience", 3)


def test_overflowing_arithmetic_pauses_the_job_and_keeps_the_updates(server: Server) -> None:
    text = "[aggregation]\nbuffer = 1\n[aggregation.server_optimizer]\nlr = 1e10\n"
    job, terms, [a] = start(server, text, "a")
    server.send(a, job, terms, 3e38)
    assert not server.core.aggregation.advance(job)
    [status] = server.core.jobs.status(job)
    assert (status.status, status.reason) == ("paused", "nonfinite")
    assert states(server) == {"a": "received"}


def test_jobs_share_a_silo(server: Server) -> None:
    first, terms, [a] = start(server, "", "a")
    second, other_terms = server.submit("")
    server.decide(a, second, other_terms)
    served = []
    for _ in range(4):
        task = server.core.scheduling.next_task("a", [first, second])
        assert isinstance(task, Lease)
        served.append(task.job)
        delta = a.delta(server.directory, 1.0)
        server.upload(
            a, a.statement(task, terms if task.job == first else other_terms, delta), delta.read_bytes()
        )
        server.clock.advance(1)
    assert served == [first, second, first, second] or served == [second, first, second, first]


def test_a_restored_old_database_is_refused(tmp_path: Path) -> None:
    server = Server(tmp_path)
    database = tmp_path / "state" / "state.db"
    with closing(sqlite3.connect(database)) as live, closing(sqlite3.connect(tmp_path / "old.db")) as old:
        live.backup(old)
    start(server, "", "a")
    server.core.close()
    for suffix in ("-wal", "-shm"):
        (tmp_path / "state" / f"state.db{suffix}").unlink(missing_ok=True)
    shutil.copyfile(tmp_path / "old.db", database)
    with pytest.raises(Corrupt, match="an old database was restored"):
        Server(tmp_path)
    os.close(lock(tmp_path / "state" / "lock"))  # a refused start holds nothing


def test_a_lost_register_is_refused(tmp_path: Path) -> None:
    server = Server(tmp_path)
    start(server, "", "a")
    server.core.close()
    (tmp_path / "state" / "checkpoint").unlink()
    with pytest.raises(Corrupt, match="is missing but the log has"):
        Server(tmp_path)


def test_two_servers_cannot_share_a_state(server: Server) -> None:
    with pytest.raises(Conflict, match="another server is running"):
        server._open()


def test_a_fenced_server_writes_nothing(server: Server) -> None:
    raise_epoch(open_engine(server.directory / "state" / "state.db", "BEGIN IMMEDIATE"))
    with pytest.raises(Conflict, match="another server took over"):
        server.core.writer.run(lambda tx: lifecycle.retire(tx, ADMIN, "x", "superseded"))
    assert isinstance(server.core.writer.failure, Conflict)


def test_a_silo_that_falls_silent_with_a_lease_is_named_once(server: Server) -> None:
    job, _, [a] = start(server, "", "a")
    heard = {"a": server.clock()}

    class Heard(Absent):
        def last_seen(self, silo: str) -> float:
            return heard[silo]

    core = server.core
    attendance = Attendance(core.writer, core.reader, Heard(), core.observer, server.clock, server.clock())
    server.clock.advance(60)
    attendance.look()
    assert entries(server, "silo.") == []  # idle: nobody waits for it
    heard["a"] = server.clock()
    server.lease(a, job)
    for seconds in (5, 5, 5):
        attendance.look()
        server.clock.advance(seconds)
    attendance.look()
    heard["a"] = server.clock()
    attendance.look()
    attendance.look()
    assert [entry.type for entry in entries(server, "silo.")] == ["silo.lost", "silo.returned"]
