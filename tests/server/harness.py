"""A server's core in this process: the real rooms over a real state store, with a silo made of keys alone."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import insert, select

from anabranch.errors import Refused
from anabranch.terms import JobTerms, parse_job_file
from anabranch.tlog.entry import Actor
from anabranch.tlog.note import NoteSigner
from anabranch.wire import canonical, dsse, statements
from anabranch.wire.tensors import Manifest, TensorSpec, write_tensors
from server.core.allocation import TURNS, Allocation
from server.gaps import Reached, nothing
from server.intake import Decided, Upload
from server.scheduling import Lease
from server.sessions import LeaseProgress
from server.startup import Core, World, open_core
from server.state import tables
from server.state.writer import Transaction

FEDERATION = "fed.test"
ORIGIN = "log.fed.test"
MANIFEST = Manifest(
    (TensorSpec("layer.bias", (3,), "trainable"), TensorSpec("layer.weight", (4, 3), "trainable"))
)
ADMIN = Actor(id=f"spiffe://{FEDERATION}/admin/owner", auth="mtls", cert_sha256="0" * 64)


class Absent:
    """Nobody is connected: sessions are the transport's business."""

    def connected(self, silo: str) -> bool:
        return False

    def last_seen(self, silo: str) -> float:
        return 0.0

    def progress(self, lease: str) -> LeaseProgress:
        return LeaseProgress()


class Clock:
    """Stands still until told otherwise, and never goes back."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds


@dataclass(frozen=True)
class FakeSilo:
    """A silo's keys and what it would sign; no process, no network."""

    name: str
    key: Ed25519PrivateKey
    approver: Ed25519PrivateKey
    actor: Actor

    def delta(self, directory: Path, value: float, manifest: Manifest = MANIFEST) -> Path:
        path = directory / f"{self.name}-{value}.safetensors"
        write_tensors(path, manifest, {s.name: np.full(s.shape, value, np.float32) for s in manifest.specs})
        return path

    def statement(
        self, lease: Lease, terms: JobTerms, delta: Path, /, **changes: object
    ) -> statements.UpdateStatement:
        fields: dict[str, object] = {
            "update": hashlib.sha256(lease.id.encode()).hexdigest()[:32],
            "federation": FEDERATION,
            "job": lease.job,
            "lease": lease.id,
            "nonce": lease.nonce,
            "sequence": 1,
            "base_version": lease.view.version,
            "base_sha256": lease.view.digest,
            "delta_sha256": canonical.sha256(delta.read_bytes()),
            "bytes": delta.stat().st_size,
            "terms_sha256": terms.digest(),
            "manifest_sha256": terms.manifest_sha256,
            "num_examples": 10 if terms.file.silos.weighting == "examples" else None,
            "steps": lease.local_steps,
            "release": "0.1.0",
            "checkpoint": {"size": 1, "root": "0" * 64},
        }
        return statements.UpdateStatement.model_validate({**fields, **changes})

    def sign(self, payload: bytes) -> bytes:
        return dsse.sign(statements.PAYLOAD_TYPE, payload, self.key).encode()


def fake_silo(name: str) -> FakeSilo:
    """The same keys for the same name, so that a test can go on after the process that enrolled them died."""
    update, approver = (
        Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"{name} {purpose}".encode()).digest())
        for purpose in ("update", "approver")
    )
    return FakeSilo(
        name, update, approver, Actor(id=f"spiffe://{FEDERATION}/silo/{name}/agent/1", auth="mtls")
    )


class Server:
    """The core of a server over `directory`; `reopen` is what a restart does."""

    def __init__(self, directory: Path, reached: Reached = nothing, allocation: Allocation = TURNS) -> None:
        self.directory, self.allocation = directory, allocation
        self.reached = reached
        self.clock = Clock()
        self.signer = NoteSigner(ORIGIN, Ed25519PrivateKey.from_private_bytes(bytes(32)))
        self.core = self._open()

    def _open(self) -> Core:
        world = World(self.clock, os.urandom, self.reached)
        core = open_core(
            self.directory, FEDERATION, ORIGIN, self.signer, Absent(), world, allocation=self.allocation
        )
        core.writer.start()  # aggregation is advanced by hand, so that tests decide when
        return core

    def enrol(self, name: str) -> FakeSilo:
        silo = fake_silo(name)
        keys = {"update": silo.key, "approver": silo.approver}

        def decide(tx: Transaction) -> None:
            values = {"name": name, "status": "active", "agents": 1, "invited_at": 0.0}
            tx.connection.execute(insert(tables.silos).values(values))
            for purpose, key in keys.items():
                public = key.public_key().public_bytes_raw()
                row = {"keyid": dsse.keyid(public), "silo": name, "purpose": purpose, "public": public}
                tx.connection.execute(insert(tables.keys).values(row))

        self.core.writer.run(decide)
        return silo

    def enrol_once(self, name: str) -> FakeSilo:
        with self.core.reader.connect() as connection:
            mine = tables.silos.c.name == name
            known = connection.execute(select(tables.silos.c.name).where(mine)).first() is not None
        return fake_silo(name) if known else self.enrol(name)

    def submit(self, text: str = "", manifest: Manifest = MANIFEST) -> tuple[str, JobTerms]:
        file = parse_job_file('[job]\nname = "digits"\ntask = "task.py:Digits"\n' + text)
        initial = self.core.jobs.spool()
        digest = write_tensors(
            initial, manifest, {s.name: np.zeros(s.shape, np.float32) for s in manifest.specs}
        )
        terms = JobTerms(
            file=file,
            archive_sha256=canonical.sha256(b"archive"),
            initial_sha256=digest,
            manifest_sha256=manifest.digest(),
        )
        job, _ = self.core.jobs.submit(ADMIN, terms.encode(), manifest.encode(), b"archive", initial)
        return job, terms

    def decide(self, silo: FakeSilo, job: str, terms: JobTerms, decision: str = "approve") -> None:
        statement = statements.DecisionStatement(
            federation=FEDERATION,
            job=job,
            terms_sha256=terms.digest(),
            decision=decision,  # type: ignore[arg-type]
            silo=silo.name,
            time=canonical.utc(self.clock()),
        )
        envelope = dsse.sign(statements.PAYLOAD_TYPE, statement.encode(), silo.approver)
        self.core.jobs.decide(silo.name, silo.actor, job, envelope.encode())

    def lease(self, silo: FakeSilo, job: str) -> Lease:
        task = self.core.scheduling.next_task(silo.name, [job])
        assert isinstance(task, Lease), task
        return task

    def upload(
        self, silo: FakeSilo, statement: statements.UpdateStatement, data: bytes, piece: int = 1 << 20
    ) -> Decided:
        upload = self.core.intake.open(
            silo.name, silo.actor, statement.update, silo.sign(statement.encode()), 0
        )
        if not isinstance(upload, Upload):
            return upload
        try:
            for start in range(0, len(data), piece):
                upload.append(data[start : start + piece])
        except Refused as refusal:
            return upload.refuse(refusal)
        return upload.finish()

    def send(
        self, silo: FakeSilo, job: str, terms: JobTerms, value: float, manifest: Manifest = MANIFEST
    ) -> Decided:
        """One whole cycle of a silo: lease, train (a constant delta), submit."""
        lease = self.lease(silo, job)
        delta = silo.delta(self.directory, value, manifest)
        return self.upload(silo, silo.statement(lease, terms, delta), delta.read_bytes())
