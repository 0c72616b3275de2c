"""Jobs, scenarios and comparisons small enough for seconds."""

import sys
from pathlib import Path

import pytest

from console import main as console_main

JOB = """[job]
name = "vector"
task = "task.py:Vector"
[aggregation]
buffer = 2
[evaluation]
every = 1000000
[stop]
versions = 1000000
"""
SCENARIO = """horizon = "{horizon}"
[synthetic]
parameters = 30
[measure]
every = "10s"
silos = true
average = true
[[silos]]
count = 3
train = {{ kind = "lognormal", median = 1.0, sigma = 0.3 }}
[[silos]]
train = {{ kind = "constant", seconds = 9 }}
upload = {{ kind = "uniform", low = 0.1, high = 0.5 }}
available = {{ every = "60s", from = "10s", lasts = "40s" }}
dropout = {{ probability = 0.1, away = {{ kind = "exponential", mean = 5 }} }}
"""
COMPARISON = """job = "vector"
scenario = "scenario.toml"
tuning_seeds = [100, 101]
seeds = [0, 1, 2]
budget = 2
target = 0.6
[[entrants]]
name = "buffered"
tune = { "aggregation.server_optimizer.lr" = [0.2, 0.5, 1.0], "aggregation.buffer" = [1, 3] }
[[entrants]]
name = "rounds"
aggregation = { strategy = "fedavg", max_wait = "20s" }
tune = { "aggregation.server_optimizer.lr" = [0.5, 1.0] }
[[entrants]]
name = "plain"
"""
BIN = Path(sys.executable).parent


def job(folder: Path, text: str = JOB) -> Path:
    """The folder of a job whose code nobody calls: its scenarios are synthetic."""
    folder.mkdir()
    (folder / "job.toml").write_text(text)
    (folder / "task.py").write_text("class Vector: ...\n")
    return folder


def world(folder: Path, horizon: str = "120s") -> Path:
    """A job, a scenario and a comparison; the path of the last."""
    job(folder / "vector")
    (folder / "scenario.toml").write_text(SCENARIO.format(horizon=horizon))
    (folder / "compare.toml").write_text(COMPARISON)
    return folder / "compare.toml"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """What a person types, in this process; the exit code."""
    monkeypatch.setattr(sys, "argv", ["anabranch", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        console_main.main()
    return int(ended.value.code or 0)


def files(folder: Path, without: str = "speed.json") -> dict[str, bytes]:
    """Every file under `folder` by its relative path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != without
    }
