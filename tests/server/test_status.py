"""What an operator is told of a job: all of it, and at the same cost however long the job has run."""

from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy import event, insert

from anabranch.errors import Reason
from server import metrics
from server.core.backoff import FIRST, LONGEST, RECENT, TOLERATED, Ended, backoff, pause_after
from server.core.doing import SILENCE, doing, silent
from server.core.pace import NEWEST, pace
from server.gauges import Gauges
from server.scheduling import Lease, Wait
from server.sessions import Sessions
from server.state import tables
from server.state.writer import Transaction
from server.status import SiloStatus
from server.vitals import Vitals
from tests.server.harness import ADMIN, FakeSilo, Server
from tests.server.test_lifecycle import entries, start


def failed(at: float, reason: str = "task_failed") -> Ended:
    return Ended("released", reason, at)


DONE = Ended("fulfilled", "", None)


# --- the rule of waiting ---------------------------------------------------------------------------------------------


def test_waits_grow_to_a_limit_and_never_shrink() -> None:
    waits = [pause_after(failures) for failures in range(200)]
    assert waits[: TOLERATED + 1] == [0.0] * (TOLERATED + 1)
    assert waits[TOLERATED + 1 : TOLERATED + 4] == [FIRST, 2 * FIRST, 4 * FIRST]
    assert waits == sorted(waits)
    assert waits[-1] == waits[RECENT] == LONGEST  # more failures than are looked at change nothing


@pytest.mark.parametrize(
    ("newest_first", "failures", "until"),
    [
        ([], 0, 0.0),
        ([failed(30), failed(20)], 2, 0.0),
        ([failed(30), failed(20), failed(10)], 3, 30 + FIRST),
        ([failed(30), failed(20), DONE, failed(10)], 2, 0.0),
        ([DONE, failed(30), failed(20), failed(10)], 0, 0.0),
        ([failed(40), failed(30, "withdrawn"), failed(20), failed(10)], 3, 40 + FIRST),
        ([failed(30, "job_ended"), failed(25, "job_not_approved"), DONE], 0, 0.0),
        ([failed(30), failed(20), failed(10), failed(5)], 3, 30 + FIRST),  # the last one was forgiven
        ([failed(1000), failed(20), failed(10)], 3, 0.0),  # the clock was set back
    ],
)
def test_the_row_of_failures(newest_first: list[Ended], failures: int, until: float) -> None:
    found = backoff(newest_first, forgiven_at=5.0, now=100.0)
    assert (found.failures, found.until) == (failures, until)


def fail(server: Server, silo: FakeSilo, job: str) -> None:
    lease = server.lease(silo, job).id
    server.core.scheduling.release(
        silo.name, silo.actor, lease, Reason.TASK_FAILED, "ValueError", "task.py:3"
    )
    server.clock.advance(0.1)


def test_a_silo_that_keeps_failing_does_not_fill_the_log(server: Server) -> None:
    """It asks every ten seconds for an hour: without a wait that would be 360 leases."""
    job, _, [a] = start(server, "", "a")
    server.clock.advance(1)
    until = server.clock() + 3600
    while server.clock() < until:
        task = server.core.scheduling.next_task("a", [job])
        if isinstance(task, Lease):
            fail(server, a, job)
        else:
            assert "failed in a row" in task.reason
        server.clock.advance(10)
    assert 10 < len(entries(server, "lease.issued")) < 20


def test_success_and_resuming_end_the_wait_and_other_jobs_never_had_it(server: Server) -> None:
    job, terms, [a, _] = start(server, "[aggregation]\nbuffer = 5\n", "a", "b")
    other, other_terms = server.submit("")
    server.decide(a, other, other_terms)
    server.clock.advance(1)
    for _ in range(3):
        fail(server, a, job)
    waiting = server.core.scheduling.next_task("a", [job])
    assert isinstance(waiting, Wait)
    assert waiting.seconds == pytest.approx(FIRST - 0.1)
    assert isinstance(server.core.scheduling.next_task("b", [job]), Lease)
    assert isinstance(server.core.scheduling.next_task("a", [other]), Lease)
    [status] = server.core.jobs.status(job)
    assert (status.silos[0].failures, status.silos[1].failures) == (3, 0)
    assert status.silos[0].retry_seconds == waiting.seconds
    server.clock.advance(waiting.seconds)
    server.send(a, job, terms, 1.0)
    for _ in range(3):
        fail(server, a, job)  # the row begins afresh
    assert isinstance(server.core.scheduling.next_task("a", [job]), Wait)
    server.core.jobs.change(ADMIN, job, "pause", "")
    server.core.jobs.change(ADMIN, job, "resume", "corrected")
    assert isinstance(server.core.scheduling.next_task("a", [job]), Lease)
    assert isinstance(server.core.scheduling.next_task("b", [job]), Lease)


def test_refused_updates_count_as_failures(server: Server) -> None:
    job, terms, [a] = start(server, "", "a")
    server.clock.advance(1)
    for _ in range(3):
        lease = server.lease(a, job)
        delta = a.delta(server.directory, 1.0)
        statement = a.statement(lease, terms, delta, base_sha256="1" * 64)
        assert server.upload(a, statement, delta.read_bytes()).reason == Reason.UNKNOWN_BASE
        server.clock.advance(0.1)
    assert isinstance(server.core.scheduling.next_task("a", [job]), Wait)
    [status] = server.core.jobs.status(job)
    [silo] = status.silos
    assert [(one.outcome, one.reason, one.count) for one in silo.tallies] == [("refused", "unknown_base", 3)]
    assert (silo.refused, silo.last_reason) == (3, "unknown_base")


# --- words and rates ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decision", "quiet", "connected", "task", "backing_off", "word"),
    [
        ("", False, True, "", False, "undecided"),
        ("denied", False, True, "", False, "denied"),
        ("withdrawn", False, True, "train", False, "withdrawn"),
        ("approved", True, False, "train", False, "lost"),
        ("approved", True, True, "train", False, "lost"),  # connected, and says nothing
        ("approved", False, True, "train", True, "training"),
        ("approved", False, True, "evaluate", False, "evaluating"),
        ("approved", True, False, "", True, "absent"),
        ("approved", False, True, "", True, "backing off"),
        ("approved", False, True, "", False, "idle"),
    ],
)
def test_one_word_for_a_silo(
    decision: str, quiet: bool, connected: bool, task: str, backing_off: bool, word: str
) -> None:
    assert doing(decision, quiet, connected, task, backing_off) == word


def test_silence_is_counted_from_the_last_word() -> None:
    assert not silent(100.0, False, 100.0 + SILENCE)  # reconnecting
    assert silent(100.0, True, 100.1 + SILENCE)
    assert silent(0.0, False, 100.0)
    assert not silent(0.0, True, 100.0)


def test_pace_is_over_the_newest_and_sees_a_halt() -> None:
    every_two = [100.0 - 2 * n for n in range(200)]
    assert pace(every_two, 0.0, 100.0) == pytest.approx(0.5)
    assert pace(every_two, 0.0, 140.0) == pytest.approx(20 / 80)
    assert pace(every_two[:3], 90.0, 100.0) == pytest.approx(0.3)
    assert pace(every_two, 99.0, 101.0) == pytest.approx(0.5)  # resumed at 99: one version in two seconds
    assert pace([], 0.0, 100.0) == 0.0
    assert pace([5.0], 5.0, 5.0) == 0.0
    assert len(every_two[:NEWEST]) == NEWEST


# --- a status ------------------------------------------------------------------------------------------------------------


def silo_of(server: Server, job: str, name: str) -> SiloStatus:
    [status] = server.core.jobs.status(job)
    return next(silo for silo in status.silos if silo.silo == name)


def test_a_status_tells_lateness_speed_and_what_else_a_silo_does(server: Server) -> None:
    rule = '[aggregation]\nbuffer = 1\nmax_wait = "1m"\n[stop]\nversions = 12\n[evaluation]\nevery = 100\n'
    job, terms, [a, b] = start(server, rule, "a", "b")
    other, other_terms = server.submit("")
    server.decide(b, other, other_terms)
    for _ in range(2):
        server.clock.advance(30)
        server.send(a, job, terms, 1.0)
        assert server.core.aggregation.advance(job)
    lease = server.lease(b, job)
    theirs = server.lease(b, other)
    server.clock.advance(75)
    [status] = server.core.jobs.status(job)
    assert status.versions_per_hour == pytest.approx(2 / 135 * 3600)
    assert status.updates_per_minute == pytest.approx(2 / 135 * 60)
    assert status.eta_seconds == pytest.approx(10 * 135 / 2)
    late = silo_of(server, job, "b")
    assert (late.lease, late.leased_seconds, late.late_seconds) == (lease.id, 75, 15)
    assert (late.state, late.elsewhere) == ("lost", other)  # nobody is connected here
    assert silo_of(server, other, "b").lease == theirs.id
    assert (silo_of(server, job, "a").state, silo_of(server, job, "a").merged) == ("absent", 2)
    server.core.jobs.change(ADMIN, job, "pause", "")
    [paused] = server.core.jobs.status(job)
    assert (paused.versions_per_hour, paused.eta_seconds) == (0.0, 0.0)


def test_what_goes_on_is_watched_until_it_has_ended(server: Server) -> None:
    first, _, [a] = start(server, "", "a")
    second, terms = server.submit("")
    server.decide(a, second, terms)
    assert {one.job for one in server.core.jobs.going_on(())} == {first, second}
    server.core.jobs.change(ADMIN, first, "abort", "")
    assert {one.job for one in server.core.jobs.going_on(())} == {second}
    found = {one.job: one.status for one in server.core.jobs.going_on({first, second})}
    assert found == {first: "aborted", second: "running"}


def live_through(server: Server, job: str, silos: list[FakeSilo], rounds: int) -> None:
    """The rows that `rounds` more versions would have left, each from an update of every silo; one in ten was refused."""

    def decide(tx: Transaction) -> None:
        ask, connection = tx.connection.exec_driver_sql, tx.connection
        head = ask("select max(number) from versions where job = ?", (job,)).scalar() or 0
        made: dict[str, list[dict[str, Any]]] = {"versions": [], "leases": [], "updates": []}
        for number in range(head + 1, head + rounds + 1):
            row = {"job": job, "parameters": "0" * 64, "bytes": 1, "scalars": "{}", "published_at": tx.now}
            made["versions"].append(row | {"number": number, "entry": number})
            for silo in silos:
                name = f"{silo.name}-{number}"
                common = {"id": name, "job": job, "silo": silo.name, "entry": number, "reason": ""}
                lease = {"kind": "train", "version": number - 1, "nonce": "", "issued_at": tx.now}
                lease |= {"deadline": tx.now, "status": "released" if number % 10 == 0 else "fulfilled"}
                made["leases"].append(common | lease)
                sent = {"lease": name, "base": number - 1, "delta": "", "bytes": 1, "received_at": tx.now}
                end = {"status": "refused"} if number % 10 == 0 else {"status": "merged"}
                made["updates"].append(common | sent | end)
        for table, rows in made.items():
            connection.execute(insert(tables.metadata.tables[table]), rows)
        ask("update jobs set head = ? where id = ?", (head + rounds, job))

    server.core.writer.run(decide)


def work(server: Server, asking: Callable[[], object]) -> int:
    """Instructions of SQLite's virtual machine for what is read meanwhile: the same number on every machine."""
    count = 0

    def step() -> int:
        nonlocal count
        count += 1
        return 0

    engine = server.core.reader.engine

    def watch(dbapi: Any, *_: Any) -> None:
        dbapi.set_progress_handler(step, 1)

    event.listen(engine, "checkout", watch)
    try:
        asking()
    finally:
        event.remove(engine, "checkout", watch)
    return count


def test_a_status_costs_the_same_however_long_the_job_has_run(server: Server) -> None:
    job, _, silos = start(server, "[stop]\nversions = 100000\n", "a", "b")
    fail(server, silos[0], job)
    live_through(server, job, silos, 100)
    early = work(server, lambda: server.core.jobs.status(job))
    live_through(server, job, silos, 3000)
    assert 500 < work(server, lambda: server.core.jobs.status(job)) <= early * 1.05


def test_asking_for_work_costs_the_same_however_long_the_job_has_run(server: Server) -> None:
    job, _, silos = start(server, "[stop]\nversions = 100000\n[evaluation]\nevery = 99999\n", "a", "b")
    costs = []
    for rounds in (100, 3000):
        live_through(server, job, silos, rounds)
        costs.append(work(server, lambda: server.lease(silos[0], job)))
        server.core.scheduling.release("a", silos[0].actor, server.lease(silos[0], job).id, "policy", "", "")
    assert costs[1] <= costs[0] * 1.1


# --- for Prometheus ----------------------------------------------------------------------------------------------------


def test_prometheus_has_the_same_numbers_and_names_no_silo(server: Server) -> None:
    job, terms, [a, _] = start(server, '[aggregation]\nmax_wait = "1m"\n', "hospital-a", "hospital-b")
    ended, _ = server.submit("")
    server.core.jobs.change(ADMIN, ended, "abort", "")
    server.clock.advance(10)
    server.send(a, job, terms, 1.0)
    server.lease(a, job)
    server.clock.advance(90)
    vitals = Vitals(server.directory, Sessions(server.clock))
    registry = CollectorRegistry()
    registry.register(Gauges(lambda: server.core.jobs.going_on(()), vitals.look))
    scraped = generate_latest(registry).decode()
    assert "hospital" not in scraped
    assert ended not in scraped
    value = registry.get_sample_value
    assert value("anabranch_job_late_leases", {"job": job}) == 1
    assert value("anabranch_job_late_seconds", {"job": job}) == 30
    assert value("anabranch_job_buffer_age_seconds", {"job": job}) == 90
    assert value("anabranch_job_updates_per_minute", {"job": job}) == pytest.approx(0.6)
    assert value("anabranch_job_silos", {"job": job, "state": "lost"}) == 1
    assert value("anabranch_job_silos", {"job": job, "state": "absent"}) == 1
    assert value("anabranch_job_silos", {"job": job, "state": "backing off"}) == 0
    assert value("anabranch_disk_free_bytes") > 0


def test_traffic_is_what_the_last_minute_carried(server: Server) -> None:
    vitals = Vitals(server.directory, Sessions(server.clock))
    assert vitals.look().received_per_second == 0.0
    for second in range(90):
        vitals.note(float(second))
        metrics.BYTES_IN.inc(0 if second < 20 else 1000)
        metrics.BYTES_OUT.inc(500)
    found = vitals.look()
    assert found.received_per_second == pytest.approx(1000)
    assert found.sent_per_second == pytest.approx(500)
