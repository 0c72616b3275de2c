"""What is watched, as scalars: of each job a run, wherever runs are kept."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

from anabranch.errors import Reason, Refused
from anabranch.tlog.fields import ID
from anabranch.v1 import admin_pb2
from console.watch import Looks


class Point(NamedTuple):
    version: int
    value: float


Points = Mapping[str, Point]  # by the scalar's name


class Runs(Protocol):
    """Where scalars are kept: a run for each job, opened by the first that is asked of it."""

    def newest(self, status: admin_pb2.JobStatus) -> Points:
        """What the job's run has already."""
        ...

    def write(self, status: admin_pb2.JobStatus, points: Points) -> None: ...

    def close(self) -> None: ...


class Scalars:
    """Writes each job's versions at their numbers: what is told of the head once a version, scores as they come in."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self._newest: dict[str, dict[str, Point]] = {}  # job → what was written last
        self._speeds: dict[str, dict[str, float]] = defaultdict(dict)  # job → silo → what it told last

    def written(self, looks: Looks) -> Iterator[admin_pb2.Overview | None]:
        """The same looks, each written before it is handed on. Raises Refused(MALFORMED) for an id that is none, and
        what `Runs` raises.
        """
        try:
            for found in looks:
                for status in found.jobs if found is not None else ():
                    self._write(status)
                yield found
        finally:
            self._runs.close()

    def _write(self, status: admin_pb2.JobStatus) -> None:
        job = status.job
        if not re.fullmatch(ID, job):  # it names a folder, and is asked for in a query
            raise Refused(Reason.MALFORMED, f"the server names a job {job!r}, which can name no run")
        # A silo has a speed while it trains, and need not train when the version is made.
        self._speeds[job] |= {s.silo: s.samples_per_second for s in status.silos if s.samples_per_second}
        if job not in self._newest:
            self._newest[job] = dict(self._runs.newest(status))
        before = self._newest[job]
        of_head = _of_head(status, self._speeds[job])
        fresh = {name: point for name, point in _scores(status.evaluations) if before.get(name) != point} | {
            name: Point(status.head, value)
            for name, value in of_head.items()
            if name not in before or before[name].version != status.head
        }
        self._runs.write(status, fresh)
        before |= fresh


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


def _scores(evaluations: Iterable[admin_pb2.Evaluation]) -> Iterator[tuple[str, Point]]:
    """The mean over silos as `accuracy/mean`, a silo's as `accuracy/silo`."""
    for one in evaluations:
        for name, value in sorted(one.metrics.items()):
            yield f"{name}/{one.silo or 'mean'}", Point(one.version, value)
