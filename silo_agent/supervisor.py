"""Which jobs run here, now: the jobs the server offers, held against the policy and the decisions of this silo.

Without the server, approved jobs go on; without a readable policy, nothing does.
"""

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from anabranch.errors import Refused
from anabranch.terms import seconds
from silo_agent import approval, policy
from silo_agent.approval import STATUS, Decisions, Proposal
from silo_agent.cycle import Site
from silo_agent.feedback import REMAINDER
from silo_agent.messages import OfferedJob
from silo_agent.policy import Bound, Policy
from silo_agent.receipts import Untrusted
from silo_agent.submit import NOT_ABOUT_THE_UPDATE
from silo_agent.trainer import GRACE
from silo_agent.training.isolation import Isolation
from silo_agent.training.launcher import Launcher
from silo_agent.turns import Turns
from silo_agent.worker import Worker

logger = structlog.get_logger("jobs")

# Starts a thread whose failure stops the agent.
Spawn = Callable[[str, Callable[[], None]], threading.Thread]


@dataclass(frozen=True)
class _Running:
    worker: Worker
    thread: threading.Thread
    bound: Bound


@dataclass
class Supervisor:
    """For one thread, except `abort`."""

    site: Site
    launcher: Launcher
    isolated: Isolation
    interpreter: Path
    spawn: Spawn
    stopping: threading.Event
    _policy: Policy = field(default_factory=Policy)  # denies everything until the file has been read
    _unreadable: Refused | None = None  # what is wrong with the policy: nothing runs until it is corrected
    _stamp: str | None = None  # of the decision files as last seen
    _proposals: dict[tuple[str, bytes], Proposal] = field(default_factory=dict)
    _running: dict[str, _Running] = field(default_factory=dict)
    _turns: Turns = field(default_factory=Turns)
    _said: dict[str, str] = field(
        default_factory=dict
    )  # about -> what was last said, so that it is said once

    def __post_init__(self) -> None:
        self._decisions = Decisions(self.site.home.decisions)

    def reread(self) -> bool:
        """Policy and decisions as they are on disk now; whether they changed. What they forbid is stopped at once,
        also while the server is away. Raises Corrupt.
        """
        try:
            rules = policy.load_policy(self.site.home.policy)
        except Refused as error:
            if self._said.get("policy") != str(error):
                self._said["policy"] = str(error)
                logger.error("nothing may run until policy.toml is corrected", error=str(error))
            self._unreadable, rules = error, Policy()
        else:
            if self._said.pop("policy", None) is not None:
                logger.info("policy.toml holds again")
            self._unreadable = None
        stamp = self._decisions.stamp()
        if (rules, stamp) == (self._policy, self._stamp):
            return False
        self._policy, self._stamp = rules, stamp
        self._turns.allow(rules.run.jobs_at_once, seconds(rules.run.turn))
        for job, running in list(self._running.items()):
            proposal = running.worker.proposal
            if approval.standing(
                proposal, rules, self._decisions
            ) != "approve" or running.bound != policy.bound(rules, proposal.terms):
                self._end(job, "this silo's rules changed")
        return True

    def look(self) -> None:
        """Start, stop and announce what follows from the jobs the server offers now.

        Raises Unavailable and Conflict while it cannot be asked, Untrusted, Corrupt, and Refused about our identity.
        """
        # Under the lock of decisions: what a person is just deciding is not announced twice.
        with self._decisions.deciding():
            offered = {job.id: job for job in self.site.client.jobs(self.site.log.seen())}
            for job in offered.values():
                with self._saying(job.id):
                    self._consider(job)
        for job_id in self._running.keys() - offered.keys():
            self._end(job_id, "the job has ended")
        self._flush_ended(offered)

    def abort(self, lease: str, reason: str) -> None:
        """From the session's thread: the server took a lease back."""
        for running in list(self._running.values()):
            running.worker.abort(lease, reason)

    def leave(self) -> None:
        """The agent is stopping: wait until training has saved itself. What is not done by then is done again."""
        for running in self._running.values():
            running.thread.join(GRACE + 5)

    def _consider(self, job: OfferedJob) -> None:
        proposal = self._examined(job)
        decision = approval.standing(proposal, self._policy, self._decisions)
        if self._unreadable is not None and decision in ("approve", None):
            return
        if decision == "approve":
            self._start(proposal)
        elif decision is None:
            name = proposal.terms.file.job.name
            self._say(
                job.id,
                f"waits for approval: anabranch-silo approve {job.id} --dir {self.site.home.path}",
                name=name,
            )
        elif not approval.announced(proposal, decision, self._policy):
            self._announce(proposal, decision)

    def _rules(self) -> Policy:
        """For workers. Raises Refused(POLICY) naming the mistake while the file cannot be read."""
        if self._unreadable is not None:
            raise self._unreadable
        return self._policy

    def _examined(self, job: OfferedJob) -> Proposal:
        known = self._proposals.get((job.id, job.terms))
        if known is None:
            known = self._proposals[job.id, job.terms] = approval.examine(job, self.site.log)
        return Proposal(job, known.terms, known.digest, known.manifest)

    def _start(self, proposal: Proposal) -> None:
        """Raises Refused when an approved job cannot run here; the approval takes effect once it can."""
        job, announced = proposal.job, approval.announced(proposal, "approve", self._policy)
        if job.id in self._running:
            if not announced:  # the policy has another word on revival
                self._announce(proposal, "approve")
            return
        policy.admit_isolation(self._policy, self.isolated.holds, self.isolated.detail)
        approval.check_runnable(proposal, self._policy, self.interpreter)
        if not announced:
            self._announce(proposal, "approve")
        worker = Worker(
            self.site, proposal, self._rules, self.launcher, self.isolated, self._turns, self.stopping
        )
        bound = policy.admit(self._policy, proposal.terms)
        self._running[job.id] = _Running(worker, self.spawn(f"job {job.id}", worker.run), bound)
        self._say(job.id, "approved; ready for its tasks", name=proposal.terms.file.job.name)

    def _announce(self, proposal: Proposal, decision: approval.Decision) -> None:
        site = self.site
        journal = site.home.job(proposal.job.id) / "receipts.jsonl"
        approval.announce(site.client, site.who, site.log, proposal, decision, self._policy, journal)
        logger.info(f"{STATUS[decision]} in the log", job=proposal.job.id, terms=proposal.digest)

    def _end(self, job: str, why: str) -> None:
        running = self._running.pop(job)
        running.worker.stop()
        running.thread.join(GRACE)
        self._say(job, f"stopped: {why}")

    def _flush_ended(self, offered: Mapping[str, OfferedJob]) -> None:
        """What jobs without a worker left: updates go to the server, whose word about them is logged; files go."""
        for job in self.site.outbox.jobs() - self._running.keys():
            for pending in self.site.outbox.pending(job):
                with self._saying(job):
                    self.site.sender.deliver(pending)
        for folder in (self.site.home.path / "jobs").iterdir():
            if folder.name not in offered and folder.name not in self._running:
                # Receipts and the training log stay; code, models and remainder of an ended job need not.
                for part in ("archive", "models", "work"):
                    shutil.rmtree(folder / part, ignore_errors=True)
                with suppress(OSError):
                    (folder / REMAINDER).unlink()

    @contextmanager
    def _saying(self, job: str) -> Iterator[None]:
        """A refusal that concerns one job does not keep the others from running."""
        try:
            yield
        except Refused as error:
            if isinstance(error, Untrusted) or error.code in NOT_ABOUT_THE_UPDATE:
                raise
            self._say(job, "not possible here", reason=error.code.value, error=str(error))

    def _say(self, about: str, what: str, **more: str) -> None:
        """Once, until there is something else to say."""
        if self._said.get(about) != what + str(more):
            self._said[about] = what + str(more)
            logger.info(what, job=about, **more)
