"""A fedcompass job on the server: what is leased, what waits, what closes; the same when it restarts all the time."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from anabranch.tlog.details import LeaseIssued
from anabranch.tlog.entry import parse_entry
from server.scheduling import Lease, Wait
from server.state import records, tables
from tests.server import strategy_driver as driver
from tests.server.harness import Server, fake_silo
from tests.server.test_strategies import audited, steps, versions

TERMS = (
    "[silos]\nmin = 3\n[training]\nlocal_steps = 100\n[evaluation]\nevery = 50\n"
    '[aggregation]\nstrategy = "fedcompass"\nlocal_steps_min = 20\nmax_wait = "1h"\n'
)
# Seconds, and who sends ("a") or asks for work ("A"); what closes is merged after each moment.
HISTORY = [
    *((0.0, "ABC"), (100.0, "a"), (100.0, "A"), (150.0, "b"), (150.0, "B")),
    *((199.5, "b"), (199.5, "B"), (200.0, "a"), (200.0, "BA"), (260.0, "c"), (260.0, "C")),
    *((299.0, "b"), (321.0, ""), (321.0, "B"), (330.0, "a"), (330.0, "A"), (418.0, "bc"), (418.5, "a")),
]
LEASED = [  # silo, steps, group, expected, waited for until, as in the formulas of the paper
    *(("a", 100, None, None, 3600.0), ("b", 100, None, None, 3600.0), ("c", 100, None, None, 3600.0)),
    ("a", 100, 3, 200.0, 220.0),  # a second for a step: 100 + 100 * 1, times 1.2
    ("b", 33, 3, 200.0, 220.0),  # floor(50 / 1.5)
    ("b", 66, 5, 300.0, 320.0),  # asks first, but a is faster: floor(100 / 1.5)
    ("a", 100, 5, 300.0, 320.0),
    ("c", 61, 7, 260 + 61 * 2.6, 260 + 61 * 2.6 * 1.2),  # floor((320 + 100 * 1 - 260) / 2.6)
    ("b", 65, 7, 260 + 61 * 2.6, 260 + 61 * 2.6 * 1.2),  # floor((418.6 - 321) / 1.5)
    (
        "a",
        69,
        7,
        260 + 61 * 2.6,
        260 + 61 * 2.6 * 1.2,
    ),  # late: 0.1 * 1 + 0.9 * 1.3; floor((418.6 - 330) / 1.27)
]
MADE = [  # how it closed, whose updates, who was absent
    *(("first", "a", ()), ("first", "b", ()), ("full", "ba", ()), ("first", "c", ())),
    *(("latest", "b", ("a",)), ("full", "abca", ())),
]


def play(server: Server, restarts: bool) -> tuple[Server, list[str]]:
    """HISTORY, with another process for each moment or with one; who had to wait, and when."""
    driver.begin(server)
    for name in "abc":
        driver.enrol(server, name)
    job, terms = server.submit(TERMS, driver.LAYOUT)
    for name in "abc":
        server.decide(fake_silo(name), job, terms)
    held: dict[str, Lease] = {}
    waited = []
    for event, (at, who) in enumerate(HISTORY):
        if restarts:
            server.core.close()
            server = Server(server.directory)
        server.clock.now = driver.START + at
        for number, name in enumerate(who):
            silo = fake_silo(name.lower())
            if name.isupper():
                found = server.core.scheduling.next_task(silo.name, [job])
                if isinstance(found, Wait):
                    waited.append(f"{silo.name} at {at}")
                else:
                    held[silo.name] = found
            else:
                lease, path = held.pop(name), driver.delta(server, 10 * event + number)
                statement = silo.statement(lease, terms, path, sequence=event, checkpoint=driver.seen(server))
                assert server.upload(silo, statement, path.read_bytes()).reason == ""
        while server.core.aggregation.advance(job):
            pass
    return server, waited


def leased(server: Server) -> list[tuple[Any, ...]]:
    with server.core.reader.connect() as connection:
        rows = connection.execute(select(tables.leases).order_by(tables.leases.c.entry)).all()
    numbers = {row.id: number for number, row in enumerate(rows)}
    return [
        (
            row.silo,
            row.local_steps,
            numbers.get(row.arrival_group),
            row.expected and row.expected - driver.START,
            row.deadline - driver.START,
        )
        for row in rows
    ]


@pytest.fixture(scope="module", params=[False, True], ids=["at a stretch", "restarted at each moment"])
def played(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    server, waited = play(Server(tmp_path_factory.mktemp("server")), request.param)
    yield server, waited
    server.core.close()


def test_steps_and_groups_are_those_of_the_formulas(played: tuple[Server, list[str]]) -> None:
    server, waited = played
    for found, expected in zip(leased(server), LEASED, strict=True):
        assert found == pytest.approx(expected, abs=1e-5)
    assert waited == ["b at 199.5"]
    told = [(step.closed_by, "".join(one.silo for one in step.inputs), step.absent) for step in steps(server)]
    assert told == MADE


def test_the_models_are_the_same(played: tuple[Server, list[str]], tmp_path: Path) -> None:
    server, _ = played
    other, _ = play(Server(tmp_path), False)
    assert versions(server) == versions(other)
    other.core.close()


def test_the_log_says_what_was_scheduled_and_the_auditor_recomputes_it(
    played: tuple[Server, list[str]], tmp_path: Path
) -> None:
    server, _ = played
    with server.core.reader.connect() as connection:
        entries = connection.execute(select(tables.entries.c.data).order_by(tables.entries.c.index)).scalars()
        details = [parse_entry(bytes(data)).detail for data in entries]
    issued = [detail for detail in details if isinstance(detail, LeaseIssued)]
    assert [detail.local_steps for detail in issued] == [steps for _, steps, *_ in LEASED]
    groups = [detail.group and [one.lease for one in issued].index(detail.group) for detail in issued]
    assert groups == [group for _, _, group, *_ in LEASED]
    history, done = audited(server, tmp_path)
    assert done.exact == len(MADE) == max(next(iter(history.jobs.values())).steps)


def test_a_member_that_gives_its_lease_back_is_not_waited_for(tmp_path: Path) -> None:
    """And one that withdraws neither."""
    server = Server(tmp_path)
    silos = [server.enrol(name) for name in "abc"]
    job, terms = server.submit(TERMS.replace("min = 3", "min = 1"))
    for silo in silos:
        server.decide(silo, job, terms)
        lease = server.lease(silo, job)
        server.clock.advance(100.0)
        path = silo.delta(tmp_path, 1.0)
        server.upload(silo, silo.statement(lease, terms, path), path.read_bytes())
        assert server.core.aggregation.advance(job)
    leases = [server.lease(silo, job) for silo in silos]
    server.clock.advance(50.0)
    path = silos[0].delta(tmp_path, 2.0)
    server.upload(silos[0], silos[0].statement(leases[0], terms, path), path.read_bytes())
    assert not server.core.aggregation.advance(job)
    assert isinstance(server.core.scheduling.next_task("a", [job]), Wait)
    server.core.scheduling.release("b", silos[1].actor, leases[1].id, "task_failed", "", "")
    assert not server.core.aggregation.advance(job)
    server.decide(silos[2], job, terms, "withdraw")
    assert server.core.aggregation.advance(job)
    assert [(step.closed_by, len(step.inputs)) for step in steps(server)][-1] == ("full", 1)
    with server.core.reader.connect() as connection:
        assert records.job_row(connection, job).head == 4
    server.core.close()
