"""The demo with a reviver: the same job three times on the same silos, one log, one report."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.federation import BIN, environment

pytestmark = pytest.mark.timeout(900)  # a dozen processes import torch


def demo(directory: Path, *options: str) -> dict[str, Any]:
    command = [str(BIN / "anabranch"), "demo", "--strategy", "revive", *options]
    done = subprocess.run(
        [*command, "--dir", str(directory), "--json"],
        capture_output=True,
        text=True,
        timeout=850,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["verdict"]["log_verified"]
    assert report["verdict"]["replayed_bit_exactly"]
    assert "Was revival worth it?" in (directory / "report.html").read_text()
    return report


def test_a_short_demo_ranks_three_strategies(tmp_path: Path) -> None:
    revival = demo(tmp_path / "demo", "--silos", "1", "--versions", "2")["revival"]
    assert [one["name"] for one in revival["entrants"]] == ["fedbuff", "ca2fl", "revive"]
    assert {one["versions"] for one in revival["entrants"]} == {2}
    assert len({one["job"] for one in revival["entrants"]}) == 3
    assert (tmp_path / "demo" / "reviver").is_dir()


@pytest.mark.soak
def test_a_whole_demo_revives_and_survives_the_server_s_death(tmp_path: Path) -> None:
    report = demo(tmp_path / "demo", "--kill-server-at", "30")
    reviver = report["revival"]["reviver"]
    assert report["server_killed"]["seconds_until_next_update"] is not None
    assert reviver["used"] > 0
    assert all(reviver["teachers"].values())
    assert sum(reviver["not_used"].values()) + reviver["used"] == reviver["tasks"]
