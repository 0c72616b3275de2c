"""A real federation to measure: `anabranch-server serve`, enrolled silos, one approved job with a model of a given size.

Version 0 and the deltas are files of random numbers, so no model code runs and torch stays out of every process.
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from anabranch.terms import JobTerms, parse_job_file
from anabranch.wire.canonical import sha256
from anabranch.wire.identity import new_tls_key, private_pem
from anabranch.wire.manifest import Manifest, TensorSpec
from anabranch.wire.tensors import TensorWriter
from console.client import connect
from console.demo import federation as demo
from console.demo.processes import Children
from console.submit import Prepared, submit
from server.ca.authority import open_authority
from silo_agent.training.archive import pack

TENSOR = 1 << 22  # elements: 16 MiB, a large layer of a real model
VERSIONS = 100_000  # more than any measurement makes


@dataclass
class Federation:
    """Everything a measurement needs to know of the running processes."""

    place: demo.Place
    ports: demo.Ports
    children: Children
    silos: list[str]
    jobs: dict[str, Path] = field(default_factory=dict)  # id → folder of the deltas, one `NAME.delta` per silo

    @property
    def server(self) -> int:
        """The server's process id."""
        return self.children.running["server"].process.pid

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
def running(root: Path, silos: int, server: Mapping[str, str] | None = None) -> Iterator[Federation]:
    """A server with `silos` enrolled silos, whose agents are not started. `server`: lines for its [limits]."""
    place, ports = demo.Place(root), demo.free_ports()
    names = [f"silo-{i}" for i in range(silos)]
    with Children(place.logs) as children:
        demo.start_server(children, place, ports)
        for start in range(0, silos, 8):
            demo.enrol(children, place, names[start : start + 8])
        for name in names:
            (place.silo(name) / "policy.toml").write_text(
                '[run]\nmax_update_bytes = "64GiB"\n[data.none]\npath = "/"\n'
            )
        yield Federation(place, ports, children, names)


def layout(size: int) -> Manifest:
    """A model of `size` bytes: layers of 16 MiB and a rest."""
    elements = size // 4
    shapes = [TENSOR] * (elements // TENSOR) + ([elements % TENSOR] if elements % TENSOR else [])
    return Manifest(tuple(TensorSpec(f"layer.{i:05}", (n,), "trainable") for i, n in enumerate(shapes)))


def numbers(path: Path, manifest: Manifest, seed: int) -> str:
    """A canonical file of small random numbers, distinct per seed; its digest."""
    block = np.random.default_rng(seed).standard_normal(TENSOR, np.float32) * np.float32(1e-3)
    with TensorWriter(path, manifest) as writer:
        for number, spec in enumerate(manifest.specs):
            block[0] = number  # no two layers are equal
            writer.write(block[: spec.elements])
        return writer.close()


def submit_job(federation: Federation, size: int, aggregation: str = 'strategy = \"fedavg\"') -> str:
    """A running job with a model of `size` bytes that every silo approved."""
    manifest = layout(size)
    folder = federation.place.root / "jobs" / f"{size}-{len(federation.jobs)}"
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "task.py").write_text("# the trainer of a measurement brings its numbers in a file\n")
    text = (
        f'[job]\nname = "bench"\ntask = "task.py:Numbers"\ndata = "none"\n[silos]\nmin = {len(federation.silos)}\n'
        f"[aggregation]\n{aggregation}\n[evaluation]\nevery = {VERSIONS}\n[stop]\nversions = {VERSIONS}\n"
    )
    file = parse_job_file(text, "benchmark")
    initial, archive = folder / "initial.safetensors", pack(folder / "code")
    made = JobTerms(
        file=file,
        archive_sha256=sha256(archive),
        initial_sha256=numbers(initial, manifest, 0),
        manifest_sha256=manifest.digest(),
    )
    with connect(federation.place.admin) as admin:
        job = submit(admin, Prepared(made, archive, manifest.encode(), initial)).job
    for number, name in enumerate(federation.silos):
        numbers(folder / f"{name}.delta", manifest, 1 + number)
    for start in range(0, len(federation.silos), 8):
        demo.approve(federation.children, federation.place, federation.silos[start : start + 8], job)
    federation.jobs[job] = folder
    return job
