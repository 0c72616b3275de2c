"""A real federation to measure: `anabranch-server serve`, enrolled silos, approved jobs with models of a given size.

Version 0 and the deltas are files of random numbers, so no model code runs and torch stays out of every process.
"""

import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from anabranch.errors import Reason, Refused
from anabranch.terms import JobTerms, parse_job_file
from anabranch.wire.canonical import sha256
from anabranch.wire.identity import new_tls_key, private_pem
from anabranch.wire.manifest import Manifest, TensorSpec
from anabranch.wire.tensors import TensorWriter
from benchmarks.gauge import Worker
from console.client import connect
from console.demo import federation as demo
from console.demo.processes import Children
from console.submit import Prepared, submit
from server.ca.authority import open_authority
from silo_agent import approval
from silo_agent.agent import connect as connect_silo
from silo_agent.config import Home
from silo_agent.enrol import enrol
from silo_agent.policy import Policy
from silo_agent.training.archive import pack

TENSOR = 1 << 20  # elements: layers of 4 MiB
VERSIONS = 100_000  # more than any measurement makes
POLICY = '[run]\nmax_update_bytes = "64GiB"\n[data.none]\npath = "/"\n'


@dataclass
class Federation:
    """Everything a measurement needs to know of the running processes."""

    place: demo.Place
    ports: demo.Ports
    children: Children
    silos: list[str]
    sizes: dict[str, int] = field(default_factory=dict)  # job → bytes of its model

    @property
    def server(self) -> int:
        """The server's process id."""
        return self.children.running["server"].process.pid

    def worker(self, silo: str, job: str) -> Worker:
        """A process that does what `silo` is told."""
        home, size, seed = self.place.silo(silo), self.sizes[job], 1 + self.silos.index(silo)
        return Worker([sys.executable, "-m", "benchmarks.silo", str(home), job, str(size), str(seed)])

    def certify(self, directory: Path) -> None:
        """A server certificate of this federation's authority for the reference, and what clients trust."""
        config = json.loads((self.place.admin / "federation.json").read_text())
        authority = open_authority(self.place.server / "keys", config["federation"], time.time())
        key = new_tls_key()
        issued = authority.issue_server(key.public_key(), ["localhost"], time.time(), 86400.0)
        directory.mkdir(parents=True)
        (directory / "key.pem").write_bytes(private_pem(key))
        (directory / "cert.pem").write_bytes(issued.chain)
        (directory / "ca.pem").write_bytes(authority.ca_pem)


@contextmanager
def running(root: Path, silos: int) -> Iterator[Federation]:
    """A server with `silos` enrolled silos, whose agents are not started."""
    place, ports = demo.Place(root), demo.free_ports()
    names = [f"silo-{i}" for i in range(silos)]
    with Children(place.logs) as children:
        demo.make_server(children, place, ports)
        allow_haste(place.server / "server.toml")
        demo.serve(children, place, ports)
        with connect(place.admin) as admin:
            for name in names:
                bundle = demo.invite(admin, place, name).read_bytes()
                _enrol(Home(place.silo(name)), bundle)
                (place.silo(name) / "policy.toml").write_text(POLICY)
        yield Federation(place, ports, children, names)


def allow_haste(config: Path) -> None:
    """A measurement's silos do in seconds what real ones do in hours."""
    text = config.read_text()
    text = re.sub(r"^calls_per_second = .*$", "calls_per_second = 5000.0", text, flags=re.MULTILINE)
    config.write_text(re.sub(r"^calls_burst = .*$", "calls_burst = 50000", text, flags=re.MULTILINE))


def _enrol(home: Home, bundle: bytes) -> None:
    """Strangers of one address are let in slowly, so some wait."""
    while True:
        try:
            enrol(home, bundle, time.time())
            return
        except Refused as refusal:
            if refusal.code is not Reason.QUOTA:
                raise
            time.sleep(0.5)


def layout(size: int) -> Manifest:
    """A model of `size` bytes: layers of 4 MiB and a rest."""
    elements = size // 4
    shapes = [TENSOR] * (elements // TENSOR) + ([elements % TENSOR] if elements % TENSOR else [])
    return Manifest(tuple(TensorSpec(f"layer.{i:05}", (n,), "trainable") for i, n in enumerate(shapes)))


def numbers(path: Path, manifest: Manifest, seed: int) -> str:
    """A canonical file of small random numbers, other ones for each seed; its digest."""
    block = np.random.default_rng(seed).standard_normal(TENSOR, np.float32) * np.float32(1e-3)
    with TensorWriter(path, manifest) as writer:
        for number, spec in enumerate(manifest.specs):
            block[0] = number  # no two layers are equal
            writer.write(block[: spec.elements])
        return writer.close()


def submit_job(federation: Federation, size: int, aggregation: str) -> str:
    """A running job with a model of `size` bytes that every silo approved."""
    manifest = layout(size)
    folder = federation.place.root / "jobs" / str(len(federation.sizes))
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "task.py").write_text(
        "# the trainer of a measurement makes its numbers without a model\n"
    )
    text = (
        f'[job]\nname = "bench"\ntask = "task.py:Numbers"\ndata = "none"\n[silos]\nmin = {len(federation.silos)}\n'
        f"[aggregation]\n{aggregation}\n[evaluation]\nevery = {VERSIONS}\n[stop]\nversions = {VERSIONS}\n"
    )
    initial, archive = folder / "initial.safetensors", pack(folder / "code")
    made = JobTerms(
        file=parse_job_file(text, "benchmark"),
        archive_sha256=sha256(archive),
        initial_sha256=numbers(initial, manifest, 0),
        manifest_sha256=manifest.digest(),
    )
    with connect(federation.place.admin) as admin:
        job = submit(admin, Prepared(made, archive, manifest.encode(), initial)).job
    initial.unlink()
    federation.sizes[job] = size
    for name in federation.silos:
        _approve(Home(federation.place.silo(name)), job)
    return job


def _approve(home: Home, job: str) -> None:
    with connect_silo(home) as silo:
        offered = next(one for one in silo.client.jobs(silo.log.seen()) if one.id == job)
        proposal = approval.examine(offered, silo.log)
        journal = home.job(job) / "receipts.jsonl"
        approval.announce(silo.client, silo.who, silo.log, proposal, "approve", Policy(), journal)
