"""Runs as tasks of a Ray cluster."""

import json
import sys
from pathlib import Path

import pytest

from anabranch import exits
from tests.simulator import samples
from tests.simulator.samples import files, run


def test_without_ray_the_command_that_installs_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    samples.world(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    command = ("simulate", "vector", "--scenario", "scenario.toml", "-o", "out", "--ray", "local", "--json")
    assert run(monkeypatch, *command) == exits.FAILED
    assert "pip install 'anabranch[ray]'" in json.loads(capsys.readouterr().out)["error"]["message"]


@pytest.mark.soak
def test_a_cluster_makes_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray")
    samples.world(tmp_path)
    monkeypatch.chdir(tmp_path)
    command = ("simulate", "vector", "--scenario", "scenario.toml", "--seeds", "0-3", "--json")
    assert run(monkeypatch, *command, "-o", "here") == exits.OK
    assert run(monkeypatch, *command, "-o", "there", "--ray", "local", "--processes", 2) == exits.OK
    assert files(tmp_path / "here") == files(tmp_path / "there")
    capsys.readouterr()

    given = (tmp_path / "scenario.toml").read_text()
    (tmp_path / "scenario.toml").write_text(
        given.replace("[synthetic]\nparameters = 30", '[data.other]\npath = "a.npz"')
    )
    assert run(monkeypatch, *command, "-o", "there", "--ray", "local", "--processes", 2) == exits.FAILED
    assert "has no [data.default]" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert run(monkeypatch, *command, "-o", "there", "--ray", "127.0.0.1:9") == exits.UNAVAILABLE
    assert "no Ray cluster answers" in json.loads(capsys.readouterr().out)["error"]["message"]
