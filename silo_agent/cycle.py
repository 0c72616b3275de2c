"""One cycle: a lease, from its proof in the log to the server's receipt for what was made of it.

    lease proven → model fetched and proven → trained → judged → signed → outbox → sent → receipt proven

Killed anywhere before the outbox, the lease is still open and the server hands it out again: training goes on from its
last save and gives the same update. Killed after it, the outbox is sent first at the next start.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TypeVar

import structlog

from anabranch import __version__
from anabranch.errors import Conflict, Reason, Refused, Unavailable
from anabranch.tlog.entry import uuid7
from anabranch.wire import canonical, dsse, statements
from anabranch.wire import packed as packed_file
from anabranch.wire.manifest import Manifest
from anabranch.wire.tensors import check_file, check_values, read_manifest
from silo_agent import receipts
from silo_agent.approval import Proposal
from silo_agent.client import Client
from silo_agent.config import Home
from silo_agent.feedback import Feedback
from silo_agent.fetch import fetch_model
from silo_agent.identity import SiloIdentity
from silo_agent.messages import Lease, LeaseProgress
from silo_agent.outbox import Adopted, Outbox, Pending, next_sequence
from silo_agent.receipts import LogView
from silo_agent.session import Progress, backoff
from silo_agent.submit import Sender
from silo_agent.trainer import Aborted, Stopped, TaskFailed, Trainer, Watch
from silo_agent.training import channel
from silo_agent.training.channel import Trained

T = TypeVar("T")
logger = structlog.get_logger("cycle")


@dataclass(frozen=True)
class Site:
    """This silo, as every job's thread uses it."""

    home: Home
    who: SiloIdentity
    client: Client
    log: LogView
    outbox: Outbox
    progress: Progress
    keep_models: int
    pause: Callable[[float], bool]  # wait some seconds; True when the agent is to stop

    @property
    def sender(self) -> Sender:
        return Sender(self.home, self.who.silo, self.client, self.log, self.outbox)


@dataclass(frozen=True)
class Cycle:
    site: Site
    proposal: Proposal  # approved
    lease: Lease
    interrupt: Callable[[], None]  # raises Stopped or Aborted when this lease is not to be worked on any more
    allowed: Callable[[], None]  # raises Aborted when this job may not run here any more

    def run(self, trainer: Trainer) -> None:
        """Do what the lease asks for. Raises TaskFailed, Aborted, Stopped, Untrusted, Refused."""
        self._prove_lease()
        base = self._patiently(self._fetch)
        if self.lease.kind == "evaluate":
            self._evaluate(trainer, base)
            return
        pending = self._train(trainer, base)
        # A lease that is taken back now changes nothing: the update is signed, and the server decides about it. But it
        # is not sent before a person's later word: that is announced first, then what lies in the outbox.
        attempts = count()
        self._patiently(
            lambda: self.site.sender.deliver(pending, resume=next(attempts) > 0), interrupt=self.allowed
        )

    @property
    def folder(self) -> Path:
        return self.site.home.job(self.lease.job)

    def _prove_lease(self) -> None:
        """The server has committed to this lease in the log before any work is done for it."""
        lease, view = self.lease, self.lease.view
        entry = self._patiently(lambda: self.site.log.accept(lease.issued))
        receipts.require(
            entry,
            "lease.issued",
            job=self.proposal.job.id,
            lease=lease.id,
            silo=self.site.who.silo,
            kind=lease.kind,
            version=view.version,
            view_sha256=view.digest,
            nonce=lease.nonce,
            local_steps=lease.local_steps,
        )
        receipts.journal(self.folder / "receipts.jsonl", lease.issued, sync=False)

    def _fetch(self) -> Path:
        self.interrupt()
        site, lease, folder = self.site, self.lease, self.folder
        journal, models = folder / "receipts.jsonl", folder / "models"
        file, silo = self.proposal.terms.file, site.who.silo
        packing = file.download(lease.view.version, silo)
        if lease.view.packing != packing:
            raise Refused(
                Reason.MALFORMED,
                f"version {lease.view.version} comes in another form than job {lease.job} says",
            )

        def expand(packed: Path, whole: Path) -> str:
            assert packing is not None
            return packed_file.expand(packed, self._manifest(), packing.values, whole)

        return fetch_model(
            site.client,
            site.log,
            lease.job,
            lease.view,
            models,
            journal,
            site.keep_models,
            expand if packing else None,
            file.tier(silo),
        )

    def _manifest(self) -> Manifest:
        """Raises Refused where the server does not tell it: what travels packed cannot be read without."""
        if self.proposal.manifest is None:
            raise Refused(
                Reason.MALFORMED, f"the server does not say which tensors job {self.lease.job} has; update it"
            )
        return self.proposal.manifest

    def _watch(self) -> Watch:
        def note(told: channel.Progress) -> None:
            samples, tokens = told.get("samples_per_second", 0.0), told.get("tokens_per_second", 0.0)
            self.site.progress.note(
                self.lease.id, LeaseProgress(told["step"], told["steps"], samples, tokens)
            )

        return Watch(self.interrupt, note)

    def _train(self, trainer: Trainer, base: Path) -> Pending:
        lease, out = self.lease, self.folder / "work" / f"{self.lease.id}.safetensors"
        self.site.progress.note(lease.id, LeaseProgress(0, lease.local_steps))
        trained = trainer.train(
            {
                "do": "train",
                "cycle": lease.id,
                "version": lease.view.version,
                "parameters": str(base),
                "steps": lease.local_steps,
                "out": str(out),
            },
            self._watch(),
        )
        logger.info("trained", job=lease.job, base=lease.view.version, **_rounded(trained["metrics"]))
        # Ids sort by time. Killed before `put`: the lease is open, and its update gets another id.
        update = uuid7(int(time.time() * 1000), os.urandom(10))
        try:
            made = self._judged(update, out, base)
            return self.site.outbox.put(self._signed(update, made, trained).encode())
        except Refused:
            self.site.outbox.discard(update)
            raise
        finally:
            out.unlink(missing_ok=True)

    def _judged(self, update: str, out: Path, base: Path) -> Adopted:
        """A private copy of the update that is one: the base's tensors, in canonical form, every value finite. As it
        will travel.
        """
        manifest = read_manifest(base)
        try:
            check_file(
                out, manifest
            )  # first, because it says what is wrong where a copy only sees another size
            made = self.site.outbox.adopt(update, out, manifest.file_bytes)
            check_file(made.path, manifest)
            check_values(made.path, manifest)
            file = self.proposal.terms.file
            packing = file.upload(self.lease.view.version, self.site.who.silo)
            if packing is not None:
                feedback = None if file.feedback is None else Feedback(self.folder, file.feedback)
                made = self.site.outbox.pack(made, self._manifest(), packing, feedback)
        except FileNotFoundError as error:
            raise TaskFailed(Reason.TASK_GARBAGE, "NoUpdate") from error
        except Refused as error:
            logger.error("the job's code wrote no valid update", job=self.lease.job, error=str(error))
            raise TaskFailed(Reason.TASK_GARBAGE, error.code.value) from error
        return made

    def _signed(self, update: str, made: Adopted, trained: Trained) -> dsse.Envelope:
        site, lease, terms = self.site, self.lease, self.proposal.terms
        seen = site.log.current()
        assert seen is not None, "the lease's receipt gave us a view"
        statement = statements.UpdateStatement(
            update=update,
            federation=site.who.federation.federation,
            job=lease.job,
            lease=lease.id,
            nonce=lease.nonce,
            sequence=next_sequence(self.folder),
            base_version=lease.view.version,
            base_sha256=lease.view.digest,
            delta_sha256=made.sha256,
            bytes=made.bytes,
            terms_sha256=self.proposal.digest,
            manifest_sha256=terms.manifest_sha256,
            num_examples=trained["num_examples"] if terms.file.silos.weighting == "examples" else None,
            steps=trained["steps"],
            release=__version__,
            checkpoint=statements.SeenCheckpoint(size=seen.size, root=seen.root.hex()),
        )
        return dsse.sign(statements.PAYLOAD_TYPE, statement.encode(), site.who.update_key)

    def _evaluate(self, trainer: Trainer, base: Path) -> None:
        """Killed before the receipt: the lease is open and the version is evaluated again."""
        site, lease = self.site, self.lease
        measured = trainer.evaluate(
            {
                "do": "evaluate",
                "cycle": lease.id,
                "version": lease.view.version,
                "parameters": str(base),
                "split": lease.split,
            },
            self._watch(),
        )
        statement = statements.EvaluationStatement(
            federation=site.who.federation.federation,
            job=lease.job,
            lease=lease.id,
            nonce=lease.nonce,
            version=lease.view.version,
            view_sha256=lease.view.digest,
            split=lease.split,
            metrics={name: canonical.hexfloat(value) for name, value in measured["metrics"].items()},
            num_examples=measured["num_examples"],
        )
        envelope = dsse.sign(statements.PAYLOAD_TYPE, statement.encode(), site.who.update_key).encode()
        decided = self._patiently(lambda: site.client.submit_evaluation(lease.id, envelope, site.log.seen()))
        entry = self._patiently(lambda: site.log.accept(decided.receipt))
        receipts.require(
            entry,
            "model.evaluated",
            job=lease.job,
            version=lease.view.version,
            silo=site.who.silo,
            split=lease.split,
        )
        receipts.journal(self.folder / "receipts.jsonl", decided.receipt)
        logger.info("evaluated", job=lease.job, version=lease.view.version, **_rounded(measured["metrics"]))

    def _patiently(self, call: Callable[[], T], interrupt: Callable[[], None] | None = None) -> T:
        """`call`, again and again while the server is away: a restart of the server does not cost the work done here."""
        pauses = backoff()
        while True:
            (interrupt or self.interrupt)()
            try:
                return call()
            except (Stopped, Aborted):
                raise
            except (Unavailable, Conflict) as error:
                logger.debug("waiting for the server", job=self.lease.job, error=str(error))
                if self.site.pause(next(pauses)):
                    raise Stopped("the agent is stopping") from error


def _rounded(metrics: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in metrics.items()}
