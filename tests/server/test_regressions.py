"""Faults that a review of the core found, each by the sentence it broke."""

import errno
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import OperationalError

from anabranch.errors import Reason, Refused, Unavailable
from anabranch.terms import CALIBRATED
from anabranch.tlog.entry import Target
from anabranch.wire import canonical, dsse, statements
from server.core.buffer import MOST
from server.jobs import SILOS
from server.state import records, tables
from server.state.writer import Transaction
from tests.server.harness import ADMIN, FakeSilo, Server, fake_silo
from tests.server.sent import ONE, evaluation, opened
from tests.server.test_lifecycle import start, states

# --- the writer ----------------------------------------------------------------------------------------------------


def test_two_silos_race_with_one_update_id(server: Server, tmp_path: Path) -> None:
    """The loser is refused, and decisions of the same batch do not fail with it."""
    job, terms, [a, b] = start(server, ONE, "a", "b")
    uploads = []
    for silo in (a, b):
        delta = silo.delta(tmp_path, 1.0)
        statement = silo.statement(server.lease(silo, job), terms, delta, update="the-same")
        uploads.append(opened(server, silo, statement, delta.read_bytes()))
    assert uploads[0].finish().reason == ""
    with pytest.raises(Refused, match="was decided already"):
        uploads[1].finish()


def test_a_decision_that_breaks_a_constraint_fails_alone(server: Server) -> None:
    server.enrol("a")
    held = threading.Event()
    server.core.writer.submit(lambda tx: held.wait(5))
    row = {"name": "a", "status": "active", "agents": 1, "invited_at": 0.0}
    bad = server.core.writer.submit(lambda tx: tx.connection.execute(tables.silos.insert().values(row)))
    good = server.core.writer.submit(lambda tx: 7)
    held.set()
    assert good.result(60).value == 7
    assert bad.exception(5) is not None


def test_a_refusal_that_rests_on_a_decision_that_was_lost_is_not_told(server: Server) -> None:
    """Both are in one batch: the second is refused because of the first, and then the commit fails."""
    held = threading.Event()
    server.core.writer.submit(lambda tx: held.wait(5))
    row = {"name": "a", "status": "active", "agents": 1, "invited_at": 0.0}

    def first(tx: Transaction) -> None:
        tx.connection.execute(tables.silos.insert().values(row))

    def second(tx: Transaction) -> None:
        if tx.connection.execute(select(tables.silos)).first() is not None:
            raise Refused(Reason.QUOTA, "there is a silo already")

    def third(tx: Transaction) -> None:
        raise OperationalError("COMMIT", {}, Exception("disk I/O error"))

    futures = [server.core.writer.submit(one) for one in (first, second, third)]
    held.set()
    for future in futures:
        assert isinstance(future.exception(5), Unavailable)


def test_a_stopped_writer_answers(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.core.close()
    with pytest.raises(Unavailable, match="stopped"):
        server.core.writer.submit(lambda tx: None).result(2)


def test_a_watcher_that_fails_does_not_turn_a_commit_into_an_error(server: Server) -> None:
    def watch(entry: object) -> None:
        raise KeyError("bug")

    server.core.writer._watch = watch
    job, _ = server.submit("")
    with server.core.reader.connect() as connection:
        assert records.job_row(connection, job).status == "waiting"


def test_more_readers_than_the_pool_has_connections(server: Server) -> None:
    """Asking for a task holds a snapshot and needs another; 40 silos that ask at once all get an answer."""
    _, _, silos = start(server, "", *(f"silo-{i}" for i in range(40)))
    gate = threading.Barrier(40)

    def ask(silo: FakeSilo) -> object:
        with server.core.reader.connect() as connection:
            connection.execute(text("SELECT 1"))
            gate.wait(20)
            return server.core.log.checkpoint()

    with ThreadPoolExecutor(40) as pool:
        assert all(future.result(25) for future in [pool.submit(ask, silo) for silo in silos])


# --- aggregation ---------------------------------------------------------------------------------------------------


def test_aggregation_outlives_an_error_that_is_not_ours(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, terms, [a] = start(server, ONE, "a")
    server.send(a, job, terms, 1.0)
    aggregation = server.core.aggregation
    compute, jobs, failures = aggregation._compute, aggregation._running_jobs, ["compute", "jobs"]

    def fails(what: str, call: Any) -> Any:
        def run(*arguments: Any) -> Any:
            if what in failures:
                failures.remove(what)
                raise OSError(errno.EMFILE, "too many open files")
            return call(*arguments)

        return run

    monkeypatch.setattr(aggregation, "_compute", fails("compute", compute))
    monkeypatch.setattr(aggregation, "_running_jobs", fails("jobs", jobs))
    aggregation.start()
    deadline = time.monotonic() + 10
    while states(server) != {"a": "merged"} and time.monotonic() < deadline:
        time.sleep(0.05)
    aggregation.stop()
    assert states(server) == {"a": "merged"}


def test_one_busy_job_does_not_starve_another(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    aggregation, seen = server.core.aggregation, []
    monkeypatch.setattr(aggregation, "_running_jobs", lambda: ["busy", "quiet"])

    def advance(job: str) -> bool:
        seen.append(job)
        aggregation._stopping = len(seen) >= 6
        return job == "busy"

    monkeypatch.setattr(aggregation, "advance", advance)
    aggregation.start()
    aggregation.wake()
    aggregation._thread.join(10)
    assert seen[:4] == ["busy", "quiet", "busy", "quiet"]


def test_an_update_of_no_examples_is_refused(server: Server) -> None:
    """It would be frozen and never published: nothing can be weighted by it."""
    job, terms, [a] = start(server, ONE + '[silos]\nweighting = "examples"\n', "a")
    delta = a.delta(server.directory, 1.0)
    statement = a.statement(server.lease(a, job), terms, delta, num_examples=0)
    assert server.upload(a, statement, delta.read_bytes()).reason == Reason.MALFORMED
    server.send(a, job, terms, 1.0)
    assert server.core.aggregation.advance(job)


def test_a_version_of_the_most_updates_fits_its_log_entry(server: Server) -> None:
    one = {
        "update": "u" * 64,
        "silo": "s" * 63,
        "delta_sha256": "0" * 64,
        "base": 1_000_000,
        "staleness": 100_000,
        "weight": canonical.hexfloat(1 / 3),
        "coefficient": canonical.hexfloat(1 / 3e300),
    }
    detail: dict[str, Any] = {
        "version": 1_000_001,
        "base": 1_000_000,
        "step": "5" * 32,
        "strategy": "fedbuff",
        "inputs": [one] * 100,
        "scalars": {f"staleness_weight_{100_000 + i}": canonical.hexfloat(1 / 3) for i in range(100)},
        "optimizer": {"name": "adam", "correction": canonical.hexfloat(1 / 3)},
        "absent": ["s" * 63] * (SILOS - 1),
        "closed_by": "max_wait",
        "numeric_profile": "fp64-elementwise-v1",
    }

    def log(tx: Transaction) -> None:
        target = Target(kind="model", id="j" * 64 + "/1")
        tx.log("aggregation.performed", actor=ADMIN, target=target, job="j" * 64, detail=detail)

    server.core.writer.run(log)
    detail |= {"inputs": [one] * SILOS, "scalars": {}, "absent": []}  # a round of fedavg
    server.core.writer.run(log)
    everybody = ["s" * 63] * SILOS
    counted = {**one, "arrived": 100_000, "windows": 1_000_000}
    detail |= {"strategy": "fedfix", "participants": everybody, "inputs": [counted] * MOST}
    server.core.writer.run(log)
    cached = {"update": "u" * 64, "coefficient": "-" + canonical.hexfloat(1 / 3e300)}
    detail |= {"strategy": "ca2fl", "inputs": [one] * CALIBRATED, "further": [cached] * SILOS}
    detail |= {"absent": ["s" * 63] * (SILOS - 1)}
    server.core.writer.run(log)


def test_a_job_takes_no_more_silos_than_a_log_entry_can_name(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.jobs.SILOS", 2)
    job, terms, [a, b] = start(server, "", "a", "b")
    with pytest.raises(Refused, match="has 2 silos"):
        server.decide(server.enrol("c"), job, terms)
    server.decide(a, job, terms)  # again
    server.decide(b, job, terms, "withdraw")
    server.decide(fake_silo("c"), job, terms)


def test_an_ended_job_has_no_open_step(server: Server) -> None:
    job, terms, [a] = start(server, ONE, "a")
    server.send(a, job, terms, 1.0)
    aggregation = server.core.aggregation
    frozen = server.core.writer.run(lambda tx: aggregation._freeze(tx, job)).value
    assert frozen is not None
    server.core.jobs.change(ADMIN, job, "abort", "")
    assert aggregation._open_step(job) is None
    snapshot = aggregation._compute(frozen)
    assert not server.core.writer.run(lambda tx: aggregation._publish(tx, frozen, snapshot)).value
    assert states(server) == {"a": "retired job_ended"}


# --- intake --------------------------------------------------------------------------------------------------------


def test_a_refused_resume_leaves_no_spool(server: Server) -> None:
    job, terms, [a] = start(server, ONE, "a")
    delta = a.delta(server.directory, 1.0)
    statement = a.statement(server.lease(a, job), terms, delta)
    opened(server, a, statement, delta.read_bytes()[:100]).suspend()
    assert len(list(server.core.blobs.spooled())) == 1
    server.core.jobs.change(ADMIN, job, "abort", "")
    assert server.upload(a, statement, delta.read_bytes()).reason
    assert not list(server.core.blobs.spooled())


def test_a_refused_delta_leaves_no_blob(server: Server) -> None:
    job, terms, [a] = start(server, ONE + "max_update_norm = 1.0\n", "a")
    delta = a.delta(server.directory, 9.0)
    statement = a.statement(server.lease(a, job), terms, delta)
    assert server.upload(a, statement, delta.read_bytes()).reason == Reason.NORM_EXCEEDED
    assert not server.core.blobs.path(statement.delta_sha256).exists()
    assert not list(server.core.blobs.spooled())


def test_an_upload_that_cannot_be_resumed_leaves_nothing_open(server: Server) -> None:
    """Neither behind a header that was written and never judged, nor behind bytes that never came."""
    job, terms, [a] = start(server, ONE, "a")
    delta = a.delta(server.directory, 1.0)
    statement = a.statement(server.lease(a, job), terms, delta)
    envelope = a.sign(statement.encode())
    server.core.intake._spool("a", statement.update, statement.lease).write_bytes(b"x" * 100)
    before = len(os.listdir("/proc/self/fd"))
    for offset in (100, 50):
        with pytest.raises(Refused) as refusal:
            server.core.intake.open("a", a.actor, statement.update, envelope, offset)
        assert refusal.value.code is Reason.DIGEST_MISMATCH
    assert len(os.listdir("/proc/self/fd")) <= before
    assert server.upload(a, statement, delta.read_bytes()).reason == ""


def test_status_while_the_spool_becomes_a_blob(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.enrol("a")
    monkeypatch.setattr(Path, "exists", lambda self, **_: True)
    assert server.core.intake.status("a", "unknown").synced == 0


def test_an_envelope_has_one_signature(server: Server) -> None:
    """The log keeps the first one: a foreign signature before the good one would make an entry nobody can verify."""
    job, terms, [a] = start(server, ONE, "a")
    delta = a.delta(server.directory, 1.0)
    statement = a.statement(server.lease(a, job), terms, delta)
    good = dsse.sign(statements.PAYLOAD_TYPE, statement.encode(), a.key)
    forged = dsse.Envelope(
        good.payload_type, good.payload, (dsse.Signature("0" * 64, bytes(64)), *good.signatures)
    )
    with pytest.raises(Refused) as refusal:
        server.core.intake.open("a", a.actor, statement.update, forged.encode(), 0)
    assert refusal.value.code is Reason.BAD_SIGNATURE


@pytest.mark.parametrize(
    "changes",
    [{"split": "A secret"}, {"split": "train"}, {"federation": "elsewhere.test"}, {"view_sha256": "0" * 64}],
)
def test_an_evaluation_of_something_else_is_refused(server: Server, changes: dict[str, str]) -> None:
    job, terms, [a] = start(server, ONE + "[evaluation]\nevery = 1\n", "a")
    server.send(a, job, terms, 1.0)
    server.core.aggregation.advance(job)
    lease = server.lease(a, job)
    statement = evaluation(lease, **changes)
    with pytest.raises(Refused):
        server.core.intake.evaluation("a", a.actor, lease.id, a.sign(statement.encode()))
    assert server.lease(a, job).id == lease.id


def test_an_evaluation_whose_answer_was_lost_gets_it_again(server: Server) -> None:
    job, terms, [a] = start(server, ONE + "[evaluation]\nevery = 1\n", "a")
    server.send(a, job, terms, 1.0)
    server.core.aggregation.advance(job)
    lease = server.lease(a, job)
    envelope = a.sign(evaluation(lease).encode())
    first = server.core.intake.evaluation("a", a.actor, lease.id, envelope)
    again = server.core.intake.evaluation("a", a.actor, lease.id, envelope)
    assert again.receipt.index == first.receipt.index
    other = evaluation(lease, num_examples=11)
    with pytest.raises(Refused, match="is not open"):
        server.core.intake.evaluation("a", a.actor, lease.id, a.sign(other.encode()))
