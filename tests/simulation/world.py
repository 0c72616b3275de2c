"""A federation in one process, driven by operations, and what must be true of it after each of them and at the end."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from random import Random
from time import time

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from anabranch.errors import AnabranchError, Conflict, Misuse, Refused, Unavailable
from anabranch.terms import JobTerms, parse_job_file
from anabranch.tlog.entry import Actor
from anabranch.wire import canonical, identity
from anabranch.wire.bundle import parse_bundle
from anabranch.wire.tensors import write_tensors
from server import setup
from server.ca.authority import open_authority
from server.config import new_config
from server.enrolment import SigningKey
from server.retention import ABANDONED
from server.startup import World as ServerWorld
from silo_agent.receipts import Untrusted
from silo_agent.trainer import Aborted, Stopped
from tests.server.harness import MANIFEST, Clock
from tests.simulation import lies
from tests.simulation import operations as op
from tests.simulation.history import Broken, Stuck
from tests.simulation.invariants import Books
from tests.simulation.machine import Killed, Machine
from tests.simulation.silos import Network, Silo
from tests.simulation.terms import TERMS

CONFIG = new_config("fed.test", "localhost", 7443, 7444, 7445)
OWNER = Actor(id="spiffe://fed.test/admin/owner", auth="mtls", cert_sha256="0" * 64)
OPEN_JOBS = 3


def template(directory: Path) -> None:
    """A federation as `anabranch-server init` leaves it, to be copied for every run."""
    random = Random(0)
    setup.create_federation(directory, CONFIG, ServerWorld(Clock(), random.randbytes))


class Federation:
    """`run` a sequence, then `finish`. Raises Broken when something does not hold that must."""

    def __init__(self, made: Path, root: Path, seed: int, versions: int = 12) -> None:
        self.random = Random(f"world {seed}")
        self.root, self.versions = root, versions
        self.clock = Clock()
        self.faults: Counter[str] = Counter()
        shutil.copytree(made, root / "life-0")
        authority = open_authority(root / "life-0" / "keys", CONFIG.federation, self.clock())
        self.machine = Machine(root, CONFIG, authority, self.clock, self.random)
        self.machine.died = self._died
        self.machine.met_full = lambda: self.fault("disk full")
        self.network = Network(self.machine, self.fault)
        self.silos: dict[int, Silo] = {}
        self.lives: Counter[int] = Counter()
        self.jobs: list[str] = []
        self.terms: dict[str, JobTerms] = {}
        self.books = Books(self.network)
        self.outage = 0
        self.down = 0
        self.step = -1
        self.machine.start()

    # --- running -------------------------------------------------------------------------------------------------

    def run(self, sequence: Sequence[op.Operation]) -> None:
        for self.step, operation in enumerate(sequence):
            self.do(operation)
            self._tidy()
            self.books.check(self)

    def do(self, operation: op.Operation) -> None:
        match operation:
            case op.Advance(seconds):
                self.clock.advance(seconds)
            case op.Outage(count):
                self.outage = count
            case op.LoseRequest(after):
                self.network.lose.append(("request", after))
            case op.LoseReply(after):
                self.network.lose.append(("reply", after))
            case op.BreakUpload():
                self.network.breaking = operation
            case op.Kill():
                self.machine.armed = operation
            case op.FullDisk(calls):
                self.machine.full = calls
            case op.StopAgent(number, torn):
                if number in self.silos:
                    self.silos[number].restart(torn)
                    self.fault("agent killed")
            case _:
                self._with_server(operation)

    def _with_server(self, operation: op.Operation) -> None:
        """What needs the server. While it is down, agents ask in vain and administrators wait."""
        core = self.machine.core
        match operation:
            case op.SubmitJob(number):
                self._attempt(lambda: self._submit(number))
            case op.Join(number, again):
                self._attempt(lambda: self._join(number, again))
            case op.Approve(number, job):
                self._silo(number, job, lambda silo, name: silo.decide(name, "approve"))
            case op.Deny(number, job):
                self._silo(number, job, lambda silo, name: silo.decide(name, "deny"))
            case op.Withdraw(number, job):
                self._silo(number, job, lambda silo, name: silo.decide(name, "withdraw"))
            case op.Lease(number, job):
                self._silo(
                    number, job, lambda silo, name: silo.wire.next_task(name, silo.log.seen()) and None
                )
            case op.Turn(number, job, made):
                self._silo(number, job, lambda silo, name: silo.turn(name, made))
            case op.Train(number, job):
                self._silo(number, job, lambda silo, name: silo.train_only(name))
            case op.Round(job, at_once):
                self._round(job, at_once)
            case op.Deliver(number):
                self._silo(number, None, lambda silo, _: silo.deliver())
            case op.Duplicate(number, which, claimed_by):
                lies.duplicate(self, number, which, claimed_by)
            case op.Reevaluate(number, which, claimed_by):
                lies.reevaluate(self, number, which, claimed_by)
            case op.Export(job, selector):
                if (name := self._job(job)) is not None:
                    self._attempt(lambda: self.machine.core.jobs.export(OWNER, name, selector))
            case op.Forge(number, job, lie):
                self._silo(number, job, lambda silo, name: lies.forge(self, silo, name, lie))
            case op.Crash(power):
                self._attempt(lambda: self.machine.die("power cut" if power else "killed while idle"))
            case op.Restart():
                self._attempt(self._restart)
            case op.Restore():
                self._attempt(self._restore)
            case op.Revoke(number):
                if number in self.silos:
                    silo = self.silos[number]
                    self._attempt(lambda: core and self.machine.membership.revoke(OWNER, silo.name, "test"))
            case op.Pause(job):
                self._change(job, "pause")
            case op.Resume(job):
                self._change(job, "resume")
            case op.Abort(job):
                self._change(job, "abort")
            case op.Aggregate(job):
                if (name := self._job(job)) is not None:
                    self._attempt(lambda: self.machine.core.aggregation.advance(name))
            case op.Prune():
                self._attempt(lambda: core.retention.prune())
                self._attempt(lambda: core.retention.give_up_uploads(time() + 2 * ABANDONED))
            case op.Together(parts):
                self._together(parts)

    def _attempt(self, work: Callable[[], object]) -> None:
        """An administrator's call, or the server's own work. What it is refused for is its own business."""
        if self.machine.dead:
            return
        self.expect(work)

    def expect(self, work: Callable[[], object]) -> None:
        """Only what a user may meet comes out of a call; a bug of ours does not."""
        try:
            work()
        except Killed:
            pass
        except Untrusted as error:
            raise Broken(f"a silo does not believe its server any more: {error}") from error
        except (Refused, Unavailable, Conflict, Stopped, Aborted):
            pass
        except (Misuse, AnabranchError) as error:
            raise Broken(f"{type(error).__name__}: {error}") from error

    def _silo(self, number: int, job: int | None, work: Callable[[Silo, str], None]) -> None:
        silo, name = self.silos.get(number), "" if job is None else self._job(job)
        if silo is not None and name is not None:
            self.expect(lambda: work(silo, name))

    def _job(self, number: int) -> str | None:
        return self.jobs[number % len(self.jobs)] if self.jobs else None

    def _tidy(self) -> None:
        """A dead server is buried, and started again when the outage is over."""
        if self.machine.up and self.machine.dead:
            self.machine.bury()
            self.down = self.outage
            self.outage = 0
        if not self.machine.up:
            if self.down:
                self.down -= 1
                return
            self._start()

    def _start(self) -> None:
        while not self.machine.up:
            try:
                self.machine.start()
            except Killed:
                self.machine.bury()

    # --- operations ----------------------------------------------------------------------------------------------

    def _submit(self, number: int) -> None:
        room = self.machine.core.jobs
        if len(self.books.open_jobs(self)) >= OPEN_JOBS:
            return
        text = f'[job]\nname = "j{len(self.terms)}"\ntask = "task.py:T"\n[stop]\nversions = {self.versions}\n'
        file = parse_job_file(text + TERMS[number % len(TERMS)])
        initial = room.spool()
        digest = write_tensors(
            initial, MANIFEST, {s.name: np.zeros(s.shape, np.float32) for s in MANIFEST.specs}
        )
        made = JobTerms(
            file=file,
            archive_sha256=canonical.sha256(b"archive"),
            initial_sha256=digest,
            manifest_sha256=MANIFEST.digest(),
        )
        job, _ = room.submit(OWNER, made.encode(), MANIFEST.encode(), b"archive", initial)
        self.terms[job] = made

    def _join(self, number: int, again: bool) -> None:
        """An enrolled silo does not join again before it was revoked."""
        name = f"silo-{number}"
        membership = self.machine.membership
        if any(row.name == name and row.status == "active" for row in membership.silos()):
            return
        self.lives[number] += 1
        life = self.lives[number]
        update, approver = (
            Ed25519PrivateKey.from_private_bytes(sha256(f"{name} {life} {what}".encode()).digest())
            for what in ("update", "approver")
        )
        bundle = parse_bundle(membership.invite(OWNER, name)[0])
        tls = identity.new_tls_key()
        csr = identity.csr(tls)
        chain = b""
        for _ in range(1 + again):
            if again:
                self.fault("enrolment repeated")
            nonce = membership.begin(bundle.token_id)
            message = identity.enrolment_proof_message(bundle.token_id, nonce, csr)
            keys = [
                SigningKey(purpose, key.public_key().public_bytes_raw(), key.sign(message))
                for purpose, key in (("update", update), ("approver", approver))
            ]
            chain, _ = membership.enrol(bundle.token_id, bytes.fromhex(bundle.token), csr, keys)
        leaf = identity.parse_chain(chain)[0]
        silo = Silo(self.root / "silos", name, number, life, (update, approver), self.machine.info)
        agent = f"spiffe://fed.test/silo/{name}/agent/{life - 1}"
        silo.enrolled(self.network, agent, identity.fingerprint(leaf))
        self.silos[number] = silo

    def _round(self, job: int, at_once: bool) -> None:
        if (name := self._job(job)) is None:
            return
        if at_once:
            self._together([op.Train(number, job) for number in self.silos])
            self._together([op.Deliver(number) for number in self.silos])
        else:
            for silo in self.silos.values():
                self.expect(lambda silo=silo: silo.train_only(name))
            for silo in self.silos.values():
                self.expect(silo.deliver)
        self._attempt(lambda: any(not self.machine.core.aggregation.advance(name) for _ in range(3)))

    def _restart(self) -> None:
        self.machine.stop()
        self.fault("clean restart")
        self._start()

    def _restore(self) -> None:
        if not self.machine.restored_is_refused():
            raise Broken("a server started on an old database")
        self.fault("old database restored")
        self.machine.back_up()

    def _change(self, number: int, action: str) -> None:
        if (name := self._job(number)) is not None:
            self._attempt(lambda: self.machine.core.jobs.change(OWNER, name, action, "test"))

    def _together(self, parts: Sequence[op.Operation]) -> None:
        """Losing and breaking is for calls one after another: here only a kill may come between."""
        if self.machine.dead:
            return
        lose, self.network.lose = self.network.lose, []
        breaking, self.network.breaking = self.network.breaking, None
        broken: list[Broken] = []

        def one(part: op.Operation) -> Callable[[], None]:
            def call() -> None:
                try:
                    if isinstance(part, op.Deliver):
                        self._silo(part.silo, None, lambda silo, _: silo.deliver(first=True))
                    else:
                        self._with_server(part)
                except Broken as error:
                    broken.append(error)

            return call

        self.machine.together([one(part) for part in parts])
        self.fault("batches")
        self.network.lose, self.network.breaking = lose, breaking
        if broken:
            raise broken[0]

    def fault(self, kind: str) -> None:
        self.faults[kind] += 1

    def _died(self, how: str) -> None:
        self.faults[f"killed at {how or 'start'}"] += 1

    # --- the end -------------------------------------------------------------------------------------------------

    def heal(self) -> None:
        """No faults any more; the server is up, nobody is missing, nothing is paused."""
        self.network.lose.clear()
        self.network.breaking, self.machine.full = None, 0
        self.machine.armed, self.outage, self.down = None, 0, 0
        self._tidy()
        for number in range(3):
            self.do(op.Join(number))
        for place, name in enumerate(self.books.open_jobs(self)):
            with suppress(Refused):
                self.machine.core.jobs.change(OWNER, name, "resume", "healed")
            if (
                place and self.random.random() < 0.7
            ):  # one completes, most of the others have been long enough
                self.machine.core.jobs.change(OWNER, name, "abort", "healed")
                continue
            for silo in self.silos.values():
                self.expect(lambda silo=silo, name=name: silo.decide(name, "approve"))

    def settle(self) -> None:
        """Run until every job has ended. Raises Stuck."""
        self.heal()
        working = self.random.sample(sorted(self.silos), min(len(self.silos), 4))  # the others are waited for
        for _ in range(60 + 12 * self.versions):
            waiting = self.books.open_jobs(self)
            if not waiting:
                break
            before = self.machine.core.log.checkpoint()
            for name in waiting:
                for number in working:
                    self.expect(lambda silo=self.silos[number], name=name: silo.turn(name))
                self._attempt(lambda name=name: self.machine.core.aggregation.advance(name))
            self._tidy()
            if self.machine.core.log.checkpoint() == before:
                self.clock.advance(601.0)
        else:
            raise Stuck(f"faults have stopped, and these jobs do not complete: {self.books.open_jobs(self)}")
        for silo in self.silos.values():
            self.expect(silo.deliver)
            left = list(silo.outbox.jobs())
            if left and self.books.active(self, silo.name):
                raise Stuck(f"{silo.name} cannot get rid of updates for {left}")

    def finish(self, audit: bool) -> None:
        self.settle()
        self.books.check(self)
        self.books.close(self)
        if audit:
            self.books.audit(self)

    def close(self) -> None:
        if self.machine.up and self.machine.dead:
            self.machine.bury()
        if self.machine.up:
            self.machine.stop()


def simulate(
    sequence: Sequence[op.Operation],
    seed: int,
    made: Path,
    scratch: Path,
    versions: int = 12,
    audit: bool = True,
) -> Federation:
    """One run from a fresh federation to its end. Raises Broken; whatever happens, nothing is left on the disk."""
    root = Path(tempfile.mkdtemp(dir=scratch))
    federation = Federation(made, root, seed, versions)
    try:
        federation.run(sequence)
        federation.finish(audit)
        federation.close()
        return federation
    except BaseException:
        with suppress(Exception):
            federation.close()
        raise
    finally:
        shutil.rmtree(root, ignore_errors=True)
