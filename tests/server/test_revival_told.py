"""What an operator and whoever gets a model are told of revivals: /metrics and the model card."""

from pathlib import Path

import pytest
from prometheus_client import REGISTRY, CollectorRegistry
from sqlalchemy import select

from anabranch.tlog.entry import parse_entry
from server import metrics
from server.card import model_card
from server.gauges import Gauges
from server.sessions import Sessions
from server.state import records, tables
from server.vitals import Vitals
from tests.server import revival_driver as driver
from tests.server.harness import Server
from tests.server.test_lifecycle import start


@pytest.fixture
def played(tmp_path: Path) -> tuple[Server, str]:
    """Three results: taught by a and b, used in 2; dropped, as a took its word back; taught by b and c, used in 4."""
    server = Server(tmp_path / "server")
    return server, driver.play(server)


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_counters_follow_the_log(played: tuple[Server, str]) -> None:
    server, job = played
    with server.core.reader.connect() as connection:
        rows = connection.execute(select(tables.entries.c.data).order_by(tables.entries.c.index)).scalars()
        log = [parse_entry(bytes(data)) for data in rows]
    before = value("anabranch_revivals_skipped_total", reason="withdrawn")
    timed = value("anabranch_revival_seconds_count")
    for entry in log:
        metrics.observe(entry.type, entry.job, entry.detail.model_dump())
    assert value("anabranch_revivals_performed_total", job=job) == 3
    assert value("anabranch_revivals_used_total", job=job) == 2
    assert value("anabranch_revivals_skipped_total", reason="withdrawn") == before + 1
    assert value("anabranch_revival_seconds_count") == timed + 3


def test_gauges_tell_what_became_of_tasks_and_name_no_silo(played: tuple[Server, str]) -> None:
    server, job = played
    with server.core.reader.connect() as connection:
        assert records.teaching(connection, job) == ["b", "c"]
    registry = CollectorRegistry()
    vitals = Vitals(server.directory, Sessions(server.clock))
    registry.register(Gauges(lambda: server.core.jobs.going_on(()), vitals.look))
    told = {
        outcome: registry.get_sample_value("anabranch_job_revivals", {"job": job, "outcome": outcome})
        for outcome in ("claimed", "done", "used", "dropped", "skipped")
    }
    assert told == {"claimed": 0, "done": 0, "used": 2, "dropped": 1, "skipped": 0}
    assert registry.get_sample_value("anabranch_job_revival_teachers", {"job": job}) == 2


def card(server: Server, job: str, version: int) -> str:
    with server.core.reader.connect() as connection:
        row = records.job_row(connection, job)
        return model_card(connection, row, version, "0" * 64, str(version))


def test_a_card_says_what_was_distilled_into_this_version_and_who_taught_it(
    played: tuple[Server, str],
) -> None:
    server, job = played
    assert "nothing distilled was added to any version up to this one" in card(server, job, 1)
    assert "was added to 1 of 3 versions" in card(server, job, 3)
    last = card(server, job, 4)
    assert "0.3 times what a reviver distilled" in last
    assert "was added to 2 of 4 versions" in last
    rows = {
        line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[-1]
        for line in last.splitlines()
        if "|" in line
    }
    assert (rows["a"], rows["b"], rows["c"]) == ("1", "2", "1")


def test_a_card_of_a_job_without_revival_says_so(server: Server) -> None:
    job, _, _ = start(server, "", "a")
    assert "- no revival" in card(server, job, 0)
