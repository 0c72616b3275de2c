"""Runs as TensorBoard reads them: a folder, and in it one for each job."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from anabranch.errors import Reason, Refused
from anabranch.v1 import admin_pb2
from console.scalars import Points

MISSING = (
    "--tensorboard needs tensorboardX, which is not installed here: pip install 'anabranch[tensorboard]'"
)
FLUSH_SECONDS = 5


class EventFiles:
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

    def newest(self, status: admin_pb2.JobStatus) -> Points:
        """Nothing: each watch is a file of its own, and none is read."""
        return {}

    def write(self, status: admin_pb2.JobStatus, points: Points) -> None:
        if status.job not in self._runs:
            self._runs[status.job] = self._open(status.job)
        for name, (version, value) in points.items():
            self._runs[status.job].add_scalar(name, value, version, walltime=status.server_time)

    def close(self) -> None:
        for run in self._runs.values():
            run.close()
