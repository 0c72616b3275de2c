"""More of them: jobs from their terms to their versions, blobs, and what grows."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from anabranch import durable
from anabranch.errors import Reason, Refused, Unavailable
from anabranch.terms import parse_job_file
from anabranch.wire import statements
from server import lifecycle
from server.state import records, tables
from server.state.writer import Transaction
from tests.server.harness import ADMIN, Server
from tests.server.sent import ONE, opened
from tests.server.test_lifecycle import entries, evaluate, start, states


def revoke(server: Server, silo: str) -> None:
    def decide(tx: Transaction) -> None:
        tx.connection.execute(
            tables.silos.update().where(tables.silos.c.name == silo).values(status="revoked")
        )
        lifecycle.withdraw(tx, ADMIN, silo)

    server.core.writer.run(decide)


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


def test_a_decision_on_its_way_when_its_silo_is_revoked_is_not_logged(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = server.enrol("a")
    job, terms = server.submit("")
    parse = statements.parse_decision

    def revoked_meanwhile(payload: bytes) -> statements.DecisionStatement:
        dead = tables.keys.update().where(tables.keys.c.silo == "a").values(retired_at=server.clock())
        server.core.writer.run(lambda tx: tx.connection.execute(dead))
        return parse(payload)

    monkeypatch.setattr(statements, "parse_decision", revoked_meanwhile)
    with pytest.raises(Refused) as refused:
        server.decide(a, job, terms)
    assert refused.value.code is Reason.BAD_SIGNATURE
    assert entries(server, "job.approved") == []


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


GROWING = ("leases", "updates", "steps")


def test_what_every_call_asks_of_the_store_does_not_grow_with_it(server: Server) -> None:
    """No query of a task, an update or a step walks a whole table of leases, updates or steps."""
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
            found = {row.detail for row in plan}
            assert not found & {f"SCAN {table}" for table in GROWING}, (query, found)
    assert asked


def _record(engine: Engine, asked: list[tuple[str, Any]]) -> None:
    @event.listens_for(engine, "before_cursor_execute")
    def _before(_c: Any, _cursor: Any, statement: str, values: Any, _context: Any, _many: Any) -> None:
        if statement.startswith("SELECT") and any(table in statement for table in GROWING):
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
