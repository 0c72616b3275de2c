"""The federation of a chaos run: real processes over real mTLS, and everything that is done to them."""

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import grpc
import numpy as np

from anabranch import exits
from anabranch.errors import AnabranchError, Unavailable
from anabranch.terms import JobTerms, parse_job_file
from anabranch.v1 import admin_pb2
from anabranch.wire import canonical
from anabranch.wire.tensors import Manifest, TensorSpec, write_tensors
from console.client import connect
from console.submit import Prepared, submit
from silo_agent.approval import Decision, Decisions
from silo_agent.config import Home
from silo_agent.training.archive import pack
from tests.chaos.trainer import INTERPRETER
from tests.chaos.wire import Wire
from tests.e2e import federation as e2e
from tests.simulation.history import Broken

ROOT = Path(__file__).parents[2]
PATIENCE = 180.0  # seconds for what takes one or two on an idle machine
ASK_SECONDS = 10.0
FEWEST = 2  # silos that a job goes on with
TERMS = [
    "[aggregation]\nbuffer = 2\nstaleness_exponent = 0.5\n",
    '[aggregation]\nbuffer = 3\nema = 0.5\n[aggregation.server_optimizer]\nname = "adam"\nlr = 0.1\n',
    '[aggregation]\nstrategy = "fedavg"\n',
]
JOB = """[job]\nname = "{name}"\ntask = "task.py:T"\ndata = "records"
[silos]\nmin = 2\n[training]\nlocal_steps = 1\n[evaluation]\nevery = 25\n[stop]\nversions = {versions}
"""
SMALL, LARGE = 4_000, 400_000  # parameters; a large update is sent in two chunks


class Federation:
    """`create`, then `fault` as often as wanted, then `heal` and `close`. Raises Broken when a process ends by itself."""

    def __init__(self, root: Path, seed: int, silos: int) -> None:
        self.root, self.random = root, Random(seed)
        self.real = e2e.Federation(root)
        self.wire = Wire(self.real.ports[0], seed)
        self.silos = [f"silo-{number}" for number in range(silos)]
        self.faults: Counter[str] = Counter()
        self.approved: dict[str, str] = {}  # digests of terms, by the job's name
        self.revoked: set[str] = set()  # or about to be: nobody knows whether a lost request arrived
        self.aborted: set[str] = set()  # ids of jobs, the same
        self.withdrawn: set[tuple[str, str]] = set()  # silo and job
        self.submitted = 0
        self._later: list[tuple[float, Callable[[], None]]] = []

    def create(self) -> None:
        self.real.create()
        program = self.root / "interpreter"
        program.write_text(INTERPRETER.format(root=ROOT, python=sys.executable))
        program.chmod(0o755)
        for name in self.silos:
            self.real.enrol(name)
            (self.real.silo_dir(name) / "agent.toml").write_text(f'server = "localhost:{self.wire.port}"\n')
        self._approve()
        for name in self.silos:
            self.real.agent(name)

    def _approve(self) -> None:
        """Each silo's policy names the terms it agrees to; a running agent reads it again every two seconds."""
        for name in self.silos:
            policy = self.real.silo_dir(name) / "policy.toml"
            text = (
                f'[data.records]\npath = "{self.root / "data" / name}"\n'
                f"[approve]\nterms = {list(self.approved.values())}\n"
                f'[run]\nisolation = "allowed-without"\ninterpreter = "{self.root / "interpreter"}"\n'
            )
            beside = policy.with_suffix(".new")
            beside.write_text(text.replace("'", '"'))
            os.replace(beside, policy)

    # --- what an administrator does ------------------------------------------------------------------------------

    def submit(self, versions: int) -> None:
        """One more job. What came of an attempt whose answer was lost is seen in `status`."""
        self.submitted += 1
        size = LARGE if self.random.random() < 0.1 else SMALL
        name = f"job-{self.submitted}"
        file = parse_job_file(JOB.format(name=name, versions=versions) + self.random.choice(TERMS))
        folder, initial = self.root / "job", self.root / "initial.safetensors"
        folder.mkdir(exist_ok=True)
        (folder / "task.py").write_text("")
        archive = pack(folder)
        manifest = Manifest((TensorSpec("weight", (size,), "trainable"),))
        terms = JobTerms(
            file=file,
            archive_sha256=canonical.sha256(archive),
            initial_sha256=write_tensors(initial, manifest, {"weight": np.zeros(size, np.float32)}),
            manifest_sha256=manifest.digest(),
        )
        self.approved[name] = terms.digest()
        self._approve()
        with self._admin() as admin:
            submit(admin, Prepared(terms, archive, manifest.encode(), initial))

    def status(self) -> list[Any] | None:
        """Every job, or None while the server does not answer."""
        try:
            with self._admin() as admin:
                reply = admin.stub.ListJobStatus(admin_pb2.ListJobStatusRequest(), timeout=ASK_SECONDS)
                return list(reply.jobs)
        except (grpc.RpcError, AnabranchError):
            return None

    def _going_on(self) -> list[Any]:
        return [job for job in self.status() or [] if job.status not in ("completed", "aborted")]

    def _change(self, action: str, job: str) -> None:
        request = admin_pb2.ChangeJobRequest(job=job, action=action, reason="chaos")
        with suppress(grpc.RpcError, AnabranchError), self._admin() as admin:
            admin.stub.ChangeJob(request, timeout=ASK_SECONDS)

    def _resume(self) -> None:
        for job in self._going_on():
            if job.status == "paused":
                self._change("resume", job.job)

    def present(self) -> list[str]:
        """Silos that were not revoked."""
        return [name for name in self.silos if name not in self.revoked]

    def leaving(self) -> list[str]:
        """Silos that were revoked and whose agents have not ended yet."""
        return sorted(self.revoked & self.real.processes.keys())

    def _admin(self) -> Any:
        return connect(self.real.server_dir / "admin" / "admin")

    # --- faults --------------------------------------------------------------------------------------------------

    def fault(self) -> None:
        """One more, whatever of the earlier ones still lasts."""
        name = self.random.choice(self.silos)
        lasting = self.random.uniform(0.2, 4.0)
        kinds: list[tuple[float, Callable[[], None]]] = [
            (3, lambda: self._kill("server", self.random.uniform(0, 3))),
            (2, lambda: self._kill_soon("server", lasting)),
            (2, lambda: self._freeze("server", lasting)),
            (5, lambda: self._kill(name, self.random.uniform(0, 3))),
            (2, lambda: self._freeze(name, lasting)),
            (2, lambda: self._kill_training(name)),
            (6, self._cut),
            (3, lambda: self._disturb("connections held", lasting, held=True)),
            (3, lambda: self._disturb("bytes delayed", 3 * lasting, delay=0.05)),
            (3, lambda: self._disturb("bytes sliced", 3 * lasting, slice=400)),
            (1, lambda: self._pause(lasting)),
            (1, lambda: self.revoke(name)),
            (3, lambda: self.withdraw(name, 3 * lasting)),
            (1, self.abort),
        ]
        [do] = self.random.choices([do for _, do in kinds], [weight for weight, _ in kinds])
        do()

    def _kill(self, name: str, down: float) -> None:
        process = self.real.processes.get(name)
        if process is None:
            return
        self._alive(name)
        process.kill()
        process.wait()
        del self.real.processes[name]
        self.faults["server killed" if name == "server" else "agent killed"] += 1
        self.after(down, lambda: self._start(name))

    def _kill_soon(self, name: str, after: float) -> None:
        """Killed, and killed again while it starts."""
        self._kill(name, 0.0)
        self.after(after, lambda: self._kill(name, 0.0))

    def _start(self, name: str) -> None:
        if name in self.real.processes:
            return
        if name == "server":
            self.real.start("server", "anabranch-server", "serve", self.real.server_dir)
        else:
            self.real.agent(name)

    def _freeze(self, name: str, seconds: float) -> None:
        process = self.real.processes.get(name)
        if process is None:
            return
        process.send_signal(signal.SIGSTOP)
        self.faults["server stopped" if name == "server" else "agent stopped"] += 1
        self.after(seconds, lambda: process.send_signal(signal.SIGCONT))

    def _kill_training(self, name: str) -> None:
        process = self.real.processes.get(name)
        for path in Path(f"/proc/{process.pid}/task").glob("*/children") if process else ():
            with suppress(OSError):
                for pid in path.read_text().split():
                    os.kill(int(pid), signal.SIGKILL)
                    self.faults["training process killed"] += 1

    def _cut(self) -> None:
        if self.wire.cut():
            self.faults["connections cut"] += 1

    def _disturb(self, what: str, seconds: float, **how: Any) -> None:
        self.faults[what] += 1
        for key, value in how.items():
            setattr(self.wire, key, value)
        self.after(seconds, self.wire.calm)

    def _pause(self, seconds: float) -> None:
        self.faults["jobs paused"] += 1
        for job in self._going_on():
            if job.status == "running":
                self._change("pause", job.job)
        self.after(seconds, self._resume)

    # --- those who leave -----------------------------------------------------------------------------------------

    def revoke(self, name: str) -> None:
        """For good, if two are left; asked for until the server has answered."""
        if name in self.present() and len(self.present()) > FEWEST:
            self.revoked.add(name)
            self.faults["silo revoked"] += 1
            request = admin_pb2.RevokeSiloRequest(silo=name, reason="chaos")
            self._insist(lambda stub: stub.RevokeSilo(request, timeout=ASK_SECONDS))

    def _insist(self, ask: Callable[[Any], object]) -> None:
        """A refusal is an answer: an earlier request arrived, or a job has ended by itself."""
        try:
            with self._admin() as admin:
                ask(admin.stub)
        except Unavailable:
            self.after(1.0, lambda: self._insist(ask))
        except AnabranchError:
            return

    def withdraw(self, name: str, seconds: float) -> None:
        """From a job, as the command does before it tells the server; one silo in two comes back."""
        jobs = self._going_on()
        if jobs and name in self.present():
            job = self.random.choice(jobs)
            self._decide(name, job.name, job.job, "withdraw")
            self.faults["approval withdrawn"] += 1
            self.withdrawn.add((name, job.job))
            if self.random.random() < 0.5:
                self.after(seconds, lambda: self._return(name, job.name, job.job))

    def _return(self, name: str, title: str, job: str) -> None:
        if (name, job) in self.withdrawn:
            self.withdrawn.remove((name, job))
            self._decide(name, title, job, "approve")
            self.faults["approval given again"] += 1

    def _decide(self, name: str, title: str, job: str, decision: Decision) -> None:
        Decisions(Home(self.real.silo_dir(name)).decisions).record(self.approved[title], job, decision)

    def abort(self) -> None:
        """And another one instead, if the server can be asked."""
        if jobs := self._going_on():
            job = self.random.choice(jobs)
            self.aborted.add(job.job)
            self.faults["job aborted"] += 1
            request = admin_pb2.ChangeJobRequest(job=job.job, action="abort", reason="chaos")
            self._insist(lambda stub: stub.ChangeJob(request, timeout=ASK_SECONDS))
            with suppress(grpc.RpcError, AnabranchError):
                self.submit(int(job.versions))

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        self._later.append((time.monotonic() + seconds, do))

    # --- time passes ---------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """What is due by now."""
        due = [one for one in self._later if one[0] <= time.monotonic()]
        self._later = [one for one in self._later if one not in due]
        for _, do in due:
            do()
        for name in list(self.real.processes):
            self._alive(name)

    def _alive(self, name: str) -> None:
        code = self.real.processes[name].poll()
        if code == exits.FAILED and name in self.revoked:
            del self.real.processes[name]  # as it should
        elif code is not None:
            said = (self.root / f"{name}.log").read_text(errors="replace")[-2000:]
            raise Broken(f"{name} ended by itself, with exit code {code}:\n{said}")

    def heal(self) -> None:
        """No faults any more: what was stopped goes on, what was killed is started, what was paused is resumed, and where
        too few are left somebody approves again.
        """
        while self._later:
            self.tick()
            time.sleep(0.1)
        self.wire.calm()
        deadline = time.monotonic() + PATIENCE
        while not self.real.ready():
            if time.monotonic() > deadline:
                raise Broken("faults have stopped, and the server does not come up")
            self.tick()
            time.sleep(0.2)
        self._resume()
        for job in self._going_on():
            away = [name for name in self.present() if (name, job.job) in self.withdrawn]
            for name in away[: max(0, FEWEST - len(self.present()) + len(away))]:
                self._return(name, job.name, job.job)

    def close(self) -> None:
        for process in self.real.processes.values():
            process.send_signal(signal.SIGCONT)
        self.real.close()
        self.wire.close()
