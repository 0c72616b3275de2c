"""What happened in a run, as columns: updates, versions, revivals and metrics. The order of rows is the order of events."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simulator.engine import Task

Columns = dict[str, list[Any]]

UPDATES = (
    "update",  # its lease
    "job",
    "silo",
    "base",
    "leased_at",  # virtual seconds, as every time
    "received_at",
    "steps",
    "loss",
    "outcome",  # merged | refused | retired | waiting
    "reason",
    "version",  # it was merged into
    "staleness",  # versions, at the aggregation
    "bytes_down",  # of its base, on the wire
    "bytes_up",  # of itself
)
VERSIONS = ("job", "version", "published_at", "inputs", "closed_by", "absent")
REVIVALS = ("at", "job", "version", "outcome")  # of which version; revived, or why not
METRICS = ("at", "job", "version", "silo", "kind", "metric", "value", "records")  # silo "": records of nobody


@dataclass
class Rows:
    updates: Columns = field(default_factory=lambda: {name: [] for name in UPDATES})
    versions: Columns = field(default_factory=lambda: {name: [] for name in VERSIONS})
    revivals: Columns = field(default_factory=lambda: {name: [] for name in REVIVALS})
    metrics: Columns = field(default_factory=lambda: {name: [] for name in METRICS})
    _places: dict[str, int] = field(default_factory=dict)  # of updates that have not come to an end

    def received(
        self, now: float, silo: str, task: "Task", loss: float, reason: str, down: int, up: int
    ) -> None:
        """`reason` is "" for an admitted update; `down` and `up`: bytes on the wire, of its base and of itself."""
        if not reason:
            self._places[task.lease] = len(self.updates["update"])
        outcome = "refused" if reason else "waiting"
        row = (
            task.lease,
            task.job,
            silo,
            task.version,
            task.issued_at,
            now,
            task.steps,
            loss,
            outcome,
            reason,
        )
        _append(self.updates, *row, None, None, down, up)

    def retired(self, update: str, reason: str) -> None:
        place = self._places.pop(update)
        self.updates["outcome"][place], self.updates["reason"][place] = "retired", reason

    def published(
        self,
        now: float,
        job: str,
        version: int,
        closed_by: str,
        absent: Sequence[str],
        staleness: Mapping[str, int],
    ) -> None:
        """`staleness`: of each update that went into the version."""
        for update, late in staleness.items():
            place = self._places.pop(update)
            self.updates["outcome"][place] = "merged"
            self.updates["version"][place] = version
            self.updates["staleness"][place] = late
        _append(self.versions, job, version, now, len(staleness), closed_by, ",".join(absent))

    def revived(self, now: float, job: str, version: int, outcome: str) -> None:
        """What came of a reviver's task; its result may yet be too late."""
        _append(self.revivals, now, job, version, outcome)

    def evaluated(
        self, now: float, job: str, version: int, silo: str, metrics: Mapping[str, float], records: int
    ) -> None:
        """By a silo, as part of the job."""
        self._metrics(now, job, version, silo, "evaluated", metrics, records)

    def measured(
        self, now: float, job: str, version: int, silo: str, metrics: Mapping[str, float], records: int
    ) -> None:
        """By the experimenter."""
        self._metrics(now, job, version, silo, "measured", metrics, records)

    def averaged(
        self, now: float, job: str, version: int, metrics: Mapping[str, float], records: int
    ) -> None:
        """By the experimenter, of the average beside the head, on nobody's records."""
        self._metrics(now, job, version, "", "averaged", metrics, records)

    def _metrics(
        self,
        now: float,
        job: str,
        version: int,
        silo: str,
        kind: str,
        metrics: Mapping[str, float],
        records: int,
    ) -> None:
        for name, value in metrics.items():
            _append(self.metrics, now, job, version, silo, kind, name, value, records)


def _append(columns: Columns, *row: Any) -> None:
    for column, value in zip(columns.values(), row, strict=True):
        column.append(value)
