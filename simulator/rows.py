"""What happened in a run, as columns: updates, versions and metrics. The order of rows is the order of events."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from anabranch.rules.strategies import Input
from server.core.buffer import Closing
from simulator.state import Update, Version

Columns = dict[str, list[Any]]

UPDATES = (
    "update",
    "job",
    "silo",
    "base",
    "leased_at",
    "received_at",
    "steps",
    "loss",
    "outcome",  # merged | refused | retired | waiting
    "reason",
    "version",  # it was merged into
    "staleness",  # versions, at the aggregation
)
VERSIONS = ("job", "version", "published_at", "inputs", "closed_by", "absent")
METRICS = ("at", "job", "version", "silo", "kind", "metric", "value", "records")  # silo "": records of nobody


@dataclass
class Rows:
    updates: Columns = field(default_factory=lambda: {name: [] for name in UPDATES})
    versions: Columns = field(default_factory=lambda: {name: [] for name in VERSIONS})
    metrics: Columns = field(default_factory=lambda: {name: [] for name in METRICS})
    _places: dict[str, int] = field(default_factory=dict)  # of updates that have not come to an end

    def received(self, update: Update, head: int, loss: float, reason: str) -> None:
        """`reason` is "" for an admitted update."""
        if not reason:
            self._places[update.id] = len(self.updates["update"])
        lease = update.lease
        _append(
            self.updates,
            update.id,
            lease.job,
            lease.silo,
            lease.version,
            lease.issued_at,
            update.received_at,
            lease.steps,
            loss,
            "refused" if reason else "waiting",
            reason,
            None,
            head - lease.version,
        )

    def retired(self, update: Update, reason: str) -> None:
        place = self._places.pop(update.id)
        self.updates["outcome"][place], self.updates["reason"][place] = "retired", reason

    def published(self, job: str, version: Version, closing: Closing, inputs: Sequence[Input]) -> None:
        for one in inputs:
            place = self._places.pop(one.update)
            self.updates["outcome"][place] = "merged"
            self.updates["version"][place] = version.number
            self.updates["staleness"][place] = one.staleness
        absent = ",".join(closing.absent)
        _append(
            self.versions, job, version.number, version.published_at, len(inputs), closing.closed_by, absent
        )

    def evaluated(
        self, at: float, job: str, version: int, silo: str, metrics: Mapping[str, float], records: int
    ) -> None:
        """By a silo, as part of the job."""
        self._metrics(at, job, version, silo, "evaluated", metrics, records)

    def measured(
        self, at: float, job: str, version: int, silo: str, metrics: Mapping[str, float], records: int
    ) -> None:
        """By the experimenter."""
        self._metrics(at, job, version, silo, "measured", metrics, records)

    def _metrics(
        self,
        at: float,
        job: str,
        version: int,
        silo: str,
        kind: str,
        metrics: Mapping[str, float],
        records: int,
    ) -> None:
        for name, value in metrics.items():
            _append(self.metrics, at, job, version, silo, kind, name, value, records)


def _append(columns: Columns, *row: Any) -> None:
    for column, value in zip(columns.values(), row, strict=True):
        column.append(value)
