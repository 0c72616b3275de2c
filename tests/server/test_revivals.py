"""A job with revivals from the first task to the auditor: killed at each gap, exported, verified, replayed bit by bit."""

import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import select

from anabranch.tlog.details import AggregationPerformed
from anabranch.tlog.entry import parse_entry
from anabranch.tlog.revivals import RevivalPerformed, RevivalSkipped
from server.gaps import Gap
from server.state import tables
from tests.server import revival_driver as driver
from tests.server.harness import Server
from tests.server.test_strategies import audited, versions

ROOT = Path(__file__).parents[2]
KILLED = [
    *((driver.REVIVED, gap) for gap in (Gap.REVIVAL_STORED, Gap.REVIVAL_COMMITTED, Gap.REVIVAL_REGISTERED)),
    *((driver.USED, gap) for gap in (Gap.FREEZE_COMMITTED, Gap.SNAPSHOT_STORED, Gap.PUBLISH_COMMITTED)),
]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, ...]]:
    server = Server(tmp_path_factory.mktemp("uninterrupted"))
    driver.play(server)
    found = versions(server)
    server.core.close()
    return found


@pytest.mark.parametrize(("event", "gap"), KILLED)
def test_killed_and_replayed(
    event: int, gap: Gap, tmp_path: Path, uninterrupted: list[tuple[str, ...]]
) -> None:
    """Every result is used once, and every version is the same as without the kill."""
    command = [sys.executable, "-m", "tests.server.revival_driver", str(tmp_path / "server"), str(event), gap]
    died = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert died.returncode == -9, died.stderr
    server = Server(tmp_path / "server")
    job = driver.play(server)
    assert versions(server) == uninterrupted
    history, done = audited(server, tmp_path)
    assert done.exact == len(uninterrupted) - 1 == 4, done.document()
    with server.core.reader.connect() as connection:
        rows = connection.execute(select(tables.entries.c.data).order_by(tables.entries.c.index)).scalars()
        details = [parse_entry(bytes(data)).detail for data in rows]
    made = [one.revival for one in details if isinstance(one, RevivalPerformed)]
    assert len(made) == 3
    used = [one.revival for one in details if isinstance(one, AggregationPerformed)]
    assert used == [
        None,
        made[0],
        None,
        made[2],
    ]  # the second had a silo among its teachers that took its word back
    assert [one.reason for one in details if isinstance(one, RevivalSkipped)] == ["withdrawn"]
    found = history.jobs[job].revivals
    assert [(one.fate, one.used) for one in found.values()] == [("used", 2), ("dropped", -1), ("used", 4)]
    assert {one.silo for one in found[made[2]].detail.teachers} == {"b", "c"}
    server.core.close()
