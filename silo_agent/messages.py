"""What the server says to an agent, and the agent to the server, as plain values; bounds are checked on the way in."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from anabranch.errors import Reason, Refused, plain
from anabranch.link import BITS, Packing, Values
from anabranch.terms import SPLIT
from anabranch.tlog.fields import ID
from anabranch.tlog.receipt import Receipt
from anabranch.v1 import federation_pb2 as pb
from anabranch.v1 import update_pb2
from anabranch.wire import codec, limits

WORDS = 200  # characters of a reason the server gives


@dataclass(frozen=True)
class OfferedJob:
    id: str
    terms: bytes  # canonical JSON, not yet believed
    status: str  # waiting | running | paused | completed | aborted
    decision: str  # this silo's, as the server knows it: "" | approved | denied | withdrawn
    head: int
    manifest: bytes  # canonical JSON, not yet believed; empty from a server that does not tell
    submitted: Receipt
    revival: bool = False  # this silo's word, as the server knows it: its models may teach

    @property
    def ended(self) -> bool:
        return self.status in ("completed", "aborted")


@dataclass(frozen=True)
class View:
    """A model version as it travels: a file of `bytes` bytes whose SHA-256 is `digest`, packed if `packing` says so."""

    version: int
    digest: str
    bytes: int
    packing: Packing | None = None


@dataclass(frozen=True)
class Lease:
    id: str
    job: str
    kind: codec.TaskKind
    view: View
    nonce: str
    deadline: int  # unix seconds; the update stays admissible after it
    split: str
    local_steps: int
    issued: Receipt


@dataclass(frozen=True)
class Wait:
    seconds: float
    reason: str


@dataclass(frozen=True)
class Decided:
    """The server's decision about an update or an evaluation; `reason` is "" when it was admitted."""

    receipt: Receipt
    reason: str


@dataclass(frozen=True)
class Certified:
    chain: bytes  # PEM: leaf, then issuing CA
    receipt: Receipt


@dataclass(frozen=True)
class Hello:
    protocol: int  # the one this agent speaks
    release: str


@dataclass(frozen=True)
class LeaseProgress:
    step: int
    steps: int
    samples_per_second: float = 0.0  # of training; 0.0: not known
    tokens_per_second: float = 0.0


@dataclass(frozen=True)
class Heartbeat:
    sequence: int
    progress: Mapping[str, LeaseProgress]


@dataclass(frozen=True)
class Welcome:
    protocol: int
    release: str
    heartbeat_seconds: float
    server_time: int  # unix seconds


@dataclass(frozen=True)
class JobChanged:
    job: str
    status: str


@dataclass(frozen=True)
class AbortLease:
    lease: str
    reason: str


@dataclass(frozen=True)
class Revoked:
    reason: str


@dataclass(frozen=True)
class Drain:
    """The server is leaving; reconnect."""


ServerMessage = Welcome | JobChanged | AbortLease | Revoked | Drain


def to_proto(message: Hello | Heartbeat) -> pb.AgentMessage:
    if isinstance(message, Hello):
        hello = pb.Hello(
            protocol_min=message.protocol, protocol_max=message.protocol, release=message.release
        )
        return pb.AgentMessage(hello=hello)
    leases = list(message.progress.items())[: limits.PROGRESS]
    progress = [pb.LeaseProgress(lease=lease, **vars(told)) for lease, told in leases]
    return pb.AgentMessage(heartbeat=pb.Heartbeat(sequence=message.sequence, progress=progress))


def from_proto(message: pb.ServerMessage) -> ServerMessage | None:
    """None for a message of a later release that this one has no ears for."""
    match message.WhichOneof("body"):
        case "welcome":
            w = message.welcome
            return Welcome(w.protocol, _said(w.release), float(w.heartbeat_seconds), w.server_time)
        case "job_changed":
            return JobChanged(message.job_changed.job, _said(message.job_changed.status))
        case "abort":
            return AbortLease(message.abort.lease, _said(message.abort.reason))
        case "revoked":
            return Revoked(_said(message.revoked.reason))
        case "drain":
            return Drain()
        case _:
            return None


def offered_job(job: pb.Job) -> OfferedJob:
    return OfferedJob(
        id=_id(job.id),
        terms=job.terms,
        status=job.status,
        decision=job.decision,
        head=job.head,
        manifest=job.manifest,
        submitted=codec.receipt_from_proto(job.submitted),
        revival=job.revival,
    )


def leased(lease: pb.Lease) -> Lease:
    """What the log proves of it is compared later; the split of an evaluation is not in the log's entry."""
    kind = codec.task_kind_from_proto(lease.kind)
    if kind == "evaluate" and not re.fullmatch(SPLIT, lease.split):
        raise Refused(Reason.MALFORMED, f"{lease.split[:80]!r} names no part of the records to evaluate on")
    return Lease(
        id=_id(lease.id),
        job=_id(lease.job),
        kind=kind,
        view=viewed(lease.view),
        nonce=lease.nonce,
        deadline=lease.deadline,
        split=lease.split,
        local_steps=lease.local_steps,
        issued=codec.receipt_from_proto(lease.issued),
    )


def task(reply: pb.NextTaskReply) -> Lease | Wait:
    if reply.WhichOneof("task") == "lease":
        return leased(reply.lease)
    if not 0 <= reply.wait.seconds < math.inf:
        raise Refused(Reason.MALFORMED, f"the server asks to wait {reply.wait.seconds} seconds for a task")
    return Wait(reply.wait.seconds, _said(reply.wait.reason))


def viewed(view: pb.View) -> View:
    if view.encoding not in ("safetensors", *BITS) or not 0 < view.density <= 1 or view.mask_digest:
        raise Refused(
            Reason.MALFORMED,
            f"version {view.version} comes as {view.encoding[:40]!r} with density {view.density}, which this release "
            "cannot read: upgrade this agent",
        )
    if not re.fullmatch(r"[0-9a-f]{64}", view.digest) or not 0 < view.bytes <= limits.TENSOR_FILE:
        raise Refused(Reason.MALFORMED, f"version {view.version}: no digest or size")
    packing = None if view.encoding == "safetensors" else Packing(view.density, cast(Values, view.encoding))
    return View(view.version, view.digest, view.bytes, packing)


def decided(reply: update_pb2.SubmitReply) -> Decided:
    return Decided(codec.receipt_from_proto(reply.receipt), reply.reason)


def _said(text: str) -> str:
    """Words for a log and a person's terminal."""
    return plain(text, WORDS)


def _id(text: str) -> str:
    """Ids become directory names here: nothing but the log's own alphabet for ids gets in."""
    if not re.fullmatch(ID, text) or "\n" in text:
        raise Refused(Reason.MALFORMED, f"{text[:80]!r} is not an id")
    return text
