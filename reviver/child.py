"""One job's process as the daemon sees it: it knows torch and the job's code, and neither key nor network.

It lives between tasks, since it holds what silos taught. When it fails, hangs or is killed, its successor begins anew.
"""

import threading
import time
from pathlib import Path

import structlog

from anabranch.errors import Reason, Refused, Unavailable
from anabranch.terms import JobTerms
from reviver.device import Device
from silo_agent.trainer import Stopped, TaskFailed
from silo_agent.training.channel import Message, Rested, Revive, Revived
from silo_agent.training.isolation import Isolation
from silo_agent.training.launcher import Launcher, TrainingProcess

TICK = 0.25  # seconds between two looks at whether to go on

logger = structlog.get_logger("child")


class Child:
    """For one thread."""

    def __init__(
        self,
        launcher: Launcher,
        job_dir: Path,
        terms: JobTerms,
        isolated: Isolation,
        device: Device,
        stopping: threading.Event,
        base: Path | None = None,
    ) -> None:
        """`base`: folder of the base model that the job names."""
        self.terms, self.device = terms, device  # the device of the next process
        self.known: dict[str, str] = {}  # silo → its update in the process's memory
        self._launcher, self._job_dir, self._isolated = launcher, job_dir, isolated
        self._stopping, self._base = stopping, base
        self._process: TrainingProcess | None = None

    def start(self, until: float) -> None:
        """So that a revival can be timed without it. `until`, in monotonic seconds, and raises: as `revive`."""
        if self._process is not None and self._process.alive:
            return
        self.stop()
        try:
            self._process = self._launcher.start(
                self._job_dir, self.terms, None, self._isolated, self.device.name, self._base
            )
        except Unavailable as error:
            raise TaskFailed(Reason.TASK_FAILED, "NotStarted") from error
        at_work = {"pid": self._process.pid, "isolation": self._isolated.kind, "device": self.device.name}
        logger.info("a job's process started", **at_work)
        if self._answer(until)["is"] != "ready":
            raise TaskFailed(Reason.TASK_GARBAGE, "NotReady")

    def revive(self, request: Revive, until: float) -> Revived | Rested:
        """Raises TaskFailed when the job's code failed, ended, or did not answer in time: `stop` it then. Stopped."""
        assert self._process is not None, "it was started"
        try:
            self._process.request(request)
        except Unavailable as error:
            raise TaskFailed(Reason.TASK_FAILED, "ProcessEnded") from error
        answer = self._answer(until)
        if answer["is"] not in ("revived", "rested") or answer["cycle"] != request["cycle"]:
            raise TaskFailed(Reason.TASK_GARBAGE, f"Unexpected{answer['is'].capitalize()}")
        return answer

    def stop(self) -> None:
        """What it holds of silos goes with it."""
        self.known.clear()
        if self._process is not None:
            self._process.stop(0)
            self._process = None

    def _answer(self, until: float) -> Message:
        assert self._process is not None
        while time.monotonic() < until:
            alive = self._process.alive
            try:
                message = next(self._process.messages(TICK), None)
            except Refused as error:  # the job's code has got hold of the channel
                raise TaskFailed(Reason.TASK_GARBAGE, "NotAMessage") from error
            if self._stopping.is_set():
                raise Stopped("the reviver is stopping")
            if message is not None and message["is"] == "failed":
                raise TaskFailed(
                    Reason(message["reason"]), message["exception"], message.get("code_line", "")
                )
            if message is not None:
                return message
            if not alive:
                raise TaskFailed(Reason.TASK_FAILED, "ProcessEnded")
        raise TaskFailed(Reason.TASK_HUNG, "Hung")
