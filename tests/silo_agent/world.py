"""The other end of an agent, in this process: a real CA, a log in memory, and services that say what a test wants."""

import socket
import time
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from anabranch.errors import Reason, Refused
from anabranch.terms import JobTerms, parse_job_file
from anabranch.tlog import checkpoint, merkle
from anabranch.tlog.entry import Actor, Target, encode_entry, new_entry, uuid7
from anabranch.tlog.note import NoteSigner
from anabranch.tlog.receipt import Receipt
from anabranch.v1 import (
    audit_pb2_grpc,
    enrolment_pb2_grpc,
    federation_pb2_grpc,
    update_pb2_grpc,
)
from anabranch.v1 import federation_pb2 as pb
from anabranch.wire import canonical, codec, identity
from anabranch.wire.bundle import JoinBundle
from anabranch.wire.manifest import Manifest, TensorSpec
from anabranch.wire.tensors import write_tensors
from server.ca.authority import Authority, create_authority, open_authority
from silo_agent.training.archive import pack
from tests.silo_agent import services
from tests.silo_agent.services import SILO, Upload

FEDERATION = "fed.example"
ORIGIN = "log.fed.example"
SERVER = f"spiffe://{FEDERATION}/aggregator/0"
MANIFEST = Manifest((TensorSpec("b", (2,), "trainable"), TensorSpec("w", (3, 2), "trainable")))

JOB = """
[job]
name = "tiny"
task = "task.py:Tiny"
data = "records"
{extra}
[training]
local_steps = 4
batch_size = 4
{training}
"""


class MemoryLog:
    """An append-only log with real proofs; `fork` gives another history of the same length under the same key."""

    def __init__(self, origin: str = ORIGIN, key: Ed25519PrivateKey | None = None) -> None:
        self.key = key or Ed25519PrivateKey.generate()
        self.signer = NoteSigner(origin, self.key)
        self.origin = origin
        self.entries: list[bytes] = []
        self._frontier = merkle.Frontier()
        self._nodes: dict[tuple[int, int], bytes] = {}

    def append(self, type: str, detail: dict[str, Any], target: Target, **more: Any) -> Receipt:
        actor = Actor(id=SERVER, auth="local")
        entry = new_entry(
            type,
            id=uuid7(int(time.time() * 1000), bytes(10)),
            time=canonical.utc(time.time()),
            fed=FEDERATION,
            observer=SERVER,
            actor=actor,
            target=target,
            detail=detail,
            **more,
        )
        return self.append_raw(encode_entry(entry))

    def append_raw(self, data: bytes) -> Receipt:
        self.entries.append(data)
        for level, index, node in self._frontier.append(merkle.leaf_hash(data)):
            self._nodes[level, index] = node
        return self.receipt(len(self.entries) - 1)

    def note(self, size: int) -> str:
        root = merkle.root(size, self._node)
        return checkpoint.sign(checkpoint.Checkpoint(self.origin, size, root), self.signer)

    def receipt(self, index: int, size: int | None = None) -> Receipt:
        size = size or len(self.entries)
        proof = tuple(merkle.inclusion_proof(index, size, self._node))
        return Receipt(self.entries[index], index, proof, self.note(size))

    def consistency(self, old: int, new: int) -> list[bytes]:
        if new > len(self.entries):
            raise Refused(Reason.NOT_FOUND, f"the log has {len(self.entries)} entries, not {new}")
        return merkle.consistency_proof(old, new, self._node)

    def _node(self, level: int, index: int) -> bytes:
        return self._nodes[level, index]

    def grow(self, count: int = 1) -> Receipt:
        for _ in range(count):
            last = self.append("silo.lost", {"silo": SILO}, Target(kind="silo", id=SILO))
        return last


def make_authority(directory: Path, federation: str = FEDERATION, now: float | None = None) -> Authority:
    moment = time.time() if now is None else now
    create_authority(directory, federation, moment)
    return open_authority(directory, federation, moment)


def server_pair(
    authority: Authority, hosts: list[str], now: float | None = None, days: float = 3
) -> tuple[bytes, bytes]:
    """Key and chain, PEM."""
    key = identity.new_tls_key()
    moment = time.time() if now is None else now
    issued = authority.issue_server(key.public_key(), hosts, moment, days * 86400)
    return identity.private_pem(key), issued.chain


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class World:
    """One federation with one job; attributes are what tests turn."""

    root: Path
    authority: Authority
    log: MemoryLog = field(default_factory=MemoryLog)
    tokens: dict[str, bytes] = field(default_factory=dict)  # id -> CSR that spent it
    refuse: dict[str, Refused] = field(default_factory=dict)  # method -> what it answers
    jobs: list[pb.Job] = field(default_factory=list)
    decided: list[str] = field(default_factory=list)
    words: list[bool | None] = field(default_factory=list)  # of each decision, on revival
    honest: bool = True  # the log says what was signed on it
    leases: list[pb.Lease] = field(default_factory=list)
    models: dict[str, bytes] = field(default_factory=dict)
    archive: bytes = b""
    uploads: dict[str, Upload] = field(default_factory=dict)
    released: list[pb.ReleaseLeaseRequest] = field(default_factory=list)
    left: list[int | None] = field(default_factory=list)  # of each question for work: cycles of training
    hellos: int = 0
    pushes: list[pb.ServerMessage] = field(default_factory=list)
    server_time: Callable[[], float] = time.time
    damage: int = 0  # bytes of the first upload that are stored wrongly
    served: list[grpc.Server] = field(default_factory=list)
    approver: bytes = b""

    # --- set-up ------------------------------------------------------------------------------------------------------

    def serve(self, hosts: list[str] | None = None, port: int = 0, enrolment_port: int = 0) -> None:
        key, chain = server_pair(self.authority, hosts or ["localhost", "127.0.0.1"])
        self.port, self.enrolment_port = self.start(key, chain, port, enrolment_port)

    def start(self, key: bytes, chain: bytes, port: int = 0, enrolment_port: int = 0) -> tuple[int, int]:
        server = grpc.server(futures.ThreadPoolExecutor(16))
        federation_pb2_grpc.add_FederationServicer_to_server(services.Federation(self), server)
        update_pb2_grpc.add_UpdatesServicer_to_server(services.Updates(self), server)
        audit_pb2_grpc.add_AuditServicer_to_server(services.Audit(self), server)
        enrolment_pb2_grpc.add_EnrolmentServicer_to_server(services.Enrolment(self), server)
        mutual = grpc.ssl_server_credentials([(key, chain)], self.authority.ca_pem, require_client_auth=True)
        open_ = grpc.ssl_server_credentials([(key, chain)])
        bound = server.add_secure_port(f"127.0.0.1:{port}", mutual)
        enrolling = server.add_secure_port(f"127.0.0.1:{enrolment_port}", open_)
        server.start()
        self.served.append(server)
        return bound, enrolling

    def stop(self) -> None:
        while self.served:
            self.served.pop().stop(0).wait()

    def bundle(self, token_id: str = "t1", expires: float | None = None, **changes: Any) -> bytes:
        bundle = JoinBundle(
            server=f"localhost:{self.port}",
            enrolment=f"localhost:{self.enrolment_port}",
            ca_pem=self.authority.ca_pem.decode(),
            ca_pins=(self.authority.pin,),
            federation=FEDERATION,
            log_origin=self.log.origin,
            log_vkey=self.log.signer.vkey,
            silo=SILO,
            token_id=token_id,
            token="ab" * 32,
            expires=canonical.utc(expires or time.time() + 3600),
        )
        return bundle.model_copy(update=changes).encode()

    def offer(self, code: Path, extra: str = "", training: str = "", job: str = "tiny-1") -> JobTerms:
        """Submit a job whose version 0 is all ones."""
        self.archive = pack(code)
        initial = self.root / "initial.safetensors"
        digest = write_tensors(
            initial, MANIFEST, {s.name: np.ones(s.shape, np.float32) for s in MANIFEST.specs}
        )
        self.models[digest] = initial.read_bytes()
        terms = JobTerms(
            file=parse_job_file(JOB.format(extra=extra, training=training)),
            archive_sha256=canonical.sha256(self.archive),
            initial_sha256=digest,
            manifest_sha256=MANIFEST.digest(),
        )
        detail = {
            "name": "tiny",
            "terms_sha256": terms.digest(),
            "archive_sha256": terms.archive_sha256,
            "initial_sha256": digest,
            "manifest_sha256": terms.manifest_sha256,
        }
        submitted = self.log.append("job.submitted", detail, Target(kind="job", id=job), job=job)
        offered = pb.Job(id=job, terms=terms.encode(), status="running", manifest=MANIFEST.encode())
        offered.submitted.CopyFrom(codec.receipt_to_proto(submitted))
        self.jobs.append(offered)
        published = {"version": 0, "parameters_sha256": digest, "bytes": MANIFEST.file_bytes}
        self.published = self.log.append(
            "model.published", published, Target(kind="model", id=f"{job}/0"), job=job
        )
        return terms

    def lease(self, id: str, kind: str = "train", **changes: Any) -> pb.Lease:
        terms = self.jobs[0]
        digest = next(iter(self.models))
        detail = {
            "lease": id,
            "silo": SILO,
            "kind": kind,
            "version": 0,
            "view_sha256": digest,
            "deadline": canonical.utc(time.time() + 60),
            "nonce": "00" * 16,
            "local_steps": 4 if kind == "train" else 0,
        }
        issued = self.log.append(
            "lease.issued", {**detail, **changes}, Target(kind="lease", id=id), job=terms.id
        )
        lease = pb.Lease(
            id=id,
            job=terms.id,
            kind=pb.TRAIN if kind == "train" else pb.EVALUATE,
            view=pb.View(
                version=0, density=1.0, encoding="safetensors", digest=digest, bytes=MANIFEST.file_bytes
            ),
            nonce=detail["nonce"],
            deadline=int(time.time()) + 60,
            split="validation" if kind == "evaluate" else "",
            local_steps=detail["local_steps"],
        )
        lease.issued.CopyFrom(codec.receipt_to_proto(issued))
        self.leases.append(lease)
        return lease

    def done(self, lease: str) -> None:
        self.leases = [open_ for open_ in self.leases if open_.id != lease]
