"""Jobs that share silos by FedAST, over the real state store: who gets the next lease, and what a restart remembers."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from anabranch.terms import JobTerms
from server.core.allocation import WINDOW, Allocation
from server.scheduling import Lease, Wait
from server.sharing import PATIENCE
from server.state import tables
from tests.server.harness import ADMIN, FakeSilo, Server

JOB = '[aggregation]\nbuffer = 2\nmax_wait = "1h"\n[evaluation]\nevery = 1000\n[stop]\nversions = 1000\n'
Shared = Callable[[Allocation], Server]


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Shared]:
    made: list[Server] = []

    def make(allocation: Allocation) -> Server:
        made.append(Server(tmp_path / f"server-{len(made)}", allocation=allocation))
        return made[-1]

    yield make
    for one in made:
        one.core.close()


def approved(server: Server, *silos: FakeSilo) -> tuple[str, JobTerms]:
    job, terms = server.submit(JOB)
    for silo in silos:
        server.decide(silo, job, terms)
    return job, terms


def merged(server: Server, silo: FakeSilo, job: str, terms: JobTerms, values: list[float]) -> None:
    """Updates that become versions, two by two; the silo asks for this job alone and is patient."""
    for value in values:
        if isinstance(server.core.scheduling.next_task(silo.name, [job]), Wait):
            server.clock.advance(PATIENCE)
        assert server.send(silo, job, terms, value).reason == ""
        server.core.aggregation.advance(job)


def restart(server: Server) -> None:
    server.core.close()
    server.core = server._open()


def scores(server: Server) -> dict[str, float | None]:
    with server.core.reader.connect() as connection:
        return {row.id: row.score for row in connection.execute(select(tables.jobs))}


def kept(server: Server) -> list[str]:
    """Jobs of which there are sketches."""
    with server.core.reader.connect() as connection:
        return list(connection.execute(select(tables.sketches.c.job)).scalars())


def told(server: Server) -> dict[str, tuple[int, int, str]]:
    found = {one.job: one.share for one in server.core.jobs.status()}
    return {job: (share.leases, share.active, share.why) for job, share in found.items() if share}


def test_the_job_whose_updates_disagree_has_the_larger_share_and_a_restart_knows(shared: Shared) -> None:
    server = shared(Allocation("fedast"))
    silos = [server.enrol(f"silo-{number}") for number in range(6)]
    steady, terms = approved(server, *silos)
    noisy, _ = approved(server, *silos)
    assert {why for _, _, why in told(server).values()} == {
        "the mean of the others: no score before 8 updates"
    }
    merged(server, silos[0], steady, terms, [0.9, 1.1] * (WINDOW // 2))  # variance 0.01, mean 1
    merged(server, silos[0], noisy, terms, [-1.0, 3.0] * (WINDOW // 2))  # variance 4, mean 1
    assert scores(server)[steady] == pytest.approx(0.1, rel=1e-5)
    assert scores(server)[noisy] == pytest.approx(2.0, rel=1e-5)
    works_on = {silo: server.core.scheduling.next_task(silo.name, [steady, noisy]).job for silo in silos}
    before = told(server)
    assert before[noisy][0] == 5
    assert before[steady][0] == 1
    assert before[noisy][1] + before[steady][1] == 6
    assert before[noisy][2] == "score 2.00"
    restart(server)
    assert told(server) == before
    one = next(silo for silo in silos if works_on[silo] == noisy)
    merged(server, one, noisy, terms, [1.0, 1.0])  # two of eight are replaced: variance 3, mean 1
    assert scores(server)[noisy] == pytest.approx(2.0 + (3.0**0.5 - 2.0) / 8, rel=1e-5)


def test_a_version_that_a_crash_interrupted_counts_once(shared: Shared) -> None:
    found = []
    for dies in (False, True):
        server = shared(Allocation("fedast"))
        silo = server.enrol("silo")
        job, terms = approved(server, silo)
        merged(server, silo, job, terms, [1.0, 2.0] * (WINDOW // 2 - 1))
        server.send(silo, job, terms, 5.0)
        server.send(silo, job, terms, 7.0)
        assert server.core.aggregation.freeze(job) is not None
        if dies:
            restart(server)
        assert server.core.aggregation.advance(job)
        found.append(scores(server)[job])
    assert found[0] is not None
    assert found[0] == found[1]


def test_a_silo_that_approves_one_job_is_never_kept_waiting(shared: Shared) -> None:
    server = shared(Allocation("fedast-static"))
    both, one_only = server.enrol("both"), server.enrol("one-only")
    job, terms = approved(server, both, one_only)
    other, _ = approved(server, both)
    assert server.core.scheduling.next_task("both", [job, other]).job == job
    for _ in range(4):  # the other job has nobody and is further below its share each time
        server.send(one_only, job, terms, 1.0)
    assert isinstance(server.core.scheduling.next_task("one-only", [job, other]), Lease)


def test_no_job_starves_whatever_is_stated(shared: Shared) -> None:
    server = shared(Allocation("fedast-static", {"digits": 1.0}))
    silo = server.enrol("silo")
    jobs = dict(approved(server, silo) for _ in range(3))
    counts = dict.fromkeys(jobs, 0)
    for _ in range(12):
        lease = server.core.scheduling.next_task(silo.name, list(jobs))
        assert isinstance(lease, Lease)
        counts[lease.job] += 1
        delta = silo.delta(server.directory, 1.0)
        statement = silo.statement(lease, jobs[lease.job], delta)
        assert server.upload(silo, statement, delta.read_bytes()).reason == ""
        server.core.aggregation.advance(lease.job)
    assert set(counts.values()) == {4}


def test_a_job_is_told_to_wait_for_the_one_that_is_next_and_only_so_long(shared: Shared) -> None:
    """Agents ask for one job at a time. One that does not ask, though its silo approved it, holds nobody up."""
    server = shared(Allocation("fedast-static"))
    silo = server.enrol("silo")
    first, terms = approved(server, silo)
    second, second_terms = approved(server, silo)
    server.send(silo, first, terms, 1.0)
    waits = server.core.scheduling.next_task("silo", [first])
    assert isinstance(waits, Wait)
    assert waits.reason == "the next lease of this silo is for digits"
    server.send(silo, second, second_terms, 1.0)  # it asks, and has its lease at once
    server.send(silo, first, terms, 1.0)
    assert isinstance(server.core.scheduling.next_task("silo", [first]), Wait)
    server.clock.advance(PATIENCE)
    for _ in range(4):  # it was passed over, and is until it asks
        server.send(silo, first, terms, 1.0)
    server.send(silo, second, second_terms, 1.0)
    assert isinstance(server.core.scheduling.next_task("silo", [first]), Wait)


def test_regression_a_job_that_asks_while_its_silo_is_at_work_is_passed_over_no_more(shared: Shared) -> None:
    """It would otherwise find the silo at work whenever it asks, for good."""
    server = shared(Allocation("fedast-static"))
    silo = server.enrol("silo")
    first, terms = approved(server, silo)
    second, _ = approved(server, silo)
    server.send(silo, first, terms, 1.0)
    assert isinstance(server.core.scheduling.next_task("silo", [first]), Wait)
    server.clock.advance(PATIENCE)
    server.lease(silo, first)
    assert isinstance(server.core.scheduling.next_task("silo", [second]), Wait)
    server.send(silo, first, terms, 1.0)
    assert isinstance(server.core.scheduling.next_task("silo", [first]), Wait)
    server.lease(silo, second)


def test_a_silo_trains_for_one_job_at_a_time_until_it_is_late(shared: Shared) -> None:
    server = shared(Allocation("fedast-static"))
    silo = server.enrol("silo")
    (first, terms), (second, _) = approved(server, silo), approved(server, silo)
    server.lease(silo, first)
    waits = server.core.scheduling.next_task("silo", [second])
    assert isinstance(waits, Wait)
    assert waits.reason == "this silo trains for another job"
    server.clock.advance(3600.0)
    assert server.lease(silo, second).job == second
    assert terms.file.aggregation.max_wait == "1h"


def test_sketches_go_when_the_deltas_go(shared: Shared) -> None:
    server = shared(Allocation("fedast"))
    silo = server.enrol("silo")
    job, terms = approved(server, silo)
    merged(server, silo, job, terms, [1.0, 2.0])
    assert kept(server) == [job]
    server.core.jobs.change(ADMIN, job, "abort", "")
    server.core.retention.prune()
    assert kept(server) == [job]
    server.clock.advance(31 * 24 * 3600.0)
    server.core.retention.prune()
    assert kept(server) == []


def test_by_turns_nothing_of_it_is_kept_or_told(shared: Shared) -> None:
    server = shared(Allocation())
    silo = server.enrol("silo")
    (job, terms), (other, _) = approved(server, silo), approved(server, silo)
    merged(server, silo, job, terms, [1.0, 2.0] * WINDOW)
    assert {server.lease(silo, one).job for one in (job, other)} == {job, other}
    assert told(server) == {}
    assert set(scores(server).values()) == {None}
    assert kept(server) == []
