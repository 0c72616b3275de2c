"""One job's training process as the agent sees it: asked for one thing at a time, watched, and stopped when it hangs.

It is started when it is first needed and lives across cycles. Whatever it says was already held against a schema; here
it is held against the lease.
"""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from anabranch.errors import OUT_OF_MEMORY_REMEDY, Conflict, Reason, Refused, Unavailable
from anabranch.terms import JobTerms, seconds
from anabranch.tlog.fields import CODE_LINE
from silo_agent.policy import Bound
from silo_agent.training.channel import CountUnits, Evaluate, Evaluated, Message, Progress, Train, Trained
from silo_agent.training.isolation import Isolation
from silo_agent.training.launcher import Launcher, TrainingProcess

TICK = 0.25  # seconds between two looks at whether to go on
STARTING = 300.0  # seconds to import torch and the job's code and build its model, at least
GRACE = 15.0  # seconds a process is given to save its cycle when the agent stops

# Failures that this site, not the job's owner, puts right.
MEANING = {
    "OtherBase": "the base model here is not the one the job was submitted with; training.log names the folder, both "
    "digests and what to do",
    "NoOpacus": "the job trains with privacy and opacus is not installed here: pip install 'anabranch[privacy]'",
    "NoPeft": "the job adapts with LoRA and peft is not installed here: pip install 'anabranch[lora]'",
}

logger = structlog.get_logger("training")


class TaskFailed(Refused):
    """The job's code raised, hung, or returned no update. The job's owner is told the type and a line, nothing more."""

    def __init__(self, code: Reason, exception: str, code_line: str = "") -> None:
        where = f" at {code_line}" if code_line else ""
        meaning = "the job's code failed; the traceback is in training.log"
        if code is Reason.TASK_OUT_OF_MEMORY:
            meaning = f"{OUT_OF_MEMORY_REMEDY}; the traceback is in training.log"
        elif code is Reason.TASK_GARBAGE:
            meaning = MEANING.get(exception, meaning)
        super().__init__(code, f"{exception}{where}: {meaning}")
        self.exception = exception
        self.code_line = code_line if re.fullmatch(CODE_LINE, code_line) else ""


class Stopped(Unavailable):
    """This agent is stopping; the work is resumed when it starts again."""


class Aborted(Conflict):
    """The server took the lease back."""


@dataclass(frozen=True)
class Watch:
    """How a task is followed. `interrupt` raises Stopped or Aborted when the task is not to go on."""

    interrupt: Callable[[], None]
    progress: Callable[[Progress], None]


class Trainer:
    """For one thread; `stop` may also be called when nothing runs."""

    def __init__(
        self, launcher: Launcher, job_dir: Path, terms: JobTerms, bound: Bound, isolated: Isolation
    ) -> None:
        self._launcher, self._job_dir, self._terms = launcher, job_dir, terms
        self._bound, self._isolated = bound, isolated
        self._patience = seconds(terms.file.training.progress_timeout)
        self._process: TrainingProcess | None = None

    def count(self, watch: Watch) -> int:
        """Units of privacy in the split "train". Raises as `train` does."""
        answer = self._ask({"do": "count"}, watch)
        if answer["is"] != "counted":
            raise self._garbled(answer)
        return answer["units"]

    def train(self, request: Train, watch: Watch) -> Trained:
        """Raises TaskFailed, Stopped, Aborted, Unavailable."""
        answer = self._ask(request, watch)
        if answer["is"] != "trained" or answer["cycle"] != request["cycle"]:
            raise self._garbled(answer)
        return answer

    def evaluate(self, request: Evaluate, watch: Watch) -> Evaluated:
        """Raises TaskFailed, Stopped, Aborted, Unavailable."""
        answer = self._ask(request, watch)
        if answer["is"] != "evaluated" or answer["cycle"] != request["cycle"]:
            raise self._garbled(answer)
        return answer

    def stop(self, grace: float = 0.0) -> None:
        """End the process and everything it started; with `grace`, after it has saved its cycle."""
        if self._process is not None:
            self._process.stop(grace)
            self._process = None

    def _ask(self, request: CountUnits | Train | Evaluate, watch: Watch) -> Message:
        try:
            process = self._started(watch)
            process.request(request)
            return self._answer(process, watch, self._patience)
        except Stopped:
            self.stop(GRACE)
            raise
        except (Aborted, Unavailable):
            self.stop()
            raise
        except TaskFailed as failure:
            if failure.code is Reason.TASK_HUNG:
                self.stop()
            raise
        except Refused as error:  # a line that is no message: the job's code has got hold of the channel
            self.stop()
            raise TaskFailed(Reason.TASK_GARBAGE, "NotAMessage") from error

    def _started(self, watch: Watch) -> TrainingProcess:
        if self._process is not None and self._process.alive:
            return self._process
        self.stop()
        self._process = self._launcher.start(
            self._job_dir, self._terms, self._bound.data, self._isolated, base=self._bound.base
        )
        logger.info("training process started", pid=self._process.pid, isolation=self._isolated.kind)
        ready = self._answer(self._process, watch, max(STARTING, self._patience))
        if ready["is"] != "ready":
            raise self._garbled(ready)
        return self._process

    def _answer(self, process: TrainingProcess, watch: Watch, patience: float) -> Message:
        """The next message that is not progress. Raises TaskFailed when there is none to come, or no progress for
        `patience` seconds.
        """
        moved, step = time.monotonic(), -1
        for message in _messages(process):
            watch.interrupt()
            if message is not None and message["is"] == "failed":
                reason = Reason(message["reason"])
                raise TaskFailed(reason, message["exception"], message.get("code_line", ""))
            if message is not None and message["is"] != "progress":
                return message
            if message is not None and message["step"] != step:  # saying the same again is no progress
                moved, step = time.monotonic(), message["step"]
                watch.progress(message)
            if time.monotonic() - moved > patience:
                raise TaskFailed(Reason.TASK_HUNG, "NoProgress")
        raise TaskFailed(Reason.TASK_FAILED, "ProcessEnded")

    def _garbled(self, answer: Message) -> TaskFailed:
        self.stop()
        return TaskFailed(Reason.TASK_GARBAGE, f"Unexpected{answer['is'].capitalize()}")


def _messages(process: TrainingProcess) -> Iterator[Message | None]:
    """What the process says, and None at least every TICK while it says nothing; ends when it has ended."""
    while process.alive:
        yield from process.messages(TICK)
        yield None
    yield from process.messages(TICK)  # what it said last
