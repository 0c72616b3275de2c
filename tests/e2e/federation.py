"""A real federation for tests: the server and every agent are processes of their own, speaking mTLS on loopback."""

import json
import os
import signal
import socket
import subprocess
import sysconfig
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from anabranch.v1 import admin_pb2
from console import documents
from console.client import connect

BIN = Path(sysconfig.get_path("scripts"))
PATIENCE = 90.0  # seconds a test waits for something that takes one or two
TASK = """
import time
import numpy as np
import torch

class Tiny:
    def model(self):
        return torch.nn.Linear(8, 2)

    def dataset(self, data, split):
        with np.load(data.path / "records.npz") as file:
            x, y = torch.from_numpy(file["x"]), torch.from_numpy(file["y"])
        self.pause = float(data.params.get("seconds_per_batch", 0))
        return torch.utils.data.TensorDataset(x, y)

    def loss(self, model, batch):
        time.sleep(self.pause)
        x, y = batch
        return torch.nn.functional.cross_entropy(model(x), y)

    def evaluate(self, model, batches):
        right = total = 0
        for x, y in batches:
            right += int((model(x).argmax(1) == y).sum())
            total += len(y)
        return {"accuracy": right / total}
"""
JOB = """
[job]
name = "tiny"
task = "task.py:Tiny"
data = "records"
[silos]
min = {silos}
[training]
local_steps = {steps}
batch_size = 8
[aggregation]
strategy = "{strategy}"
{rule}
[evaluation]
every = 2
[stop]
versions = {versions}
"""


def environment() -> dict[str, str]:
    """Without the proxies of this machine: everything is on loopback."""
    return {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


@dataclass
class Federation:
    root: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    ports: list[int] = field(default_factory=lambda: free_ports(3))

    @property
    def server_dir(self) -> Path:
        return self.root / "server"

    def silo_dir(self, name: str) -> Path:
        return self.root / name

    def call(self, program: str, *arguments: object, expect: int = 0) -> Any:
        """Run a command with --json to its end; what it printed. Fails the test on another exit code."""
        command = [str(BIN / program), *map(str, arguments), "--json"]
        env = environment() | {"ANABRANCH_ADMIN": str(self.server_dir / "admin" / "admin")}
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=env, check=False)
        assert done.returncode == expect, f"{' '.join(command)}\n{done.stdout}{done.stderr}{self.logs()}"
        return json.loads(done.stdout)

    def start(self, name: str, program: str, *arguments: object, env: dict[str, str] | None = None) -> None:
        log = open(self.root / f"{name}.log", "ab")  # noqa: SIM115 - the child keeps it
        self.processes[name] = subprocess.Popen(
            [str(BIN / program), *map(str, arguments)],
            stdout=log,
            stderr=log,
            env=environment() | (env or {}),
            cwd=self.root,
        )
        log.close()

    def create(self) -> None:
        a, b, c = self.ports
        flags = ["--port", a, "--enrolment-port", b, "--health-port", c]
        self.call("anabranch-server", "init", self.server_dir, "--host", "localhost", *flags)
        self.serve()

    def serve(self) -> None:
        self.start("server", "anabranch-server", "serve", self.server_dir)
        self.until(self.ready, "the server is ready")

    def ready(self) -> bool:
        try:
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f"http://127.0.0.1:{self.ports[2]}/readyz", timeout=2) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def metrics(self) -> str:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{self.ports[2]}/metrics", timeout=5) as reply:
            return str(reply.read().decode())

    def enrol(self, name: str, seed: int = 0, pause: float = 0.0, policy: str = "") -> None:
        bundle = self.root / f"{name}.json"
        self.call("anabranch", "silo", "invite", name, "-o", bundle)
        self.call("anabranch-silo", "enrol", bundle, "--dir", self.silo_dir(name))
        data = self.root / "data" / name
        data.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(64, 8)).astype(np.float32)
        np.savez(data / "records.npz", x=x, y=(x[:, 0] + x[:, 1] > 0).astype(np.int64))
        (self.silo_dir(name) / "policy.toml").write_text(
            f'[data.records]\npath = "{data}"\nparams = {{ seconds_per_batch = {pause} }}\n'
            f'[run]\nisolation = "allowed-without"\n{policy}'
        )

    def agent(self, name: str, env: dict[str, str] | None = None) -> None:
        """With a directory as people type it: relative to where they are."""
        self.start(
            name, "anabranch-silo", "run", "--dir", self.silo_dir(name).relative_to(self.root), env=env
        )

    def submit(self, task: str = TASK, text: str = "", **options: int | str) -> str:
        defaults: dict[str, int | str] = {
            "strategy": "fedbuff",
            "silos": 1,
            "steps": 4,
            "rule": "" if options.get("strategy") == "fedavg" else f"buffer = {options.get('buffer', 1)}",
            "versions": 4,
        }
        folder = self.root / "job"
        folder.mkdir(exist_ok=True)
        (folder / "job.toml").write_text((text or JOB).format(**{**defaults, **options}))
        (folder / "task.py").write_text(task)
        return str(self.call("anabranch", "job", "submit", folder)["job"])

    def approve(self, name: str, job: str) -> None:
        self.call("anabranch-silo", "approve", job, "--yes", "--dir", self.silo_dir(name))

    def status(self, job: str) -> dict[str, Any]:
        with connect(self.server_dir / "admin" / "admin") as admin:
            reply = admin.stub.ListJobStatus(
                admin_pb2.ListJobStatusRequest(), timeout=PATIENCE, wait_for_ready=True
            )
        return documents.job(next(one for one in reply.jobs if one.job == job))

    def silo(self, job: str, name: str) -> dict[str, Any]:
        return next(one for one in self.status(job)["silos"] if one["silo"] == name)

    def until(self, holds: Callable[[], Any], what: str) -> Any:
        """Wait for something to become true; its value."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if value := holds():
                return value
            time.sleep(0.1)
        raise AssertionError(f"{what}: not within {PATIENCE:.0f} s\n{self.logs()}")

    def finish(self, job: str) -> dict[str, Any]:
        """Wait until the job has completed; its last status."""
        self.until(lambda: self.status(job)["status"] == "completed", f"job {job} completes")
        return self.status(job)

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def verified(self) -> Path:
        """Export the log while the server runs; it verifies and replays. Returns the export."""
        out = self.root / f"export-{time.time_ns()}"
        vkey = self.call("anabranch-server", "export", self.server_dir, "-o", out) and out / "keys/log.vkey"
        self.call("anabranch-audit", "verify", out, "--vkey", vkey)
        self.call("anabranch-audit", "replay", out, "--vkey", vkey)
        return out

    def entries(self, type: str = "") -> list[dict[str, Any]]:
        """Entries of one type, or all, read from a fresh export by their published format."""
        out = self.root / f"entries-{time.time_ns()}"
        self.call("anabranch-server", "export", self.server_dir, "-o", out)
        found = []
        for bundle in sorted((out / "tile/entries").rglob("*")):
            data = bundle.read_bytes() if bundle.is_file() else b""
            while data:
                size = int.from_bytes(data[:2])
                found.append(json.loads(data[2 : 2 + size]))
                data = data[2 + size :]
        return [entry for entry in found if type in ("", entry["type"])]

    def logs(self) -> str:
        texts = [
            f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in self.root.glob("*.log")
        ]
        return "\n".join(texts)

    def close(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
