"""A silo: the real worker, cycle, outbox, sender and log view on a home directory, over calls that may go wrong."""

import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from anabranch import durable
from anabranch.errors import AnabranchError, Reason, Refused, Unavailable
from anabranch.tlog.entry import Actor
from anabranch.tlog.note import NoteVerifier
from anabranch.tlog.receipt import Receipt
from anabranch.wire.bundle import FederationInfo
from anabranch.wire.tensors import Manifest, write_tensors
from server.intake import Decided as ServerDecided
from server.intake import Upload
from server.jobs import ModelFile
from server.jobs import OfferedJob as ServerJob
from server.scheduling import Wait as ServerWait
from silo_agent import messages
from silo_agent.approval import Decision, Proposal, announce, examine
from silo_agent.budget.ledger import open_ledger
from silo_agent.config import Home
from silo_agent.cycle import Site
from silo_agent.identity import SiloIdentity
from silo_agent.outbox import Outbox
from silo_agent.policy import Binding, Policy
from silo_agent.receipts import LogView
from silo_agent.session import Progress
from silo_agent.trainer import TaskFailed
from silo_agent.turns import Turns
from silo_agent.worker import Worker
from tests.simulation.machine import Killed, Machine
from tests.simulation.operations import BreakUpload

T = TypeVar("T")
POLICY = Policy(data={"default": Binding(path=Path("/data"))})
PIECE = 96  # bytes the network hands over at once


@dataclass
class Network:
    """Every call of every silo passes here. What it was told to lose it loses; it remembers what the server answered."""

    machine: Machine
    count: Callable[[str], None]  # a fault was injected
    lose: list[tuple[str, int]] = field(default_factory=list)  # "request" or "reply", calls until then
    breaking: BreakUpload | None = None
    withheld: set[str] = field(default_factory=set)  # silos whose updates do not get through at all
    answered: dict[str, tuple[int, str]] = field(default_factory=dict)  # update → entry, reason; told or lost
    acknowledged: set[str] = field(default_factory=set)  # told, and admitted
    sent: list[tuple[str, str, bytes, bytes]] = field(default_factory=list)  # silo, update, envelope, bytes
    judged: list[tuple[str, str, bytes]] = field(default_factory=list)  # silo, lease, evaluation
    recorded: dict[bytes, int] = field(default_factory=dict)  # evaluation → entry
    problems: list[str] = field(default_factory=list)

    def call(self, work: Callable[[], T]) -> T:
        """Raises Unavailable for whatever lost it."""
        if not self.machine.up or self.machine.dead:
            raise Unavailable("nobody is listening")
        losing = self._losing()
        if losing == "request":
            raise Unavailable("the request was lost")
        self.machine.full = max(self.machine.full - 1, 0)
        try:
            answer = work()
        except Killed as killed:
            raise Unavailable("the server died") from killed
        except AnabranchError:
            if self.machine.dead or losing:
                raise Unavailable("the connection broke") from None
            raise
        if self.machine.dead or losing:
            raise Unavailable("the reply was lost")
        return answer

    def _losing(self) -> str:
        if not self.lose:
            return ""
        what, after = self.lose[0]
        if after:
            self.lose[0] = what, after - 1
            return ""
        self.lose.pop(0)
        self.count(f"{what} lost")
        return what

    def note_evaluation(self, envelope: bytes, decided: ServerDecided) -> ServerDecided:
        known = self.recorded.setdefault(envelope, decided.receipt.index)
        if known != decided.receipt.index:
            self.problems.append(f"one evaluation is entry {known} and entry {decided.receipt.index}")
        return decided

    def note(self, update: str, decided: ServerDecided) -> ServerDecided:
        """A decision that was committed is the decision for ever, whether anybody heard of it or not."""
        found = decided.receipt.index, decided.reason
        known = self.answered.setdefault(update, found)
        if known != found:
            self.problems.append(f"update {update} was answered {known} first and now {found}")
        return decided


@dataclass(frozen=True)
class Wire:
    """What `silo_agent.client.Client` is for the agent: the calls of one silo, answered by the server's rooms."""

    network: Network
    silo: str
    fingerprint: str
    actor: Actor

    @property
    def _machine(self) -> Machine:
        return self.network.machine

    def _call(self, work: Callable[[], T]) -> T:
        def admitted() -> T:
            self._machine.allow_list.check(self.fingerprint, self._machine.clock())
            return work()

        return self.network.call(admitted)

    def _continuing(self, receipt: Receipt, seen: int) -> Receipt:
        return self._machine.core.log.continuing(receipt, seen)

    def jobs(self, seen: int) -> list[messages.OfferedJob]:
        def offered(o: ServerJob) -> messages.OfferedJob:
            receipt = self._continuing(o.receipt, seen)
            return messages.OfferedJob(
                o.id, o.terms, o.status, o.decision, o.head, o.manifest, receipt, o.revival
            )

        return self._call(lambda: list(map(offered, self._machine.core.jobs.offered(self.silo))))

    def decide(self, job: str, envelope: bytes, seen: int) -> Receipt:
        def decide() -> Receipt:
            decided = self._machine.core.jobs.decide(self.silo, self.actor, job, envelope)
            return self._continuing(decided, seen)

        return self._call(decide)

    def next_task(
        self, job: str, seen: int, cycles_left: int | None = None
    ) -> messages.Lease | messages.Wait:
        return self._call(lambda: self._next_task(job, seen))

    def _next_task(self, job: str, seen: int) -> messages.Lease | messages.Wait:
        task = self._machine.core.scheduling.next_task(self.silo, [job])
        if isinstance(task, ServerWait):
            return messages.Wait(task.seconds, task.reason)
        view = messages.View(task.view.version, task.view.digest, task.view.bytes)
        return messages.Lease(
            task.id,
            task.job,
            task.kind,
            view,
            task.nonce,
            int(task.deadline),
            task.split,
            task.local_steps,
            self._continuing(task.receipt, seen),
        )

    def release(self, lease: str, reason: Reason, exception: str, code_line: str, seen: int) -> Receipt:
        def release() -> Receipt:
            released = self._machine.core.scheduling.release(
                self.silo, self.actor, lease, reason.value, exception, code_line
            )
            return self._continuing(released, seen)

        return self._call(release)

    def consistency(self, old: int, new: int) -> Sequence[bytes]:
        return self._call(lambda: self._machine.core.log.consistency(old, new))

    def archive(self, job: str) -> Iterator[bytes]:
        yield self._call(lambda: self._machine.core.jobs.archive(job)).read_bytes()

    def model(
        self, job: str, digest: str, offset: int, seen: int
    ) -> Iterator[tuple[messages.View, tuple[Receipt, ...]] | bytes]:
        def open_() -> tuple[ModelFile, tuple[Receipt, ...]]:
            found = self._machine.core.jobs.model(self.silo, job, digest)
            return found, tuple(self._continuing(receipt, seen) for receipt in found.receipts)

        found, receipts = self._call(open_)
        yield messages.View(found.view.version, found.view.digest, found.view.bytes), receipts
        yield found.path.read_bytes()[offset:]

    def upload_status(self, update: str, seen: int) -> tuple[int, messages.Decided | None]:
        def ask() -> tuple[int, messages.Decided | None]:
            status = self._machine.core.intake.status(self.silo, update)
            if status.decided is None:
                return status.synced, None
            return status.synced, self._told(self.network.note(update, status.decided), seen)

        if self.silo in self.network.withheld:
            raise Unavailable("the network is gone")
        synced, decided = self._call(ask)
        return synced, self._heard(update, decided)

    def submit(
        self, update: str, envelope: bytes, offset: int, chunks: Iterator[bytes], seen: int
    ) -> messages.Decided:
        data = b"".join(chunks)
        if offset == 0:
            self.network.sent.append((self.silo, update, envelope, data))
            del self.network.sent[:-100]
        decided = self._call(
            lambda: self._told(self.network.note(update, self._upload(update, envelope, offset, data)), seen)
        )
        heard = self._heard(update, decided)
        assert heard is not None
        return heard

    def submit_evaluation(self, lease: str, envelope: bytes, seen: int) -> messages.Decided:
        def send() -> messages.Decided:
            decided = self._machine.core.intake.evaluation(self.silo, self.actor, lease, envelope)
            return self._told(self.network.note_evaluation(envelope, decided), seen)

        self.network.judged.append((self.silo, lease, envelope))
        del self.network.judged[:-100]
        return self._call(send)

    def _told(self, decided: ServerDecided, seen: int) -> messages.Decided:
        return messages.Decided(self._continuing(decided.receipt, seen), decided.reason)

    def _heard(self, update: str, decided: messages.Decided | None) -> messages.Decided | None:
        if decided is not None and not decided.reason:
            self.network.acknowledged.add(update)
        return decided

    def _upload(self, update: str, envelope: bytes, offset: int, data: bytes) -> ServerDecided:
        """As server/transport/updates.py does it."""
        upload = self._machine.core.intake.open(self.silo, self.actor, update, envelope, offset)
        if not isinstance(upload, Upload):
            return upload
        breaking, self.network.breaking = self.network.breaking, None
        whole = breaking is None and self._machine.armed is None
        step = len(data) if whole else PIECE
        end = len(data) if breaking is None else int(breaking.at * len(data))
        try:
            for start in range(0, end, max(step, 1)):
                upload.append(data[start : min(start + step, end)])
        except Refused as refusal:
            return upload.refuse(refusal)
        except BaseException:
            upload.suspend()
            raise
        if breaking is not None:
            self._break(upload, breaking.how)
        if not upload.complete:
            upload.suspend()
            raise Refused(Reason.MALFORMED, "the upload ended before all announced bytes were there")
        return upload.finish()

    def _break(self, upload: Upload, how: str) -> None:
        self.network.count(f"upload broken: {how}")
        if how == "stream":
            upload.suspend()
            raise Unavailable("the stream broke")
        file = upload.file
        file.close()  # no sync: of what came, any part may be on the disk
        if how == "power":
            kept = file.path.read_bytes()
            half = file.offset // 2
            file.path.write_bytes(kept[:half] + bytes(len(kept) - half))
        self._machine.die("in mid upload")


@dataclass
class Trainer:
    """The job's code: an update that follows from the silo, the version and the lease, or what `made` says."""

    manifest: Callable[[], Manifest]
    seed: int
    made: str = "good"

    def train(self, request: dict[str, Any], _: object) -> dict[str, Any]:
        out = Path(request["out"])
        out.parent.mkdir(parents=True, exist_ok=True)
        if self.made == "raises":
            raise TaskFailed(Reason.TASK_FAILED, "ValueError", "task.py:7")
        scale = {"good": 0.01, "still": 0.0, "loud": 1e6, "garbage": float("nan")}[self.made]
        manifest = self.manifest()
        value = scale * (1 + (self.seed * 7 + request["version"]) % 13)
        write_tensors(out, manifest, {s.name: np.full(s.shape, value, np.float32) for s in manifest.specs})
        return {"steps": request["steps"], "num_examples": 10 + self.seed, "metrics": {"loss": 1.0}}

    def evaluate(self, request: dict[str, Any], _: object) -> dict[str, Any]:
        metrics = {"accuracy": 1.0 - 1.0 / (2 + request["version"])}
        return {"metrics": metrics, "num_examples": 10 + self.seed}

    def stop(self, grace: float) -> None:
        return


class Silo:
    """`life` counts enrolments: a revoked silo comes back with new keys and a new home."""

    def __init__(
        self,
        root: Path,
        name: str,
        number: int,
        life: int,
        keys: tuple[Ed25519PrivateKey, ...],
        info: FederationInfo,
    ) -> None:
        self.name, self.number, self._info = name, number, info
        self.home = Home(root / f"{name}-{life}")
        self.home.path.mkdir(parents=True, exist_ok=True)
        self.update_key, self.approver_key = keys
        self.stopping = threading.Event()
        self.proposals: dict[str, Proposal] = {}

    def enrolled(self, network: Network, uri: str, fingerprint: str) -> None:
        self.uri, self.network = uri, network
        self.wire = Wire(network, self.name, fingerprint, Actor(id=uri, auth="mtls", cert_sha256=fingerprint))
        self.start()

    def start(self) -> None:
        """The agent's process: everything it knows it reads from its home."""
        client: Any = self.wire
        verifier = NoteVerifier.from_vkey(self._info.log_vkey)
        self.log = LogView(
            self.home.log_view, self.home.evidence, self._info.log_origin, verifier, client.consistency
        )
        who = SiloIdentity(
            federation=self._info,
            silo=self.name,
            uri=self.uri,
            key=b"",
            chain=b"",
            ca=b"",
            update_key=self.update_key,
            approver_key=self.approver_key,
        )
        self.outbox = Outbox(self.home.outbox)
        ledger = open_ledger(self.home)
        self.site = Site(self.home, who, client, self.log, self.outbox, Progress(), 1, lambda _: True, ledger)

    def torn(self) -> None:
        """The last line of a journal had not reached the disk: it may be half there."""
        for journal in self.home.path.glob("jobs/*/receipts.jsonl"):
            data = journal.read_bytes()
            line = data.splitlines()[-1]
            journal.write_bytes(data + line[: len(line) // 2])

    def decide(self, job: str, decision: Decision) -> None:
        proposal = self._proposal(job)
        if proposal is not None:
            journal = self.home.job(job) / "receipts.jsonl"
            announce(self.wire, self.site.who, self.log, proposal, decision, Policy(), journal)

    def turn(self, job: str, made: str = "good") -> None:
        """One turn of the worker. Raises what the worker would pause after, or stop for."""
        proposal = self._proposal(job)
        if proposal is None:
            return
        durable.make_dir(self.home.job(job))  # the worker's `_make_trainer` does, before its first turn
        nothing: Any = None
        worker = Worker(self.site, proposal, lambda: POLICY, nothing, nothing, Turns(), self.stopping)
        pausing: Any = worker
        pausing._pause = lambda _: True
        assert proposal.manifest is not None
        manifest = proposal.manifest
        trainer: Any = Trainer(lambda: manifest, self.number, made)
        worker._turn(trainer)

    def train_only(self, job: str) -> None:
        """A turn that ends before the update is sent."""
        self.network.withheld.add(self.name)
        try:
            self.turn(job)
        finally:
            self.network.withheld.discard(self.name)

    def deliver(self, first: bool = False) -> None:
        """Send what stands in the outbox, jobs in order. `first`: one update only."""
        for job in sorted(self.outbox.jobs()):
            for pending in list(self.outbox.pending(job)):
                self.site.sender.deliver(pending)
                if first:
                    return

    def restart(self, torn: bool) -> None:
        if torn:
            self.torn()
        self.start()

    def remove(self) -> None:
        shutil.rmtree(self.home.path)

    def _proposal(self, job: str) -> Proposal | None:
        if job not in self.proposals:
            for offered in self.wire.jobs(self.log.seen()):
                if offered.id == job:
                    self.proposals[job] = examine(offered, self.log)
        return self.proposals.get(job)
