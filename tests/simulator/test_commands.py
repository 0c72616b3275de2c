"""`anabranch simulate` and `anabranch compare` as a person types them."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet
from sklearn.datasets import load_digits

from anabranch import exits
from anabranch.errors import Refused
from console.simulation.commands import parse_seeds
from tests.simulator import samples
from tests.simulator.samples import BIN, files, run

FOREIGN = re.compile(
    r"""(?:src|href)=["'](?!#|seed-\d+/)|https?://(?!www\.w3\.org)|@import|url\((?!#)|<script"""
)


def until(true: Callable[[], bool]) -> None:
    """As long as the test may take."""
    while not true():
        time.sleep(0.02)


def ended(folder: Path) -> set[str]:
    """The runs that are there; one that is being written has a hidden name."""
    return {path.name for path in folder.glob("[!.]*")} if folder.exists() else set()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    samples.world(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", [3]), ("0-4", [0, 1, 2, 3, 4]), ("0,3,7", [0, 3, 7]), ("5,0-1, 1", [0, 1, 5])]
)
def test_seeds_are_written_as_ranges_and_lists(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["4-0", "a", "1,", "-1", "0-99999999", "2147483648", "1-2-3"])
def test_wrong_seeds_are_refused(text: str) -> None:
    with pytest.raises(Refused, match="write for example 0-4"):
        parse_seeds(text)


def test_a_simulation_repeated_is_the_same_bytes(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("simulate", "vector", "--scenario", "scenario.toml", "--seeds", "0-2", "--json")
    assert run(monkeypatch, *command, "-o", "one", "--processes", 2) == exits.OK
    document = json.loads(capsys.readouterr().out)
    assert run(monkeypatch, *command, "-o", "two", "--processes", 1) == exits.OK
    found = files(here / "one")
    assert found == files(here / "two")
    assert set(found) == {"index.html"} | {
        f"seed-{seed}/{name}"
        for seed in range(3)
        for name in (
            "index.html",
            "run.json",
            "updates.parquet",
            "versions.parquet",
            "revivals.parquet",
            "metrics.parquet",
        )
    }
    assert [one["seed"] for one in document["runs"]] == [0, 1, 2]
    assert len({one["jobs"][0]["parameters_sha256"] for one in document["runs"]}) == 3
    for name, data in found.items():
        if name.endswith(".html"):
            assert "<svg" in data.decode()
            assert not FOREIGN.findall(data.decode())
    assert all(f'href="seed-{seed}/index.html"' in found["index.html"].decode() for seed in range(3))
    assert run(monkeypatch, *command, "-o", "one", "--processes", 2) == exits.OK  # what is there is replaced
    assert files(here / "one") == found


def test_the_scenario_s_own_seed_is_the_default(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (here / "scenario.toml").read_text()
    (here / "scenario.toml").write_text(f"seed = 11\n{given}")
    assert run(monkeypatch, "simulate", "vector", "--scenario", "scenario.toml", "-o", "out") == exits.OK
    assert "vector" in capsys.readouterr().out
    assert ended(here / "out") == {"seed-11", "index.html"}


def test_the_page_says_what_happened(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples.job(
        here / "other", samples.JOB.replace('"vector"', '"other"').replace("buffer = 2", "max_staleness = 3")
    )
    assert (
        run(monkeypatch, "simulate", "vector", "other", "--scenario", "scenario.toml", "-o", "out")
        == exits.OK
    )
    page = (here / "out" / "index.html").read_text()
    documents = json.loads((here / "out" / "seed-0" / "run.json").read_text())["jobs"]
    assert [one["job"] for one in documents] == ["vector", "other"]
    assert documents[1]["updates"]["refused"]
    for one in documents:
        assert f"<h2>{one['job']}: fedbuff</h2>" in page
        updates = one["updates"]
        assert f'{updates["merged"]} <span class="of">of {sum(updates.values())}</span>' in page
    assert "<code>too_stale</code>" in page
    assert "the average beside it (EMA)" in page
    assert "40s from 10s, every 60s" in page
    assert page.count("<svg") == 6  # for each job its curve, its silos and how late they were


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["vector", "--scenario", "nowhere.toml", "-o", "out"], exits.FAILED, "there is no scenario"),
        (["nowhere", "--scenario", "scenario.toml", "-o", "out"], exits.FAILED, "does not exist"),
        (["vector", "vector", "--scenario", "scenario.toml", "-o", "out"], exits.FAILED, "different names"),
        (["vector", "--scenario", "data.toml", "-o", "out"], exits.FAILED, "has no [data.default]"),
        (["vector", "--scenario", "scenario.toml", "-o", "vector/task.py"], exits.UNAVAILABLE, "name another place"),
        (["vector", "--scenario", "scenario.toml", "-o", "out", "--processes", "0"], exits.USAGE, "--processes"),
    ],
)  # fmt: skip
def test_what_cannot_be_simulated_is_explained(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    says: str,
) -> None:
    given = (here / "scenario.toml").read_text()
    (here / "data.toml").write_text(
        given.replace("[synthetic]\nparameters = 30", '[data.other]\npath = "a.npz"')
    )
    assert run(monkeypatch, "simulate", *arguments, "--json") == code
    said = capsys.readouterr()
    assert says in json.loads(said.out)["error"]["message"]
    assert "Traceback" not in said.err


def test_what_the_job_s_code_raises_is_told_with_its_lines(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (here / "scenario.toml").read_text()
    (here / "a.csv").write_text("x\n1\n")
    (here / "scenario.toml").write_text(
        given.replace("[synthetic]\nparameters = 30", '[data.default]\npath = "a.csv"\ntest = "a.csv"')
    )
    (here / "vector" / "task.py").write_text(
        "class Vector:\n def model(self): raise KeyError('no such layer')\n dataset = loss = model\n"
    )
    code = run(monkeypatch, "simulate", "vector", "--scenario", "scenario.toml", "-o", "out", "--json")
    assert code == exits.FAILED
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "task_failed"
    assert "no such layer" in error["message"]
    assert "task.py" in error["message"]


def test_interrupted_it_leaves_what_is_finished(here: Path) -> None:
    (here / "scenario.toml").write_text(samples.SCENARIO.format(horizon="30s"))
    argv = [BIN / "anabranch", "simulate", "vector", "--scenario", "scenario.toml", "-o", "out"]
    process = subprocess.Popen([*argv, "--seeds", "0-5000", "--processes", "1"], cwd=here)
    until(lambda: len(ended(here / "out")) >= 2)
    process.send_signal(signal.SIGINT)
    assert process.wait() == exits.INTERRUPTED
    found = ended(here / "out")
    assert "index.html" in found
    page = (here / "out" / "index.html").read_text()
    seeds = found - {"index.html"}
    assert 2 <= len(seeds) < 5000
    assert set(re.findall(r'href="(seed-\d+)/', page)) == seeds
    assert all((here / "out" / seed / "run.json").exists() for seed in seeds)


def test_real_training_of_the_digits(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = load_digits()
    np.savez(here / "digits.npz", x=(digits.data / 16).astype(np.float32), y=digits.target.astype(np.int64))
    (here / "digits.toml").write_text(
        'horizon = "40s"\n[data.digits]\npath = "digits.npz"\ntest = "digits.npz"\n'  # its `test` split
        'deal = { kind = "dirichlet", alpha = 0.5, least = 100 }\n[measure]\nevery = "8s"\nsilos = true\n'
        '[[silos]]\ncount = 2\ntrain = { kind = "constant", seconds = 1 }\n'
        '[[silos]]\ntrain = { kind = "constant", seconds = 5 }\n'
    )
    job = Path(__file__).parents[2] / "examples" / "digits"
    command = ("simulate", job, "--scenario", "digits.toml", "--json")
    assert run(monkeypatch, *command, "-o", "one") == exits.OK
    found = json.loads(capsys.readouterr().out)["runs"][0]["jobs"][0]
    assert found["final"]["accuracy"] > 0.7
    assert found["staleness"]["most"] >= 3
    assert run(monkeypatch, *command, "-o", "two") == exits.OK
    assert files(here / "one") == files(here / "two")


def test_a_comparison_finds_the_better_one(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "compare", "compare.toml", "-o", "out", "--json") == exits.OK
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((here / "out" / "compare.json").read_text())
    entrants = {one["name"]: one for one in document["entrants"]}
    assert [len(one["tried"]) for one in entrants.values()] == [2, 2, 1]
    best = entrants[document["best"]]
    assert best["mean"]["mean"] == max(one["mean"]["mean"] for one in entrants.values())
    assert best["to_best"] is None
    for one in entrants.values():
        tried = [candidate for candidate in one["tried"] if candidate["mean"] is not None]
        if tried:
            assert one["chosen"] == max(tried, key=lambda candidate: candidate["mean"])["values"]
        assert one["mean"]["mean"] == pytest.approx(np.mean(one["final"]))
        if one is not best:
            pairs = np.subtract(one["final"], best["final"])
            assert one["to_best"]["mean"] == pytest.approx(pairs.mean())
            assert one["to_best"]["low"] < one["to_best"]["mean"] < one["to_best"]["high"]
    assert any(time is not None for one in entrants.values() for time in one["reached"])

    runs = parquet.read_table(here / "out" / "runs.parquet").to_pydict()
    assert len(runs["run"]) == 2 * 2 * 2 + 3 * 3
    assert set(runs["run"]) == ended(here / "out" / "runs")
    for name in ("updates", "versions", "metrics"):
        assert set(parquet.read_table(here / "out" / f"{name}.parquet")["run"].to_pylist()) == set(
            runs["run"]
        )

    page = (here / "out" / "index.html").read_text()
    assert f"{document['best']} is ahead" in page
    assert page.count("<svg") == 2
    assert not FOREIGN.findall(page)


def test_a_comparison_killed_half_way_goes_on_where_it_was(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(monkeypatch, "compare", "compare.toml", "-o", "whole", "--processes", 2) == exits.OK
    argv = [BIN / "anabranch", "compare", "compare.toml", "-o", "out", "--processes", "2"]
    process = subprocess.Popen(argv, cwd=here)
    until(lambda: len(ended(here / "out" / "runs")) >= 3)
    workers = children(process.pid)
    process.kill()
    process.wait()
    assert workers
    until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))  # nobody is left behind
    before = {name: (here / "out" / "runs" / name).stat().st_ino for name in ended(here / "out" / "runs")}
    assert 3 <= len(before) < 17
    assert not (here / "out" / "compare.json").exists()

    assert run(monkeypatch, "compare", "compare.toml", "-o", "out", "--processes", 2) == exits.OK
    assert {name: (here / "out" / "runs" / name).stat().st_ino for name in before} == before
    found = {name: data for name, data in files(here / "out").items() if "/." not in name}
    assert found == files(here / "whole")


def test_a_comparison_makes_what_was_changed_anew(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "compare.toml").write_text(
        'job = "vector"\nscenario = "scenario.toml"\nseeds = [0, 1]\n[[entrants]]\nname = "plain"\n'
    )
    assert run(monkeypatch, "compare", "compare.toml", "-o", "out") == exits.OK
    first = ended(here / "out" / "runs")
    assert len(first) == 2
    (here / "compare.toml").write_text((here / "compare.toml").read_text().replace("[0, 1]", "[0, 1, 2]"))
    assert run(monkeypatch, "compare", "compare.toml", "-o", "out") == exits.OK
    more = ended(here / "out" / "runs")
    assert len(more) == 3
    assert more > first
    given = (here / "scenario.toml").read_text()
    (here / "scenario.toml").write_text(given.replace("120s", "121s"))
    assert run(monkeypatch, "compare", "compare.toml", "-o", "out") == exits.OK
    assert len(ended(here / "out" / "runs")) == 6


def test_an_entrant_that_leaves_the_numbers_is_told_apart(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "x\n" + "".join(f"{n % 7}\n" for n in range(50))
    for name in ("a.csv", "b.csv"):
        (here / name).write_text(rows)
    (here / "scenario.toml").write_text(
        'horizon = "20s"\n[data.default]\npath = "a.csv"\ntest = "b.csv"\nvalidation = "b.csv"\n'
        '[measure]\nevery = "5s"\n[[silos]]\ncount = 2\ntrain = { kind = "constant", seconds = 1 }\n'
    )
    (here / "vector" / "task.py").write_text(LINEAR)
    (here / "compare.toml").write_text(
        'job = "vector"\nscenario = "scenario.toml"\nseeds = [0, 1]\ntuning_seeds = [5]\nbudget = 2\nmetric = "nearness"\n'
        '[[entrants]]\nname = "steady"\ntune = { "training.optimizer.lr" = [1e9, 0.01] }\n'
        '[[entrants]]\nname = "wild"\n[entrants.training]\noptimizer = { lr = 1e9 }\n'
    )
    assert run(monkeypatch, "compare", "compare.toml", "-o", "out", "--processes", 1, "--json") == exits.OK
    steady, wild = json.loads(capsys.readouterr().out)["entrants"]
    assert steady["chosen"] == {"training.optimizer.lr": 0.01}
    assert [tried["mean"] is None for tried in steady["tried"]] == [True, False]
    assert wild["final"] == [None, None]
    assert wild["mean"] is None
    assert "left the numbers on 2 of 2 seeds" in (here / "out" / "index.html").read_text()

    (here / "compare.toml").write_text((here / "compare.toml").read_text().replace("nearness", "beauty"))
    assert run(monkeypatch, "compare", "compare.toml", "-o", "out", "--json") == exits.FAILED
    assert "measured by nearness, not by beauty" in json.loads(capsys.readouterr().out)["error"]["message"]


LINEAR = """import csv
import torch

class Vector:
    def model(self):
        return torch.nn.Linear(1, 1)

    def dataset(self, data, split):
        with open(data.path) as file:
            x = torch.tensor([[float(row["x"])] for row in csv.DictReader(file)])
        return torch.utils.data.TensorDataset(x, 2 * x)

    def loss(self, model, batch):
        x, y = batch
        return torch.nn.functional.mse_loss(model(x), y)

    def evaluate(self, model, batches):
        off = [float(torch.nn.functional.mse_loss(model(x), y)) for x, y in batches]
        return {"nearness": 1 / (1 + sum(off) / len(off))}
"""


def children(process: int) -> list[int]:
    """Of it and of its children, by id."""
    tasks = Path(f"/proc/{process}/task")
    direct = [int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()]
    return direct + [
        child for one in direct if os.path.exists(f"/proc/{one}/task") for child in children(one)
    ]
