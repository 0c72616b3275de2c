"""A run on disk: updates.parquet, versions.parquet, metrics.parquet, run.json, and speed.json beside them.

All but speed.json depend on jobs, scenario and seed alone, byte for byte.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from anabranch import __version__
from anabranch.terms import seconds
from simulator.rows import Columns
from simulator.run import Finished
from simulator.state import Job

FORMAT = "anabranch-run/1"
LAST_PART = 0.2  # of the horizon: the mean over it is a run's final figure

_TEXT, _WHOLE, _REAL = pa.string(), pa.int64(), pa.float64()
_TYPES = {
    "update": _TEXT, "job": _TEXT, "silo": _TEXT, "base": _WHOLE, "leased_at": _REAL, "received_at": _REAL,
    "steps": _WHOLE, "loss": _REAL, "outcome": _TEXT, "reason": _TEXT, "version": _WHOLE, "staleness": _WHOLE,
    "published_at": _REAL, "inputs": _WHOLE, "closed_by": _TEXT, "absent": _TEXT, "at": _REAL, "kind": _TEXT,
    "metric": _TEXT, "value": _REAL, "records": _WHOLE,
}  # fmt: skip


def write(out: Path, finished: Finished) -> dict[str, Any]:
    """The document of run.json. `out` is created; what is in it is replaced."""
    out.mkdir(parents=True, exist_ok=True)
    for name, columns in (
        ("updates", finished.rows.updates),
        ("versions", finished.rows.versions),
        ("metrics", finished.rows.metrics),
    ):
        parquet.write_table(table(columns), out / f"{name}.parquet", compression="zstd")
    document = summary(finished)
    _json(out / "run.json", document)
    count = len(finished.rows.updates["update"])
    speed = {
        "seconds": round(finished.seconds, 3),
        "updates_per_minute": round(60 * count / finished.seconds),
    }
    _json(out / "speed.json", speed)
    return document


def table(columns: Columns) -> pa.Table:
    return pa.table({name: pa.array(column, _TYPES[name]) for name, column in columns.items()})


def summary(finished: Finished) -> dict[str, Any]:
    scenario = finished.scenario
    return {
        "format": FORMAT,
        "release": __version__,
        "scenario": scenario.model_dump(mode="json", exclude={"data"}),
        "silos": len(scenario.profiles()),
        "virtual_seconds": min(finished.server.now, seconds(scenario.horizon)),
        "jobs": [_job(finished, job) for job in finished.server.jobs.values()],
    }


def _job(finished: Finished, job: Job) -> dict[str, Any]:
    updates, versions = _of(finished.rows.updates, job.id), _of(finished.rows.versions, job.id)
    outcomes = [row["outcome"] for row in updates]
    merged = [row["staleness"] for row in updates if row["outcome"] == "merged"]
    return {
        "job": job.id,
        "terms_sha256": job.digest,
        "strategy": job.terms.file.aggregation.strategy,
        "status": job.status,
        "ended_at": job.ended_at,
        "versions": len(versions),
        "updates": {name: outcomes.count(name) for name in ("merged", "refused", "retired", "waiting")},
        "staleness": {"mean": fmean(merged), "most": max(merged)} if merged else None,
        "bytes_up": len(updates) * job.manifest.file_bytes,
        "bytes_down": len(updates) * job.manifest.file_bytes,
        "parameters_sha256": job.newest.parameters.digest(),
        "final": final(_of(finished.rows.metrics, job.id), seconds(finished.scenario.horizon), job.ended_at),
    }


def final(metrics: Sequence[Mapping[str, Any]], horizon: float, ended: float | None) -> dict[str, float]:
    """Each measured metric on nobody's records: the mean of its looks in the last fifth of the run."""
    last = horizon if ended is None else ended
    found: dict[str, list[float]] = {}
    for row in metrics:
        if row["kind"] == "measured" and not row["silo"] and row["at"] >= (1 - LAST_PART) * last:
            found.setdefault(row["metric"], []).append(row["value"])
    return {name: fmean(values) for name, values in sorted(found.items())}


def _of(columns: Columns, job: str) -> list[dict[str, Any]]:
    rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    return [row for row in rows if row["job"] == job]


def _json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
