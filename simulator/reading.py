"""A run read back from its files, and what pages show of it."""

import io
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from simulator.results import Files
from simulator.rows import Columns
from simulator.statistics import Points

OUTCOMES = ("merged", "refused", "retired", "waiting")
TABLES = ("updates", "versions", "revivals", "metrics")


@dataclass(frozen=True)
class Played:
    document: Mapping[str, Any]  # run.json
    updates: Columns
    versions: Columns
    revivals: Columns
    metrics: Columns

    @property
    def seed(self) -> int:
        return int(self.document["scenario"]["seed"])

    def job(self, name: str) -> Mapping[str, Any]:
        return next(job for job in self.document["jobs"] if job["job"] == name)


@dataclass(frozen=True)
class Given:
    """What silos gave to a job: counts of updates by outcome, bytes, staleness of what was merged."""

    silos: tuple[str, ...]
    group: str
    outcomes: Mapping[str, int]
    staleness: tuple[int, ...]
    bytes_up: int
    bytes_down: int

    @property
    def sent(self) -> int:
        return sum(self.outcomes.values())


def load(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def played(files: Files) -> Played:
    return Played(json.loads(files["run.json"]), *(table(files, name).to_pydict() for name in TABLES))


def table(files: Files, name: str) -> pa.Table:
    return parquet.read_table(io.BytesIO(files[f"{name}.parquet"]))


def metric(run: Played, job: str) -> str:
    """The one the job is judged by, if it was measured; else the first that was."""
    wanted: str = run.job(job)["file"]["evaluation"]["metric"]
    final = run.job(job)["final"]
    return wanted if wanted in final or not final else next(iter(final))


def curve(run: Played, job: str, name: str, kind: str = "measured") -> Points:
    """Over virtual time, on nobody's records. `kind`: measured, or averaged for the average beside the head."""
    rows = run.metrics
    chosen = [
        place
        for place in range(len(rows["at"]))
        if (rows["job"][place], rows["metric"][place], rows["kind"][place], rows["silo"][place])
        == (job, name, kind, "")
    ]
    return _points([rows["at"][place] for place in chosen], [rows["value"][place] for place in chosen])


def evaluations(run: Played, job: str, name: str) -> Points:
    """What the silos found, weighted by their records, of each version, when the last of them told."""
    found: dict[int, list[tuple[float, float, int]]] = {}
    columns = ("job", "metric", "kind", "version", "at", "value", "records")
    for of, what, kind, version, *row in zip(*(run.metrics[column] for column in columns), strict=True):
        if (of, what, kind) == (job, name, "evaluated"):
            found.setdefault(version, []).append(tuple(row))
    looks = sorted((max(at for at, _, _ in rows), rows) for rows in found.values())
    values = [sum(v * n for _, v, n in rows) / sum(n for _, _, n in rows) for _, rows in looks]
    return _points([at for at, _ in looks], values)


def silo_curves(run: Played, job: str, name: str) -> dict[str, Points]:
    """Of the head on each silo's own records, where `[measure] silos` asked for it."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    columns = ("job", "metric", "kind", "silo", "at", "value")
    for of, what, kind, silo, at, value in zip(*(run.metrics[column] for column in columns), strict=True):
        if (of, what, kind) == (job, name, "measured") and silo:
            times, values = found.setdefault(silo, ([], []))
            times.append(at)
            values.append(value)
    return {silo: _points(*pair) for silo, pair in sorted(found.items())}


def groups(run: Played) -> dict[str, str]:
    """The group of each silo, in words."""
    scenario, number, found = run.document["scenario"], 0, {}
    if scenario["delays"]:
        return {f"silo-{number:05}": scenario["delays"] for number in range(run.document["silos"])}
    for place, group in enumerate(scenario["silos"]):
        name = f"{place + 1}: {group['count']} × {duration(group['train'])}"
        for _ in range(group["count"]):
            found[f"silo-{number:05}"] = name
            number += 1
    return found


def given(run: Played, job: str) -> list[Given]:
    """One for each silo."""
    outcomes: dict[str, Counter[str]] = {}
    staleness: dict[str, list[int]] = {}
    moved: Counter[tuple[str, str]] = Counter()
    columns = ("job", "silo", "outcome", "staleness", "bytes_up", "bytes_down")
    for of, silo, outcome, late, up, down in zip(*(run.updates[column] for column in columns), strict=True):
        if of == job:
            outcomes.setdefault(silo, Counter())[outcome] += 1
            moved[silo, "up"] += up
            moved[silo, "down"] += down
            if outcome == "merged":
                staleness.setdefault(silo, []).append(late)
    return [
        Given(
            (silo,),
            group,
            {name: outcomes.get(silo, Counter())[name] for name in OUTCOMES},
            tuple(staleness.get(silo, ())),
            moved[silo, "up"],
            moved[silo, "down"],
        )
        for silo, group in groups(run).items()
    ]


def together(rows: list[Given]) -> Given:
    """Several as one."""
    outcomes = {name: sum(row.outcomes[name] for row in rows) for name in OUTCOMES}
    silos = tuple(sorted({silo for row in rows for silo in row.silos}))
    staleness = tuple(late for row in rows for late in row.staleness)
    up, down = sum(row.bytes_up for row in rows), sum(row.bytes_down for row in rows)
    return Given(silos, rows[0].group, outcomes, staleness, up, down)


def duration(given: Mapping[str, Any]) -> str:
    """A duration of a scenario in words: `lognormal, about 2 s`."""
    match given["kind"]:
        case "constant":
            return f"{given['seconds']:g} s"
        case "uniform":
            return f"{given['low']:g}–{given['high']:g} s"
        case "lognormal":
            return f"about {given['median']:g} s"
    return f"{given['mean']:g} s on average"


def _points(times: list[float], values: list[float]) -> Points:
    return Points(np.array(times, np.float64), np.array(values, np.float64))
