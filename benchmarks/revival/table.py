"""The lines of a comparison's table, the head beside its average, the first entrant against every other."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from anabranch.terms import seconds
from simulator import reading
from simulator.results import LAST_PART
from simulator.statistics import Interval, Paired, Points, interval, paired, reached


@dataclass(frozen=True)
class Line:
    """One entrant over the final seeds. Accuracies are shares, times virtual seconds."""

    name: str
    chosen: dict[str, Any]
    head: tuple[float, ...]  # of each seed, as are the next two
    average: tuple[float, ...]
    reached: tuple[float | None, ...]
    curve: Points  # of the head: mean over seeds
    to_first: Paired | None  # the first entrant's head minus this one's
    average_to_first: Paired | None

    def document(self) -> dict[str, Any]:
        found = {
            **asdict(self),
            "head_mean": asdict(self.mean),
            "average_mean": asdict(interval(self.average)),
        }
        return found | {"curve": [self.curve.times.tolist(), self.curve.values.tolist()]}

    @property
    def mean(self) -> Interval:
        return interval(self.head)

    def __str__(self) -> str:
        when = [time for time in self.reached if time is not None]
        there = f"{median(when):5.1f} s, {len(when)} of {len(self.reached)}" if when else "never"
        return (
            f"{self.name:14} {_said(self.mean)}  {_said(interval(self.average))}  {_said(self.to_first)}  "
            f"{_said(self.average_to_first)}  {there}"
        )


def lines(folder: Path) -> list[Line]:
    """Of what `anabranch compare` wrote to `folder`, in the order of its entrants."""
    document = json.loads((folder / "compare.json").read_text())
    first: Line | None = None
    found = []
    for entrant in document["entrants"]:
        line = _line(folder, document, entrant, first)
        first = first or line
        found.append(line)
    return found


def _line(folder: Path, document: dict[str, Any], entrant: dict[str, Any], first: Line | None) -> Line:
    runs = [reading.played(reading.load(folder / "runs" / key)) for key in entrant["runs"]]
    heads = [reading.curve(run, document["job"], document["metric"]) for run in runs]
    averages = [reading.curve(run, document["job"], document["metric"], "averaged") for run in runs]
    horizon = seconds(document["scenario"]["horizon"])
    head, average = (tuple(_final(curve, horizon) for curve in curves) for curves in (heads, averages))
    return Line(
        entrant["name"],
        entrant["chosen"],
        head,
        average,
        tuple(reached(curve, document["target"], document["looks"], document["mode"]) for curve in heads),
        Points(heads[0].times, np.mean([curve.values for curve in heads], axis=0)),
        paired(first.head, head) if first else None,
        paired(first.average, average) if first else None,
    )


def _final(curve: Points, horizon: float) -> float:
    """As `simulator.results.final`, of either curve."""
    return fmean(curve.values[curve.times >= (1 - LAST_PART) * horizon].tolist())


def _said(found: Interval | Paired | None) -> str:
    if found is None or found.low is None or found.high is None:
        return " " * 22
    return f"{100 * found.mean:+6.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
