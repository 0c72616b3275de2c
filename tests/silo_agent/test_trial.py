"""`anabranch-silo try`: the job's code, in the real training process with torch, against data of this site."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from anabranch.errors import Reason, Refused
from silo_agent.main import app
from silo_agent.training import launcher

TASK = """
import numpy as np
import torch


class Tiny:
    def model(self):
        return torch.nn.Linear(4, 2)

    def dataset(self, data, split):
        x = torch.from_numpy(np.load(data.path / "x.npy"))
        return torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())

    def loss(self, model, batch):
        x, y = batch
        return torch.nn.functional.cross_entropy(model(x), y)

    def evaluate(self, model, batches):
        hits = [(model(x).argmax(1) == y).float().mean().item() for x, y in batches]
        return {"accuracy": sum(hits) / len(hits)}
"""
JOB = '[job]\nname = "tiny"\ntask = "task.py:Tiny"\ndata = "records"\n[training]\nlocal_steps = 40\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    job, data = tmp_path / "job", tmp_path / "data"
    job.mkdir()
    data.mkdir()
    (job / "job.toml").write_text(JOB)
    (job / "task.py").write_text(TASK)
    np.save(data / "x.npy", np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32))
    return job


def test_it_trains_and_says_what_would_be_sent(folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "silo"
    home.mkdir()
    (home / "policy.toml").write_text(f'[data.records]\npath = "{tmp_path / "data"}"\n')
    done = CliRunner().invoke(app, ["try", str(folder), "--dir", str(home), "--steps", "30", "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["steps"] == 30
    assert said["norm"] > 0
    assert said["after"]["accuracy"] > said["before"]["accuracy"]
    assert not (home / "jobs").exists()


def test_code_that_fails_shows_its_traceback_here(folder: Path, tmp_path: Path) -> None:
    (folder / "task.py").write_text(TASK.replace("x, y = batch", "raise KeyError('no such column')"))
    done = CliRunner().invoke(
        app, ["try", str(folder), "--data", str(tmp_path / "data"), "--dir", str(tmp_path)]
    )
    assert isinstance(done.exception, Refused)
    assert done.exception.code is Reason.TASK_FAILED
    assert "no such column" in str(done.exception)
    assert "task.py" in str(done.exception)


def test_a_traceback_that_reaches_the_log_late_is_shown_as_well(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = launcher._keep_log

    def keep_late(fd: int, path: Path) -> None:
        time.sleep(6)  # the daemon is busy: the failure is told long before what was printed is read
        keep(fd, path)

    monkeypatch.setattr(launcher, "_keep_log", keep_late)
    test_code_that_fails_shows_its_traceback_here(folder, tmp_path)


def test_data_that_is_not_bound_is_asked_for(folder: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["try", str(folder), "--dir", str(tmp_path)])
    assert isinstance(done.exception, Refused)
    assert "--data PATH" in str(done.exception)
