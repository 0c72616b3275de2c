"""A real server process to be hostile to: members who dial it by hand, its memory, its own log."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np

import server  # noqa: F401 - before grpc is used: it switches TLS 1.2 off
from anabranch.errors import AnabranchError
from anabranch.terms import JobTerms, parse_job_file
from anabranch.tlog.note import NoteVerifier
from anabranch.tlog.receipt import verify_receipt
from anabranch.v1 import admin_pb2, federation_pb2
from anabranch.wire import canonical, codec, dsse, statements, status, tls
from anabranch.wire.bundle import parse_bundle
from anabranch.wire.identity import private_pem
from anabranch.wire.tensors import Manifest, TensorSpec, write_tensors
from silo_agent.client import Enroller
from silo_agent.identity import SiloIdentity
from tests.e2e.federation import Federation
from tests.server.edge import Member, candidate

MANIFEST = Manifest((TensorSpec("layer.weight", (700, 1000), "trainable"),))  # 2.8 MB: three chunks
CALL_SECONDS = 60.0
FEW = 256  # files the server process may open until it asks for more, as some systems set it
MIB = 1 << 20


@dataclass
class Target:
    """`mallory` is an enrolled silo in a job; `honest` is another; nobody trains here."""

    federation: Federation
    silos: dict[str, SiloIdentity] = field(default_factory=dict)
    members: dict[str, Member] = field(default_factory=dict)
    job: str = ""
    terms: JobTerms | None = None

    @property
    def pid(self) -> int:
        return self.federation.processes["server"].pid

    @property
    def ca(self) -> bytes:
        return (self.federation.server_dir / "admin/admin/ca.pem").read_bytes()

    def address(self, enrolment: bool = False) -> str:
        return f"localhost:{self.federation.ports[1 if enrolment else 0]}"

    def create(self) -> "Target":
        self.federation.create()
        return self.join()

    def join(self) -> "Target":
        """Two silos and a job, on a server that runs."""
        place = self.federation.server_dir / "admin" / "admin"
        self.admin = self.member((place / "key.pem").read_bytes(), (place / "cert.pem").read_bytes())
        for name in ("mallory", "honest"):
            self.silos[name] = who = self.enrol(name)
            self.members[name] = self.member(who.key, who.chain)
        self.job, self.terms = self.submit(b"archive")
        for name in self.silos:
            self.decide(name, self.job, self.terms)
        return self

    def member(self, key: bytes, chain: bytes) -> Member:
        return Member(key, chain, tls.channel(self.address(), self.ca, key, chain))

    def enrol(self, name: str) -> SiloIdentity:
        """What `anabranch-silo enrol` does, without a process and without a home."""
        invited = answer(
            lambda: self.admin.admin.InviteSilo(admin_pb2.InviteSiloRequest(silo=name), timeout=CALL_SECONDS)
        )
        bundle, who = parse_bundle(invited.bundle), candidate()
        enroller = Enroller(self.address(enrolment=True), self.ca, None)
        nonce = enroller.begin(bundle.token_id)
        keys = [(key.purpose, key.public, key.proof) for key in who.keys(bundle.token_id, nonce)]
        chain, _ = enroller.enrol(bundle.token_id, bytes.fromhex(bundle.token), who.csr, keys)
        enroller.close()
        return SiloIdentity(
            federation=bundle,
            silo=name,
            uri=f"spiffe://{bundle.federation}/silo/{name}/agent/0",
            key=private_pem(who.tls_key),
            chain=chain,
            ca=self.ca,
            update_key=who.update,
            approver_key=who.approver,
        )

    def submit(self, archive: bytes, text: str = "[aggregation]\nbuffer = 100\n") -> tuple[str, JobTerms]:
        initial = self.federation.root / "initial"
        digest = write_tensors(initial, MANIFEST, tensors(0.0))
        file = parse_job_file('[job]\nname = "digits"\ntask = "task.py:Digits"\ndata = "records"\n' + text)
        terms = JobTerms(
            file=file,
            archive_sha256=canonical.sha256(archive),
            initial_sha256=digest,
            manifest_sha256=MANIFEST.digest(),
        )
        parts = submission(terms, MANIFEST.encode(), archive, initial.read_bytes())
        return self.send(parts).job, terms

    def send(self, parts: Iterator[admin_pb2.SubmitJobRequest]) -> admin_pb2.SubmitJobReply:
        return answer(lambda: self.admin.admin.SubmitJob(parts, timeout=CALL_SECONDS))

    def decide(self, name: str, job: str, terms: JobTerms) -> None:
        who = self.silos[name]
        statement = statements.DecisionStatement(
            federation=who.federation.federation,
            job=job,
            terms_sha256=terms.digest(),
            decision="approve",
            silo=name,
            time=canonical.utc(time.time()),
        )
        envelope = dsse.sign(statements.PAYLOAD_TYPE, statement.encode(), who.approver_key).encode()
        request = federation_pb2.DecideRequest(job=job, envelope=envelope)
        answer(lambda: self.members[name].federation.Decide(request, timeout=CALL_SECONDS))

    def lease(self, name: str) -> federation_pb2.Lease:
        request = federation_pb2.NextTaskRequest(jobs=[self.job])
        return answer(
            lambda: self.members[name].federation.NextTask(request, timeout=CALL_SECONDS, wait_for_ready=True)
        ).lease

    def envelope(self, name: str, lease: federation_pb2.Lease, update: str, delta: bytes) -> bytes:
        """What the silo would sign about `delta`, true in everything but perhaps the bytes themselves."""
        who = self.silos[name]
        assert self.terms is not None
        verifier = NoteVerifier.from_vkey(who.federation.log_vkey)
        receipt = codec.receipt_from_proto(lease.issued)
        _, seen = verify_receipt(receipt, verifier, who.federation.log_origin)
        statement = statements.UpdateStatement(
            update=update,
            federation=who.federation.federation,
            job=self.job,
            lease=lease.id,
            nonce=lease.nonce,
            sequence=1,
            base_version=lease.view.version,
            base_sha256=lease.view.digest,
            delta_sha256=canonical.sha256(delta),
            bytes=MANIFEST.file_bytes,
            terms_sha256=self.terms.digest(),
            manifest_sha256=MANIFEST.digest(),
            num_examples=None,
            steps=lease.local_steps,
            release="0.1.0",
            checkpoint=statements.SeenCheckpoint(size=seen.size, root=seen.root.hex()),
        )
        return dsse.sign(statements.PAYLOAD_TYPE, statement.encode(), who.update_key).encode()

    def honest_call(self) -> float:
        """Seconds an honest member waits for an answer that needs the database."""
        started = time.perf_counter()
        request = federation_pb2.ListJobsRequest()
        answer(lambda: self.members["honest"].federation.ListJobs(request, timeout=CALL_SECONDS))
        return time.perf_counter() - started

    def said(self, **fields: str) -> list[dict[str, Any]]:
        """Lines of the server's own log that say all of `fields`."""
        lines = (self.federation.root / "server.log").read_text(errors="replace").splitlines()
        events = [json.loads(line) for line in lines if line.startswith("{")]
        return [event for event in events if fields.items() <= event.items()]

    def close(self) -> None:
        for member in (*self.members.values(), self.admin):
            member.channel.close()
        self.federation.close()


def submission(
    terms: JobTerms | bytes, manifest: bytes, archive: bytes, initial: bytes
) -> Iterator[admin_pb2.SubmitJobRequest]:
    header = admin_pb2.SubmitJobHeader(
        terms=terms if isinstance(terms, bytes) else terms.encode(),
        manifest=manifest,
        archive_bytes=len(archive),
        initial_bytes=len(initial),
    )
    yield admin_pb2.SubmitJobRequest(header=header)
    for chunk in codec.chunks(archive + initial):
        yield admin_pb2.SubmitJobRequest(chunk=chunk)


def answer(call: Callable[[], Any]) -> Any:
    """What the server meant, as our own clients would raise it."""
    try:
        return call()
    except grpc.RpcError as error:
        raise status.from_rpc_error(error) from error


def met(call: Callable[[], Any]) -> str:
    """What a call comes to: "ok", a reason code, or the kind of error."""
    try:
        answer(call)
    except AnabranchError as error:
        return str(getattr(error, "code", type(error).__name__.lower()))
    return "ok"


@dataclass
class Memory:
    """Bytes the server took beyond what it held before."""

    extra: int = 0


@contextmanager
def extra_memory(pid: int) -> Iterator[Memory]:
    """The kernel's own high-water mark, put back to what is resident now: no peak is missed between two samples."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    before = resident(pid, "VmRSS")
    memory = Memory()
    yield memory
    memory.extra = max(0, resident(pid, "VmHWM") - before)


def resident(pid: int, what: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(what + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {what} of process {pid}")


def until(holds: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := holds():
            return value
        time.sleep(0.05)
    raise AssertionError(f"never: {what}")


def tensors(value: float) -> dict[str, Any]:
    return {spec.name: np.full(spec.shape, value, np.float32) for spec in MANIFEST.specs}
