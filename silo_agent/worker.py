"""One approved job at this silo: its thread asks for tasks, works on them one after another, and says when it fails."""

import hashlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import chain, repeat
from pathlib import Path

import structlog

from anabranch import durable
from anabranch.errors import AnabranchError, Conflict, Reason, Refused, Unavailable
from anabranch.terms import JobTerms
from silo_agent import receipts
from silo_agent.approval import Proposal
from silo_agent.budget.spending import Spending, spending
from silo_agent.client import Client
from silo_agent.cycle import Cycle, Site
from silo_agent.fetch import fetch_archive
from silo_agent.messages import Lease, Wait
from silo_agent.policy import Policy, admit, open_now
from silo_agent.receipts import Untrusted
from silo_agent.session import backoff
from silo_agent.submit import NOT_ABOUT_THE_UPDATE
from silo_agent.trainer import GRACE, Aborted, Stopped, TaskFailed, Trainer
from silo_agent.training.archive import pack, unpack
from silo_agent.training.isolation import Isolation
from silo_agent.training.launcher import Launcher
from silo_agent.turns import TICK, Turns

TOLERATED = 3  # failures in a row before pauses begin
PAUSES = (1.0, 5.0, 30.0, 120.0, 300.0)  # seconds; the last one from then on
LONGEST_WAIT = 30.0  # seconds between two questions for work, whatever the server says
DISK_PAUSE = 5.0  # seconds between two tries while the disk is full or read-only
CLOSED_PAUSE = 60.0  # seconds between two looks at the clock, outside the policy's hours

logger = structlog.get_logger("job")


class Worker:
    """Runs in one thread; `abort` and `stop` are called from others."""

    def __init__(
        self,
        site: Site,
        proposal: Proposal,
        policy: Callable[[], Policy],
        launcher: Launcher,
        isolated: Isolation,
        turns: Turns,
        stopping: threading.Event,
    ) -> None:
        self.proposal = proposal
        self._site, self._policy, self._launcher, self._isolated = site, policy, launcher, isolated
        self._turns = turns
        self._trainer: Trainer | None = None
        self._stopping = stopping  # of the whole agent
        self._ended = threading.Event()  # of this job here: it ended, or is no longer allowed
        self._aborted: tuple[str, str] | None = None  # lease, reason
        self._failures = 0
        self._spent = (
            False  # the privacy this job, or its data, had; a change of the policy makes another worker
        )

    def run(self) -> None:
        """Until the agent or this job is stopped. Raises Untrusted, Corrupt, Misuse, and Refused about our identity."""
        with structlog.contextvars.bound_contextvars(job=self.proposal.job.id):
            try:
                pauses, waiting = backoff(), False
                while not self._leaving():
                    try:
                        self._trainer = self._trainer or self._make_trainer()
                        self._turn(self._trainer)
                        pauses, waiting = backoff(), False
                    except (Stopped, Aborted):
                        continue
                    except (Unavailable, Conflict) as error:
                        (logger.debug if waiting else logger.info)("waiting", error=str(error))
                        waiting = True
                        self._pause(next(pauses))
                    except Refused as error:
                        self._refused(error)
                    except OSError as error:
                        if error.errno not in durable.UNWRITABLE:
                            raise
                        logger.error(
                            "this disk takes nothing", error=str(error), path=str(self._site.home.path)
                        )
                        self._pause(DISK_PAUSE)
            finally:
                if self._trainer is not None:
                    self._trainer.stop(GRACE if self._stopping.is_set() else 0.0)
                self._turns.forget(self.proposal.job.id)

    def abort(self, lease: str, reason: str) -> None:
        """The server took a lease back; the work on it is dropped if it is the current one."""
        self._aborted = (lease, reason)

    def stop(self) -> None:
        """The job ended or may not run here any more."""
        self._ended.set()

    def _leaving(self) -> bool:
        return self._stopping.is_set() or self._ended.is_set()

    def _pause(self, seconds: float) -> bool:
        """Wait, and make room for a job that has something to do; True when it is time to leave."""
        deadline = time.monotonic() + seconds
        while not self._leaving() and (left := deadline - time.monotonic()) > 0:
            self._make_room(idle=True)
            self._ended.wait(min(left, TICK))
        return self._leaving()

    def _make_room(self, idle: bool) -> None:
        """Give the turn up if another job is to have it, and with it the GPU: the training process ends."""
        if self._turns.called(self.proposal.job.id, idle):
            if self._trainer is not None:
                self._trainer.stop()
            self._turns.give(self.proposal.job.id)

    def _turn(self, trainer: Trainer) -> None:
        """Send what is left, then the next task."""
        for pending in self._site.outbox.pending(self.proposal.job.id):
            self._site.sender.deliver(pending)
        job = self.proposal.job.id
        self._make_room(idle=False)
        if not self._turns.take(job, self._leaving):
            return
        if not open_now(self._policy(), datetime.now()):
            self._pause(CLOSED_PAUSE)
            return
        spending = self._spending()
        left = None
        if spending is not None:
            left = 0 if self._spent else spending.cycles_left()
        seen = self._site.log.seen()
        task = self._site.client.next_task(
            job, seen, left
        )  # not earlier: the base would grow old while the job waits
        if isinstance(task, Wait):
            self._pause(min(max(task.seconds, 0.05), LONGEST_WAIT))
            return
        try:
            admit(self._policy(), self.proposal.terms, task.view.bytes)
            with self._turns.working(job):
                Cycle(self._site, self.proposal, task, self._interrupt(task), self._allowed, spending).run(
                    trainer
                )
            self._failures = 0
        except TaskFailed as failure:
            self._failed(task, failure)
        except Refused as error:
            if error.code is Reason.DP_BUDGET:
                self._exhausted(task, error)
                return
            # Nobody waits for work this site will not do, or cannot do on the bytes it was sent.
            if error.code in (Reason.POLICY, Reason.DIGEST_MISMATCH) and not isinstance(error, Untrusted):
                self._release(task, error.code)
            raise
        finally:
            self._site.progress.forget(task.id)

    def _spending(self) -> Spending | None:
        file = self.proposal.terms.file
        binding = self._policy().data.get(file.job.data)
        return spending(
            self._site.ledger, self.proposal.job.id, file, binding.privacy if binding is not None else None
        )

    def _exhausted(self, lease: Lease, error: Refused) -> None:
        """From now on the server is told that no training is left here; one that hands it out all the same waits for us."""
        again, self._spent = self._spent, True
        (logger.debug if again else logger.warning)("privacy budget spent", error=str(error))
        self._release(lease, error.code)
        if again:
            self._pause(PAUSES[-1])

    def _allowed(self) -> None:
        if self._ended.is_set():
            raise Aborted("this job has ended, or may not run here any more")

    def _interrupt(self, lease: Lease) -> Callable[[], None]:
        def interrupt() -> None:
            if self._stopping.is_set():
                raise Stopped("the agent is stopping")
            self._allowed()
            if self._aborted is not None and self._aborted[0] == lease.id:
                raise Aborted(f"the server took lease {lease.id} back: {self._aborted[1]}")

        return interrupt

    def _failed(self, lease: Lease, failure: TaskFailed) -> None:
        """Tell the job's owner what they may know, and do not burn the GPU on a job that keeps failing."""
        self._failures += 1
        logger.error(
            "task failed",
            error=str(failure),
            reason=failure.code.value,
            raised=failure.exception,
            code_line=failure.code_line,
            in_a_row=self._failures,
            traceback=str(self._site.home.job(lease.job) / "training.log"),
        )
        self._release(lease, failure.code, failure.exception, failure.code_line)
        if self._failures >= TOLERATED:
            pause = next(pauses_after(self._failures))
            logger.error("this job keeps failing; pausing it here", seconds=pause, failures=self._failures)
            self._pause(pause)

    def _release(self, lease: Lease, reason: Reason, exception: str = "", code_line: str = "") -> None:
        """Killed before: the server hands the lease out again, and it is refused or fails again."""
        try:
            seen = self._site.log.seen()
            receipt = self._site.client.release(lease.id, reason, exception, code_line, seen)
        except Refused as error:
            if error.code is not Reason.BAD_LEASE:  # the server has closed it by itself
                raise
            return
        receipts.require(self._site.log.accept(receipt), "lease.released", job=lease.job, lease=lease.id)
        receipts.journal(self._site.home.job(lease.job) / "receipts.jsonl", receipt)

    def _refused(self, error: Refused) -> None:
        """About us: the agent stops. About this job: say it, wait, look again."""
        if isinstance(error, Untrusted) or error.code in NOT_ABOUT_THE_UPDATE:
            raise error
        self._failures += 1
        pause = next(pauses_after(max(self._failures, TOLERATED)))
        logger.warning("refused", reason=error.code.value, error=str(error), seconds=pause)
        self._pause(pause)

    def _make_trainer(self) -> Trainer:
        """Code on disk that is exactly what was approved, in a process fenced off as the policy demands."""
        terms = self.proposal.terms
        folder = self._site.home.job(self.proposal.job.id)
        durable.make_dir(folder)
        install_archive(self._site.client, self.proposal.job.id, terms, folder / "archive")
        return Trainer(self._launcher, folder, terms, admit(self._policy(), terms), self._isolated)


def install_archive(client: Client, job: str, terms: JobTerms, folder: Path) -> None:
    """The approved code in `folder`. What lies there already is packed again and must give the approved digest.

    Killed inside: `unpack` makes the folder appear whole or not at all. Raises Refused(CODE_DIGEST_MISMATCH).
    """
    if folder.exists():
        if _digest(folder) == terms.archive_sha256:
            return
        logger.warning("the unpacked code is not what was approved; fetching it again", folder=str(folder))
        shutil.rmtree(folder)
    unpack(fetch_archive(client, job, terms), folder)


def pauses_after(failures: int) -> Iterator[float]:
    """Pauses in seconds from the `failures`-th failure in a row on."""
    pauses = chain(PAUSES, repeat(PAUSES[-1]))
    for _ in range(max(failures - TOLERATED, 0)):
        next(pauses)
    return pauses


def _digest(folder: Path) -> str | None:
    try:
        return hashlib.sha256(pack(folder)).hexdigest()
    except (AnabranchError, OSError):
        return None
