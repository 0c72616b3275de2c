"""What is drawn and told of runs: on the terminal meanwhile, and in pictures of many curves."""

import io
import re
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console
from rich.progress import Progress

from console.simulation import parts, pictures
from console.simulation.comparison_page import render
from console.simulation.pictures import Look
from console.simulation.progress import Board
from simulator.statistics import band
from tests.simulator.test_statistics import points


def test_the_board_has_a_line_for_each_run_that_goes_on() -> None:
    with Progress(console=Console(file=io.StringIO(), force_terminal=True), disable=True) as progress:
        board = Board(progress, ["seed 0", "seed 1"], 7200.0)
        board.at(0, 60.0)
        board.at(1, 3600.0)
        assert [task.description for task in progress.tasks] == ["runs", "seed 0", "seed 1"]
        assert progress.tasks[2].fields["told"].startswith("1.0 h of 2.0 h")
        board.done(0)
        board.at(0, 7000.0)  # its last words came after its result
        assert [task.description for task in progress.tasks] == ["runs", "seed 1"]
        assert progress.tasks[0].fields["told"] == "1 of 2"


@pytest.mark.parametrize("count", [1, 3, 12])
def test_every_curve_is_named_and_has_the_page_s_colours(count: int) -> None:
    bands = {f"entrant-{number}": band([points(0.1, 0.2), points(0.2, 0.4)]) for number in range(count)}
    svg = pictures.curves(bands, Look("accuracy", share=True), "curves", target=0.3)
    assert all(f">{name}<" in svg for name in bands)
    assert not re.findall(r"#0[0-9a-f]{5}", svg)
    assert len(set(re.findall(r"var\(--series-\d\)", svg))) == min(count, 8)
    assert ">target<" in svg
    assert svg == pictures.curves(bands, Look("accuracy", share=True), "curves", target=0.3)


def test_the_time_axis_has_a_unit_that_fits() -> None:
    for every, unit in ((1.0, "seconds"), (300.0, "minutes"), (7200.0, "hours"), (86400.0, "days")):
        curve = band([points(0, 1, 2, 3, 4, 5, every=every)])
        assert f"{unit} of virtual time" in pictures.curves({"a": curve}, Look("loss", share=False), "c")


def test_a_group_that_gave_nothing_is_told() -> None:
    svg = pictures.staleness({"fast": [0, 1, 1], "absent": []}, "late")
    assert "none merged" in svg
    assert "median 1" in svg


def test_numbers_are_told_as_people_read_them() -> None:
    assert parts.value(0.8123, share=True) == "81.2\u00a0%"
    assert parts.value(1.23456, share=False) == "1.235"
    assert parts.value(None, share=True) == "–"
    assert parts.bounds({"low": -0.051, "high": 0.02}, share=True, sign=True) == "−5.1 to +2.0"
    assert parts.bounds({"low": None, "high": None}, share=True) == "–"
    assert parts.signed(-0.051, share=True) == "−5.1"
    assert [parts.time(seconds) for seconds in (12.0, 90.0, 5400.0, 172800.0)] == [
        "12.0 s",
        "1.5 min",
        "1.5 h",
        "2.0 d",
    ]
    assert parts.is_share("accuracy", [0.0, 1.0])
    assert not parts.is_share("val/loss", [0.5])
    assert not parts.is_share("distance", [0.5, 1.5])


def entrant(name: str, *final: float, to_best: dict[str, object] | None = None) -> dict[str, object]:
    mean = {"mean": float(np.mean(final)), "low": min(final), "high": max(final)}
    return {
        "name": name, "final": list(final), "mean": mean, "to_best": to_best, "tried": [{}], "chosen": {},
        "reached": [None] * len(final), "mean_reached": None, "file": {"aggregation": {"strategy": name}},
    }  # fmt: skip


def test_the_page_says_who_may_be_as_good() -> None:
    near = {"mean": -0.01, "low": -0.03, "high": 0.01, "p": 0.2}
    far = {"mean": -0.1, "low": -0.12, "high": -0.08, "p": 0.001}
    document = {
        "job": "a<b", "release": "1", "metric": "accuracy", "mode": "max", "target": None, "looks": 5,
        "budget": 1, "seeds": [0, 1], "tuning_seeds": [], "best": "one",
        "scenario": {"silos": [], "horizon": "1h"},
        "entrants": [
            entrant("one", 0.8, 0.9), entrant("two", 0.79, 0.89, to_best=near),
            entrant("three", 0.7, 0.8, to_best=far),
        ],
    }  # fmt: skip
    page = render(document, {name: [points(0.1, 0.8)] for name in ("one", "two", "three")})
    assert "<h1>one is ahead with 85.0\u00a0%, not told apart from two</h1>" in page
    assert "a&lt;b" in page
    assert "a<b" not in page
    assert page.index("<td>two") < page.index("<td>three")  # the better first
    assert "<td>aggregation.strategy</td><td>one</td><td>two</td><td>three</td>" in page


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("console.main", ("simulator", "matplotlib", "pyarrow", "scipy", "torch", "ray")),
        ("console.simulation.commands", ("torch", "ray")),
    ],
)
def test_nothing_is_loaded_that_is_not_needed_yet(module: str, unwanted: tuple[str, ...]) -> None:
    """`anabranch job list` shall answer at once, and torch belongs to the processes that train."""
    code = f"import sys, {module}; print(*sorted(set({unwanted!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
