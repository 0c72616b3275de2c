"""What leaves the disk, what never does, and that the log says so first."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from anabranch.errors import Conflict, Reason, Refused, Unavailable
from anabranch.terms import Retention
from anabranch.tlog.details import RetentionPruned
from anabranch.tlog.entry import parse_entry
from anabranch.wire import canonical
from server import retention
from server.audit.export import Exported, export
from server.core.retention import Facts, Overdue, Stored, overdue, spans
from server.gaps import Gap
from server.state import records, tables
from tests.server.harness import ADMIN, Server

DAY = 86400.0
SMALL = "[silos]\nmin = 1\n[aggregation]\nbuffer = 1\n[aggregation.server_optimizer]\nlr = 0.5\n[evaluation]\nevery = 50\n"
KEPT = Retention(updates="30d", snapshots="7d")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    yield made
    made.core.close()


def facts(**changed: object) -> Facts:
    """Ten versions, one each day, of a job that goes on."""
    stored = tuple(Stored(n, (n + 1) * DAY if n < 10 else None, None) for n in range(11))
    known = {"ended_at": None, "handed_out_at": None, "stored": stored, "head": 10, "best": None}
    return Facts(**{**known, "needed": frozenset(), **changed})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "now", "versions"),
    [
        ({}, 7.9 * DAY, ()),
        ({}, 10.0 * DAY, (1, 2)),  # replay starts from version 0
        ({}, 99.0 * DAY, (1, 2, 3, 4, 5, 6, 7, 8, 9)),
        ({"best": 3}, 12.0 * DAY, (1, 2, 4)),
        ({"needed": frozenset({1, 4})}, 12.0 * DAY, (2, 3)),
        ({"ended_at": 10 * DAY}, 39.9 * DAY, (1, 2, 3, 4, 5, 6, 7, 8, 9)),
    ],
)
def test_snapshots_leave_while_nothing_needs_them(
    changed: dict[str, object], now: float, versions: tuple[int, ...]
) -> None:
    found = overdue(KEPT, facts(**changed), now)
    assert found == (Overdue("snapshots", versions, False) if versions else None)


def test_a_version_that_was_handed_out_stays_for_its_window() -> None:
    stored = tuple(Stored(n, (n + 1) * DAY if n < 3 else None, 5 * DAY if n == 1 else None) for n in range(4))
    job = facts(stored=stored, head=3, handed_out_at=5 * DAY)
    assert overdue(KEPT, job, 34.9 * DAY) == Overdue("snapshots", (2,), False)
    assert overdue(KEPT, job, 35 * DAY) == Overdue("snapshots", (1, 2), False)


def test_everything_but_head_and_best_leaves_after_the_last_release() -> None:
    ended = facts(ended_at=10 * DAY, handed_out_at=20 * DAY, best=4)
    before = overdue(KEPT, ended, 49.9 * DAY)
    assert before is not None
    assert not before.deltas
    assert overdue(KEPT, ended, 50 * DAY) == Overdue("updates", (0, 1, 2, 3, 5, 6, 7, 8, 9), True)


def test_spans() -> None:
    assert spans([]) == []
    assert spans([0, 1, 2, 5, 7, 8]) == [(0, 2), (5, 5), (7, 8)]


def publish(server: Server, job: str, terms: object, *values: float) -> None:
    silo = server.enrol_once("a")
    for value in values:
        assert server.send(silo, job, terms, value).reason == ""  # type: ignore[arg-type]
        assert server.core.aggregation.advance(job)


def begin(server: Server, text: str = SMALL) -> tuple[str, object]:
    job, terms = server.submit(text)
    server.decide(server.enrol_once("a"), job, terms)
    return job, terms


def finish(server: Server, job: str, days: float) -> None:
    server.core.jobs.change(ADMIN, job, "abort", "")
    server.clock.advance(days * DAY)


def parameters(server: Server, job: str, number: int) -> str:
    with server.core.reader.connect() as connection:
        return str(records.version_row(connection, job, number).parameters)


def pruned(server: Server) -> list[RetentionPruned]:
    with server.core.reader.connect() as connection:
        rows = connection.execute(select(tables.entries.c.data).order_by(tables.entries.c.index)).scalars()
        entries = [parse_entry(bytes(data)) for data in rows]
    return [entry.detail for entry in entries if isinstance(entry.detail, RetentionPruned)]


def exported(server: Server, name: str) -> Exported:
    out = server.directory / name
    return export(server.core.reader, server.core.blobs, server.signer.vkey, b"", out, False)


def test_a_running_job_loses_old_snapshots_but_no_base_of_a_lease(server: Server) -> None:
    job, terms = begin(server)
    publish(server, job, terms, 1.0)
    other = server.enrol_once("b")
    server.decide(other, job, terms)  # type: ignore[arg-type]
    held = server.lease(other, job)
    publish(server, job, terms, 2.5, 4.0)
    server.clock.advance(8 * DAY)
    server.core.retention.prune()
    assert [(one.kind, one.rule, one.seconds) for one in pruned(server)] == [
        ("snapshots", "snapshots", 7 * DAY)
    ]
    assert [vars(span) for span in pruned(server)[0].versions] == [{"first": 2, "last": 2}]
    holds = server.core.blobs.holds
    assert [holds(parameters(server, job, n)) for n in range(4)] == [True, True, False, True]
    assert server.core.jobs.model("b", job, held.view.digest).path.exists()
    with pytest.raises(Refused, match="not kept any more"):
        server.core.jobs.model("a", job, parameters(server, job, 2))
    with pytest.raises(Refused, match="not kept any more") as refusal:
        server.core.jobs.export(ADMIN, job, "2")
    assert refusal.value.code is Reason.NOT_FOUND
    delta = other.delta(server.directory, 5.0)
    statement = other.statement(held, terms, delta)  # type: ignore[arg-type]
    assert server.upload(other, statement, delta.read_bytes()).reason == ""
    server.core.retention.prune()
    assert holds(parameters(server, job, 1))  # the base of an update that waits
    assert server.core.aggregation.advance(job)
    server.core.retention.prune()
    assert not holds(parameters(server, job, 1))
    assert (exported(server, "export").missing, exported(server, "again").pruned) == (
        0,
        4,
    )  # with their averages


def test_after_its_window_an_ended_job_keeps_head_and_statements(server: Server) -> None:
    job, terms = begin(server)
    publish(server, job, terms, 1.0, 2.0)
    finish(server, job, 29)
    server.core.retention.prune()
    assert not any(one.kind == "deltas" for one in pruned(server))
    server.core.jobs.export(ADMIN, job, "head")  # a release: the window begins anew
    server.clock.advance(29 * DAY)
    server.core.retention.prune()
    assert not any(one.kind == "deltas" for one in pruned(server))
    server.clock.advance(DAY)
    server.core.retention.prune()
    assert [one.rule for one in pruned(server)][-1:] == ["updates"]
    with server.core.reader.connect() as connection:
        deltas = connection.execute(select(tables.updates.c.delta)).scalars().all()
        signed = connection.execute(select(tables.entries.c.signed)).scalars().all()
        assert records.job_row(connection, job).pruned_at == server.clock()
    holds = server.core.blobs.holds
    assert [holds(delta) for delta in deltas] == [False, False]
    assert holds(parameters(server, job, 2))
    assert not holds(parameters(server, job, 0))
    assert exported(server, "export").missing == 0
    statements = {canonical.sha256(payload) for payload in signed if payload is not None}
    assert len(statements) == 3  # an approval and two updates
    assert statements <= {path.name for path in (server.directory / "export" / "objects").iterdir()}


def test_content_that_another_job_names_stays(server: Server) -> None:
    first, terms = begin(server)
    second, _ = begin(server)
    publish(server, first, terms, 1.0)
    initial = parameters(server, first, 0)
    assert parameters(server, second, 0) == initial
    finish(server, first, 31)
    server.core.retention.prune()
    assert [one.kind for one in pruned(server)] == ["snapshots", "deltas"]
    assert server.core.blobs.holds(initial)
    assert exported(server, "export").missing == 0


def test_content_named_again_before_its_file_went_stays(server: Server) -> None:
    first, terms = begin(server)
    second, others = begin(server)
    publish(server, first, terms, 1.0)
    finish(server, first, 31)
    gone = server.core.writer.run(lambda tx: retention._prune(tx, server.core.observer, first)).value
    silo = server.enrol_once("a")
    assert server.send(silo, second, others, 1.0).reason == ""  # type: ignore[arg-type]
    delta = canonical.sha256(silo.delta(server.directory, 1.0).read_bytes())
    assert delta in gone
    server.core.retention._remove(gone)
    assert server.core.blobs.holds(delta)
    assert server.core.aggregation.advance(second)


def test_content_removed_between_its_arrival_and_its_decision_is_sent_again(tmp_path: Path) -> None:
    removed: list[str] = []

    def reached(gap: str) -> None:
        if gap == Gap.STORED and not removed:
            [digest] = [one for one in server.core.blobs.shelf(delta[:2]) if one == delta]
            removed.append(digest)
            aside = server.core.blobs.set_aside(digest)
            assert aside is not None

    server = Server(tmp_path, reached)
    job, terms = begin(server)
    silo = server.enrol_once("a")
    delta = canonical.sha256(silo.delta(tmp_path, 1.0).read_bytes())
    with pytest.raises(Unavailable, match="send it again"):
        server.send(silo, job, terms, 1.0)  # type: ignore[arg-type]
    assert removed == [delta]
    assert server.send(silo, job, terms, 1.0).reason == ""  # type: ignore[arg-type]
    server.core.close()


def test_an_export_that_retention_overtakes_says_so(server: Server) -> None:
    job, terms = begin(server)
    publish(server, job, terms, 1.0)
    finish(server, job, 31)
    with pytest.raises(Conflict, match="export again"):
        export(
            server.core.reader,
            server.core.blobs,
            server.signer.vkey,
            b"",
            server.directory / "export",
            False,
            lambda done, total: server.core.retention.prune(),
        )


def test_uploads_nobody_will_finish_are_given_up(server: Server) -> None:
    job, terms = begin(server)
    silo = server.enrol_once("a")
    lease = server.lease(silo, job)
    delta = silo.delta(server.directory, 1.0)
    statement = silo.statement(lease, terms, delta)  # type: ignore[arg-type]
    envelope = silo.sign(statement.encode())
    upload = server.core.intake.open("a", silo.actor, statement.update, envelope, 0)
    upload.append(delta.read_bytes()[:100])  # type: ignore[union-attr]
    upload.suspend()  # type: ignore[union-attr]
    [path] = server.core.blobs.spooled()
    os.utime(path, (1000.0, 1000.0))
    server.core.retention.give_up_uploads(1000.0 + 9 * DAY)
    assert server.core.intake.status("a", statement.update).synced == 100
    server.core.scheduling.release("a", silo.actor, lease.id, "task_failed", "", "")
    server.core.retention.give_up_uploads(1000.0 + 0.9 * DAY)
    assert server.core.intake.status("a", statement.update).synced == 100
    server.core.retention.give_up_uploads(1000.0 + 1.1 * DAY)
    assert server.core.intake.status("a", statement.update).synced == 0
    assert not server.core.blobs.spooled()


def test_a_start_removes_what_no_entry_names(server: Server) -> None:
    job, terms = begin(server)
    publish(server, job, terms, 1.0)
    before = exported(server, "before")
    orphan = server.core.blobs.put(b"stored, and then the process died")
    server.core.close()
    server.core = server._open()
    assert not server.core.blobs.holds(orphan)
    after = exported(server, "after")
    assert (after.objects, after.missing) == (before.objects, 0)


def test_a_state_without_a_log_removes_nothing(tmp_path: Path) -> None:
    """An operator who lost the state database still has the blobs."""
    server = Server(tmp_path)
    orphan = server.core.blobs.put(b"of a log that is elsewhere")
    server.core.close()
    server.core = server._open()
    assert server.core.blobs.holds(orphan)
    server.core.close()


def test_looking_is_cheap_until_it_is_time(server: Server) -> None:
    job, terms = begin(server)
    publish(server, job, terms, 1.0)
    server.core.retention.look()
    finish(server, job, 31)
    server.core.retention.look()
    count = len(pruned(server))
    assert count == 2
    other, terms = begin(server, SMALL + '[retention]\nupdates = "0s"\n')
    publish(server, other, terms, 2.0)
    finish(server, other, 0)
    server.core.retention.look()
    assert len(pruned(server)) == count
    server.clock.advance(retention.EVERY)
    server.core.retention.look()
    assert len(pruned(server)) > count


def test_a_start_looks_each_shelf_up_instead_of_reading_all_names(server: Server) -> None:
    with server.core.reader.connect() as connection:
        asked = str(retention._LIVE.compile(connection.engine))
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {asked}", ("ab", "abg", -1, -1)).all()
    assert [row.detail for row in plan] == [
        "SEARCH named USING INDEX sqlite_autoindex_named_1 (digest>? AND digest<?)"
    ]
