"""Every asynchronous strategy from the first update to the auditor: killed on the way, exported, replayed bit by bit."""

import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import select

from anabranch.tlog.details import AggregationPerformed
from anabranch.tlog.entry import parse_entry
from auditor.export import Export
from auditor.history import History
from auditor.pin import pin
from auditor.replay import Replay, replay
from auditor.verify import verify
from server.audit.export import export
from server.gaps import Gap
from server.state import records, tables
from tests.server import strategy_driver as driver
from tests.server.harness import Server, fake_silo

ROOT = Path(__file__).parents[2]


def steps(server: Server) -> list[AggregationPerformed]:
    with server.core.reader.connect() as connection:
        rows = connection.execute(select(tables.entries.c.data).order_by(tables.entries.c.index)).scalars()
        entries = [parse_entry(bytes(data)) for data in rows]
    return [entry.detail for entry in entries if isinstance(entry.detail, AggregationPerformed)]


def versions(server: Server) -> list[tuple[str, ...]]:
    with server.core.reader.connect() as connection:
        c = tables.versions.c
        query = select(c.parameters, c.optimizer, c.ema, c.scalars).order_by(c.number)
        return [tuple(row) for row in connection.execute(query)]


def audited(server: Server, scratch: Path) -> tuple[History, Replay]:
    out = scratch / "export"
    export(server.core.reader, server.core.blobs, server.signer.vkey, b"", out, False)
    opened = Export(out)
    checked = verify(opened, pin(opened, server.signer.vkey))
    assert [one for one in checked.report.findings if one.where != "keys/ca.pem"] == []  # there is no CA here
    return checked.history, replay(opened, checked.history, scratch)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[str, ...]]]:
    found = {}
    for case in driver.CASES:
        server = Server(tmp_path_factory.mktemp(case))
        driver.play(server, case)
        found[case] = versions(server)
        server.core.close()
    return found


@pytest.mark.parametrize("case", driver.CASES)
@pytest.mark.parametrize("gap", [Gap.FREEZE_COMMITTED, Gap.SNAPSHOT_STORED, Gap.PUBLISH_COMMITTED])
def test_killed_and_replayed(
    case: str, gap: Gap, tmp_path: Path, uninterrupted: dict[str, list[object]]
) -> None:
    command = [sys.executable, "-m", "tests.server.strategy_driver", str(tmp_path / "server"), case, gap]
    died = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert died.returncode == -9, died.stderr
    server = Server(tmp_path / "server")
    driver.play(server, case)
    assert versions(server) == uninterrupted[case]
    assert len(uninterrupted[case]) >= 4
    _, done = audited(server, tmp_path)
    assert done.exact == len(uninterrupted[case]) - 1, done.document()
    server.core.close()


def test_what_ca2fl_counts_is_who_approves(tmp_path: Path) -> None:
    """b's cached delta is out while b is, and back with it; d counts from its approval; each silo's newest is taken."""
    server = Server(tmp_path / "server")
    driver.play(server, "ca2fl")
    with server.core.reader.connect() as connection:
        owner = {row.id: row.silo for row in connection.execute(select(tables.updates))}
    told = [
        (
            "".join(step.participants or ()),
            "".join(one.silo for one in step.inputs),
            {owner[term.update or ""]: float.fromhex(term.coefficient) for term in step.further or ()},
        )
        for step in steps(server)
    ]
    third, half = 1 / 3, 1 / 2
    assert told == [
        ("abc", "ab", {}),
        ("abc", "ac", {"a": third - half, "b": third}),
        ("acd", "ad", {"a": third - half, "c": third}),
        ("abcd", "bc", {"a": 1 / 4, "b": 1 / 4 - half, "c": 1 / 4 - half, "d": 1 / 4}),
    ]
    merged: dict[str, str] = {}
    for step in steps(server):
        for term in step.further or ():
            assert merged[owner[term.update or ""]] == term.update
        merged |= {one.silo: one.update for one in step.inputs}
    server.core.close()


def test_fedfix_counts_windows_since_the_approval(tmp_path: Path) -> None:
    server = Server(tmp_path / "server")
    driver.play(server, "fedfix")
    told = [
        [(one.silo, one.arrived, one.windows, float.fromhex(one.coefficient)) for one in step.inputs]
        for step in steps(server)
    ]
    assert told == [
        [("a", 1, 1, 1 / 3), ("b", 1, 1, 1 / 3)],
        [("a", 2, 2, 1 / 3), ("c", 1, 2, 1 / 0.6 / 3)],
        [("a", 3, 3, 1 / 3), ("d", 1, 1, 1 / 3)],
        [("b", 1, 1, 1 / 4), ("c", 2, 4, 1 / 0.6 / 4)],
    ]
    assert {step.closed_by for step in steps(server)} == {"interval"}
    assert ["".join(step.participants or ()) for step in steps(server)] == ["abc", "abc", "acd", "abcd"]
    server.core.close()


def test_fedasync_names_the_versions_it_mixes(tmp_path: Path) -> None:
    server = Server(tmp_path / "server")
    driver.play(server, "fedasync")
    told = {
        step.version: [(term.version, float.fromhex(term.coefficient)) for term in step.further or ()]
        for step in steps(server)
    }
    assert told[1] == []  # fresh: the base is the head
    assert told[4] == [(0, 0.6), (3, -0.6)]  # c began at version 0
    server.core.close()


@pytest.mark.parametrize("case", ["fedasync", "ca2fl"])
def test_what_a_step_reads_outlives_retention(case: str, tmp_path: Path) -> None:
    """Old snapshots go; the base of an open lease and cached deltas stay; replay makes the others again."""
    server = Server(tmp_path / "server")
    job = driver.play(server, case)
    silos = [fake_silo(name) for name in "ab"]
    with server.core.reader.connect() as connection:
        terms = records.job_terms(connection, job)
    held = server.lease(silos[1], job)
    for event in (100, 101, 102, 103):
        driver.send(server, silos[0], job, terms, event)
        server.core.aggregation.advance(job)
    server.clock.advance(8 * 86400)
    server.core.retention.prune()
    with server.core.reader.connect() as connection:
        head = records.job_row(connection, job).head
        stored = [records.version_row(connection, job, number).parameters for number in range(head + 1)]
    kept = {number for number, digest in enumerate(stored) if server.core.blobs.holds(digest)}
    assert kept == {0, held.view.version, head}
    driver.send(server, silos[1], job, terms, 104)
    driver.send(server, silos[0], job, terms, 105)
    while server.core.aggregation.advance(job):
        pass
    assert any(
        one.silo == "b" and one.staleness for one in steps(server)[-2].inputs + steps(server)[-1].inputs
    )
    _, done = audited(server, tmp_path)
    assert done.exact == len(steps(server)) > head, done.document()
    server.core.close()


@pytest.mark.parametrize(("case", "left"), [("ca2fl", True), ("fedfix", True), ("fedasync", False)])
def test_a_step_is_frozen_again_when_who_counts_has_changed(case: str, left: bool, tmp_path: Path) -> None:
    """c, which has nothing in the buffer, withdraws while the step is computed."""
    left_in: list[str] = []

    def reached(gap: str) -> None:
        if gap == Gap.SNAPSHOT_STORED and left_in == ["now"]:
            left_in.append("gone")
            server.decide(fake_silo("c"), job, terms, "withdraw")

    server = Server(tmp_path / "server", reached)
    job = driver.play(server, case)
    with server.core.reader.connect() as connection:
        terms = records.job_terms(connection, job)
    for name in "ab":
        driver.send(server, fake_silo(name), job, terms, ord(name))
    server.clock.advance(60.0)
    left_in.append("now")
    assert server.core.aggregation.advance(job) is not left
    while server.core.aggregation.advance(job):
        pass
    newest = steps(server)[-1]
    assert "c" not in (newest.participants or ())
    assert {one.silo for one in newest.inputs} <= {"a", "b"}
    audited(server, tmp_path)
    server.core.close()
