"""A run as files: updates, versions, revivals and metrics as Parquet, run.json, and speed.json beside them.

With `log` an audit export as well. All but that (its keys are new) and speed.json depend on jobs, scenario and seed alone,
byte for byte.
"""

import io
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from anabranch import __version__, durable
from anabranch.terms import seconds
from simulator.engine import Outcome
from simulator.rows import Columns
from simulator.run import Finished
from simulator.scenario import Scenario

FORMAT = "anabranch-run/1"
LAST_PART = 0.2  # of the horizon: the mean over it is a run's final figure

_TEXT, _WHOLE, _REAL = pa.string(), pa.int64(), pa.float64()
_TYPES = {
    "update": _TEXT, "job": _TEXT, "silo": _TEXT, "base": _WHOLE, "leased_at": _REAL, "received_at": _REAL,
    "steps": _WHOLE, "loss": _REAL, "outcome": _TEXT, "reason": _TEXT, "version": _WHOLE, "staleness": _WHOLE,
    "published_at": _REAL, "inputs": _WHOLE, "closed_by": _TEXT, "absent": _TEXT, "at": _REAL, "kind": _TEXT,
    "metric": _TEXT, "value": _REAL, "records": _WHOLE, "bytes_down": _WHOLE, "bytes_up": _WHOLE,
}  # fmt: skip


Files = Mapping[str, bytes]  # by name


def files(finished: Finished) -> Files:
    tables = {
        "updates": finished.rows.updates,
        "versions": finished.rows.versions,
        "revivals": finished.rows.revivals,
        "metrics": finished.rows.metrics,
    }
    speed = {
        "seconds": round(finished.seconds, 3),
        "updates_per_minute": round(60 * len(finished.rows.updates["update"]) / finished.seconds),
    }
    return {
        **{f"{name}.parquet": packed(table(columns)) for name, columns in tables.items()},
        "run.json": encoded(summary(finished)),
        "speed.json": encoded(speed),
        **finished.export,
    }


def write(out: Path, files: Files) -> None:
    """The folder appears whole, or it is not there; what had the name before is replaced."""
    durable.make_dir(out.parent)
    beside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        beside.chmod(0o755)
        for name, data in files.items():
            (beside / name).parent.mkdir(parents=True, exist_ok=True)
            durable.write(beside / name, data)
        if out.exists():
            shutil.rmtree(out)
        durable.rename(beside, out)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def table(columns: Columns) -> pa.Table:
    return pa.table({name: pa.array(column, _TYPES[name]) for name, column in columns.items()})


def packed(rows: pa.Table) -> bytes:
    """As a Parquet file."""
    out = io.BytesIO()
    parquet.write_table(rows, out, compression="zstd")
    return out.getvalue()


def encoded(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def summary(finished: Finished) -> dict[str, Any]:
    scenario = finished.scenario
    return {
        "format": FORMAT,
        "release": __version__,
        "scenario": described(scenario),
        "silos": len(scenario.profiles()),
        "virtual_seconds": min(finished.until, seconds(scenario.horizon)),
        "jobs": [_job(finished, outcome) for outcome in finished.outcomes],
        **({"like": finished.like} if finished.like is not None else {}),
    }


def described(scenario: Scenario) -> dict[str, Any]:
    """Without where its files lie on this machine."""
    places = {"data": {"__all__": {"path", "test", "validation"}}, "models": {"__all__": {"path"}}}
    return scenario.model_dump(mode="json", by_alias=True, exclude=places)


def _job(finished: Finished, outcome: Outcome) -> dict[str, Any]:
    updates, versions = _of(finished.rows.updates, outcome.job), _of(finished.rows.versions, outcome.job)
    ends = [row["outcome"] for row in updates]
    merged = [row["staleness"] for row in updates if row["outcome"] == "merged"]
    return {
        "job": outcome.job,
        "terms_sha256": outcome.terms.digest(),
        "file": outcome.terms.file.model_dump(mode="json"),
        "file_bytes": outcome.file_bytes,
        "strategy": outcome.terms.file.aggregation.strategy,
        "status": outcome.status,
        "ended_at": outcome.ended_at,
        "versions": len(versions),
        "updates": {name: ends.count(name) for name in ("merged", "refused", "retired", "waiting")},
        "staleness": {"mean": fmean(merged), "most": max(merged)} if merged else None,
        "revivals": dict(Counter(row["outcome"] for row in _of(finished.rows.revivals, outcome.job))),
        "bytes_up": sum(one["bytes_up"] for one in updates),
        "bytes_down": sum(one["bytes_down"] for one in updates),
        "parameters_sha256": outcome.parameters_sha256,
        "final": final(
            _of(finished.rows.metrics, outcome.job), seconds(finished.scenario.horizon), outcome.ended_at
        ),
    }


def final(metrics: Sequence[Mapping[str, Any]], horizon: float, ended: float | None) -> dict[str, float]:
    """Each measured metric on nobody's records: the mean of its looks in the last fifth of the run, or the last look."""
    since = (1 - LAST_PART) * (horizon if ended is None else ended)
    looks: dict[str, list[tuple[float, float]]] = {}
    for row in metrics:
        if row["kind"] == "measured" and not row["silo"]:
            looks.setdefault(row["metric"], []).append((row["at"], row["value"]))
    return {
        name: fmean([value for at, value in found if at >= since] or [found[-1][1]])
        for name, found in sorted(looks.items())
    }


def _of(columns: Columns, job: str) -> list[dict[str, Any]]:
    rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    return [row for row in rows if row["job"] == job]
