"""Faults that a review of the core found, each by the sentence it broke."""

import errno
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, select, text
from sqlalchemy.exc import OperationalError

from anabranch import durable
from anabranch.errors import Reason, Refused, Unavailable
from anabranch.terms import CALIBRATED, parse_job_file
from anabranch.tlog.entry import Target
from anabranch.wire import canonical, dsse, statements
from server import lifecycle
from server.core.buffer import MOST
from server.intake import Upload
from server.jobs import SILOS
from server.scheduling import Lease
from server.state import records, tables
from server.state.writer import Transaction
from tests.server.harness import ADMIN, FEDERATION, FakeSilo, Server, fake_silo
from tests.server.test_lifecycle import entries, evaluate, start, states

ONE = "[aggregation]\nbuffer = 1\n"


def opened(server: Server, silo: FakeSilo, statement: statements.UpdateStatement, data: bytes) -> Upload:
    """Every byte has arrived; nothing is decided."""
    envelope = silo.sign(statement.encode())
    upload = server.core.intake.open(silo.name, silo.actor, statement.update, envelope, 0)
    assert isinstance(upload, Upload)
    upload.append(data)
    return upload


def evaluation(lease: Lease, **changes: object) -> statements.EvaluationStatement:
    fields: dict[str, object] = {
        "federation": FEDERATION,
        "job": lease.job,
        "lease": lease.id,
        "nonce": lease.nonce,
        "version": lease.view.version,
        "view_sha256": lease.view.digest,
        "split": lease.split,
        "metrics": {"accuracy": canonical.hexfloat(0.5)},
        "num_examples": 10,
    }
    return statements.EvaluationStatement.model_validate({**fields, **changes})


def revoke(server: Server, silo: str) -> None:
    def decide(tx: Transaction) -> None:
        tx.connection.execute(
            tables.silos.update().where(tables.silos.c.name == silo).values(status="revoked")
        )
        lifecycle.withdraw(tx, ADMIN, silo)

    server.core.writer.run(decide)


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
    assert good.result(5).value == 7
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


# --- jobs ----------------------------------------------------------------------------------------------------------


def test_huge_metrics_do_not_stop_a_job(server: Server) -> None:
    job, terms, silos = start(server, ONE + "[evaluation]\nevery = 1\n[stop]\nversions = 1\n", "a", "b")
    server.send(silos[0], job, terms, 1.0)
    server.core.aggregation.advance(job)
    for silo in silos:
        evaluate(server, silo, server.lease(silo, job), 1.7e308)
    server.core.aggregation.advance(job)
    [status] = server.core.jobs.status(job)
    assert (status.status, status.best) == ("completed", 1)


def test_an_absent_silo_does_not_keep_versions_from_being_judged(server: Server) -> None:
    """Versions come faster than `max_wait`, and b, which has approved, is never heard of again."""
    rule = '[aggregation]\nbuffer = 1\nmax_wait = "10m"\n[evaluation]\nevery = 1\n[stop]\npatience = 2\n'
    job, terms, [a, _] = start(server, rule, "a", "b")
    for accuracy in (0.4, 0.9, 0.8, 0.7):
        server.clock.advance(400)
        server.send(a, job, terms, 1.0)
        server.core.aggregation.advance(job)
        evaluate(server, a, server.lease(a, job), accuracy)
        server.core.aggregation.advance(job)
    [status] = server.core.jobs.status(job)
    assert (status.status, status.reason, status.best) == ("completed", "patience", 2)


def test_the_last_version_waits_for_every_silo(server: Server) -> None:
    rule = '[aggregation]\nbuffer = 1\nmax_wait = "10m"\n[evaluation]\nevery = 1\n[stop]\nversions = 1\n'
    job, terms, [a, b] = start(server, rule, "a", "b")
    server.clock.advance(3600)
    server.send(a, job, terms, 1.0)
    server.core.aggregation.advance(job)
    evaluate(server, a, server.lease(a, job), 0.5)
    server.core.aggregation.advance(job)
    assert server.core.jobs.status(job)[0].status == "running"
    evaluate(server, b, server.lease(b, job), 0.7)
    server.core.aggregation.advance(job)
    assert server.core.jobs.status(job)[0].status == "completed"


def test_a_revoked_silo_that_comes_back_approves_again(server: Server) -> None:
    job, terms, [a] = start(server, "[silos]\nmin = 2\n", "a")
    revoke(server, "a")
    back = tables.silos.update().where(tables.silos.c.name == "a").values(status="active")
    server.core.writer.run(lambda tx: tx.connection.execute(back))
    b = server.enrol("b")
    server.decide(b, job, terms)
    assert server.core.jobs.status(job)[0].status == "waiting"
    server.decide(a, job, terms)
    assert server.core.jobs.status(job)[0].status == "running"


def test_a_job_that_was_paused_before_it_started_logs_its_start(server: Server) -> None:
    a = server.enrol("a")
    job, terms = server.submit("")
    server.core.jobs.change(ADMIN, job, "pause", "")
    server.decide(a, job, terms)
    server.core.jobs.change(ADMIN, job, "resume", "")
    assert server.core.jobs.status(job)[0].status == "running"
    assert [e.type for e in entries(server, "job.")][-2:] == ["job.resumed", "job.started"]
    server.core.jobs.change(ADMIN, job, "pause", "")
    server.core.jobs.change(ADMIN, job, "resume", "")
    assert len(entries(server, "job.started")) == 1


def test_a_line_of_code_that_is_too_long_is_left_out(server: Server) -> None:
    job, _, [a] = start(server, "", "a")
    lease = server.lease(a, job)
    deep = "/".join(["package" * 5] * 4) + "/task.py:3"
    server.core.scheduling.release("a", a.actor, lease.id, Reason.TASK_FAILED, "ValueError\n", deep)
    [released] = entries(server, "lease.released")
    assert (released.detail.exception, released.detail.code_line) == (None, None)


def test_a_reason_that_ends_in_a_line_break_is_refused(server: Server) -> None:
    job, _ = server.submit("")
    with pytest.raises(Refused):
        server.core.jobs.change(ADMIN, job, "pause", "x\n")


@pytest.mark.parametrize("selector", ["9" * 5000, "9" * 30, "٣", "²"])
def test_a_version_number_that_is_none(server: Server, selector: str) -> None:
    job, _ = server.submit("")
    with pytest.raises(Refused):
        server.core.jobs.export(ADMIN, job, selector)


@pytest.mark.parametrize("wait", ["infs", "nans", "-5s", "9999999d", "1e300d", ""])
def test_a_duration_nobody_can_wait_for(wait: str) -> None:
    """Deadlines are dates in the log: a job could be submitted and no lease of it could ever be issued."""
    with pytest.raises(Refused):
        parse_job_file(f'[job]\nname="x"\ntask="t.py:T"\n[aggregation]\nmax_wait="{wait}"\n')


@pytest.mark.parametrize("params", ["{ x = inf }", "{ x = 9007199254740993 }"])
def test_terms_that_have_no_canonical_form(params: str) -> None:
    with pytest.raises(Refused):
        parse_job_file(f'[job]\nname="x"\ntask="t.py:T"\nparams = {params}\n')


# --- blobs ---------------------------------------------------------------------------------------------------------


def test_a_blob_that_is_there_already_is_durable_as_well(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread, or a process that was killed, renamed it and had not synced the directory."""
    digest = server.core.blobs.put(b"once")
    synced: list[Path] = []
    monkeypatch.setattr(durable, "sync_dir", lambda path: synced.append(Path(path)))
    assert server.core.blobs.put(b"once") == digest
    assert synced == [server.core.blobs.path(digest).parent]


def test_a_full_disk_is_not_a_bug(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable, "sync", full)
    with pytest.raises(Unavailable):
        server.core.blobs.put(b"no room")
    assert not list(server.core.blobs.spooled())
    job, terms, [a] = start_anyway(server, monkeypatch)
    delta = a.delta(server.directory, 1.0)
    statement = a.statement(server.lease(a, job), terms, delta)
    upload = opened(server, a, statement, delta.read_bytes())
    monkeypatch.setattr(durable, "sync", full)
    with pytest.raises(Unavailable):
        upload.finish()
    monkeypatch.undo()
    assert server.upload(a, statement, delta.read_bytes()).reason == ""


def start_anyway(server: Server, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.undo()
    return start(server, ONE, "a")


def test_equal_deltas_of_two_silos_are_both_merged(server: Server) -> None:
    job, terms, [a, b] = start(server, "[aggregation]\nbuffer = 2\n", "a", "b")
    source = a.delta(server.directory, 1.0)
    for silo in (a, b):
        statement = silo.statement(server.lease(silo, job), terms, source)
        assert server.upload(silo, statement, source.read_bytes()).reason == ""
    assert server.core.aggregation.advance(job)
    assert states(server) == {"a": "merged", "b": "merged"}


# --- size ----------------------------------------------------------------------------------------------------------


def test_what_every_call_asks_of_the_store_does_not_grow_with_it(server: Server) -> None:
    """No query of a task or of an update walks a whole table of leases or updates."""
    job, terms, [a] = start(server, ONE + "[evaluation]\nevery = 1\n", "a")
    asked: list[tuple[str, Any]] = []
    for engine in (server.core.reader.engine, server.core.writer._engine):
        _record(engine, asked)
    server.send(a, job, terms, 1.0)
    server.core.aggregation.advance(job)
    evaluate(server, a, server.lease(a, job), 0.5)
    server.core.aggregation.advance(job)
    with server.core.reader.connect() as connection:
        for query, values in list(asked):
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}", values)
            steps = [row.detail for row in plan]
            assert not [one for one in steps if one in ("SCAN leases", "SCAN updates")], (query, steps)
    assert asked


def _record(engine: Engine, asked: list[tuple[str, Any]]) -> None:
    @event.listens_for(engine, "before_cursor_execute")
    def _before(_c: Any, _cursor: Any, statement: str, values: Any, _context: Any, _many: Any) -> None:
        if statement.startswith("SELECT") and ("leases" in statement or "updates" in statement):
            asked.append((statement, values))


def test_a_manifest_is_parsed_once(server: Server) -> None:
    """Thousands of tensors take a tenth of a second, in the one transaction everybody waits for."""
    job, _ = server.submit("")
    with server.core.reader.connect() as connection:
        assert records.job_manifest(connection, job) is records.job_manifest(connection, job)


def test_a_version_equal_to_an_earlier_one_is_the_one_that_was_leased(server: Server) -> None:
    """Updates that cancel out leave the model as it was: the silo was shown version 0 for its lease of version 1."""
    job, terms, [silo] = start(server, ONE, "a")
    server.send(silo, job, terms, 0.0)
    assert server.core.aggregation.advance(job)
    lease = server.lease(silo, job)
    assert lease.view.version == 1
    found = server.core.jobs.model(silo.name, job, lease.view.digest)
    assert found.view == lease.view
