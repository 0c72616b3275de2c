"""What is watched, as scalars that TensorBoard reads: a folder, and in it a run for each job."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from anabranch.errors import Reason, Refused
from anabranch.tlog.fields import ID
from anabranch.v1 import admin_pb2
from console.watch import Looks

MISSING = (
    "--tensorboard needs tensorboardX, which is not installed here: pip install 'anabranch[tensorboard]'"
)
FLUSH_SECONDS = 5


class Scalars:
    """Writes each job's versions at their numbers: what is told of the head when it moves, scores as they come in."""

    def __init__(self, folder: Path) -> None:
        """Raises Refused(NOT_FOUND) where tensorboardX is not installed."""
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise Refused(Reason.NOT_FOUND, MISSING) from None
        self._open: Callable[[str], Any] = lambda job: SummaryWriter(
            str(folder / job), flush_secs=FLUSH_SECONDS
        )
        self._runs: dict[str, Any] = {}
        self._heads: dict[str, int] = {}
        self._scores: dict[tuple[str, str], tuple[int, float]] = {}  # job, name → the newest written
        self._speeds: dict[str, dict[str, float]] = defaultdict(dict)  # job → silo → what it told last

    def written(self, looks: Looks) -> Iterator[admin_pb2.Overview | None]:
        """The same looks, each written before it is handed on. Raises Refused(MALFORMED) for an id that is none."""
        try:
            for found in looks:
                for status in found.jobs if found is not None else ():
                    self._write(status)
                yield found
        finally:
            for run in self._runs.values():
                run.close()

    def _write(self, status: admin_pb2.JobStatus) -> None:
        job = status.job
        # A silo has a speed while it trains, and need not train when the version is made.
        self._speeds[job] |= {s.silo: s.samples_per_second for s in status.silos if s.samples_per_second}
        if self._heads.get(job) != status.head:
            self._heads[job] = status.head
            for name, value in _of_head(status, self._speeds[job]).items():
                self._run(job).add_scalar(name, value, status.head, walltime=status.server_time)
        for name, version, value in _scores(status.evaluations):
            if self._scores.get((job, name)) != (version, value):
                self._scores[job, name] = version, value
                self._run(job).add_scalar(name, value, version, walltime=status.server_time)

    def _run(self, job: str) -> Any:
        """The id becomes the name of a folder."""
        if not re.fullmatch(ID, job):
            raise Refused(Reason.MALFORMED, f"the server names a job {job!r}, which can name no folder")
        if job not in self._runs:
            self._runs[job] = self._open(job)
        return self._runs[job]


def _of_head(status: admin_pb2.JobStatus, speeds: Mapping[str, float]) -> dict[str, float]:
    merged = sum(silo.merged for silo in status.silos)
    late = sum(silo.mean_staleness * silo.merged for silo in status.silos)
    found = {
        "job/versions_per_hour": status.versions_per_hour,
        "job/staleness": late / max(merged, 1),
        "updates/merged": float(merged),
        "updates/refused": float(sum(silo.refused for silo in status.silos)),
        "updates/bytes": float(sum(silo.bytes for silo in status.silos)),
    }
    if whole := sum(silo.whole_bytes for silo in status.silos):
        found["updates/whole_bytes"] = float(whole)
    return found | {f"samples_per_second/{silo}": speed for silo, speed in sorted(speeds.items())}


def _scores(evaluations: Iterable[admin_pb2.Evaluation]) -> Iterator[tuple[str, int, float]]:
    """Name, version, value: the mean over silos as `accuracy/mean`, a silo's as `accuracy/silo`."""
    for one in evaluations:
        for name, value in sorted(one.metrics.items()):
            yield f"{name}/{one.silo or 'mean'}", one.version, value
