"""Every call the reviver makes to its server: the only module here that knows gRPC messages. For one thread."""

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import grpc

from anabranch.errors import Reason, Refused, plain
from anabranch.terms import DIGEST, NAME
from anabranch.tlog.fields import ID
from anabranch.tlog.receipt import Receipt
from anabranch.v1 import audit_pb2, audit_pb2_grpc, federation_pb2, revival_pb2_grpc
from anabranch.v1 import revival_pb2 as pb
from anabranch.wire import codec, limits, tls
from anabranch.wire.values import Bytes
from silo_agent.client import BULK_SECONDS, UNARY_SECONDS, answering
from silo_agent.messages import WORDS, Certified, Wait


@dataclass(frozen=True)
class Teacher:
    """A silo's newest model: its delta added to the version it was trained from. Files by their SHA-256."""

    silo: str
    update: str
    base: str
    delta: str
    version: int  # whose view `base` is


@dataclass(frozen=True)
class Task:
    id: str
    job: str
    terms: str  # SHA-256
    version: int  # the head
    head: str  # SHA-256
    seconds_left: float
    task_seconds: float  # of the fastest silo's tasks, in the median; 0: not known
    teachers: tuple[Teacher, ...]


@dataclass(frozen=True)
class Claimed:
    turn: Task | Wait
    permitted: Mapping[str, frozenset[str]]  # job → silos whose models may be held; nothing of other jobs


@dataclass(frozen=True)
class Ended:
    """`reason`: "" for a result that was taken, else why it was not, in a word."""

    receipt: Receipt
    reason: str


class Client:
    def __init__(self, address: str, ca: bytes, key: bytes, certificate: bytes, proxy: str | None) -> None:
        self._address, self._ca, self._proxy = address, ca, proxy
        self._channel = self._open(key, certificate)

    def _open(self, key: bytes, certificate: bytes) -> grpc.Channel:
        channel = tls.channel(self._address, self._ca, key, certificate, self._proxy)
        self._revival: Any = revival_pb2_grpc.RevivalStub(channel)  # type: ignore[no-untyped-call]
        self._audit: Any = audit_pb2_grpc.AuditStub(channel)  # type: ignore[no-untyped-call]
        self._fetch = channel.unary_stream(
            "/anabranch.v1.Revival/FetchFile",
            request_serializer=codec.serialise,
            response_deserializer=codec.chunk_or(pb.FetchFileReply.FromString),
        )
        self._submit = channel.stream_unary(
            "/anabranch.v1.Revival/Submit",
            request_serializer=codec.serialise,
            response_deserializer=pb.TaskEnded.FromString,
        )
        return channel

    def switch(self, key: bytes, certificate: bytes) -> None:
        """Go on with a renewed certificate."""
        self._channel.close()
        self._channel = self._open(key, certificate)

    def close(self) -> None:
        self._channel.close()

    def claim(self, holding: Collection[str], resting: Collection[str]) -> Claimed:
        """A task of a job it does not rest from, or how long to wait; and what it may go on holding."""
        with answering():
            request = pb.ClaimRequest(holding=holding, resting=resting)
            return claimed(self._revival.Claim(request, timeout=UNARY_SECONDS))

    def file(self, task: str, digest: str, offset: int) -> Iterator[Bytes]:
        """The bytes from `offset` on. Not checked: whoever takes them does."""
        with answering():
            request = pb.FetchFileRequest(task=task, sha256=digest, offset=offset)
            for message in self._fetch(request, timeout=BULK_SECONDS):
                yield message if isinstance(message, memoryview) else message.chunk

    def submit(self, task: str, digest: str, report: bytes, chunks: Iterable[bytes]) -> Ended:
        """Send a result; `chunks` are at most limits.CHUNK long."""
        header = pb.SubmitResultHeader(task=task, sha256=digest, report=report)
        requests = chain([pb.SubmitResultRequest(header=header)], map(codec.chunk_message, chunks))
        with answering():
            return _ended(self._submit(requests, timeout=BULK_SECONDS))

    def skip(self, task: str, reason: str, why: str) -> Ended:
        with answering():
            request = pb.SkipRequest(task=task, reason=reason, why=why)
            return _ended(self._revival.Skip(request, timeout=UNARY_SECONDS))

    def renew(self, csr: bytes, seen: int) -> Certified:
        with answering():
            reply = self._revival.Renew(
                federation_pb2.RenewRequest(csr=csr, seen=seen), timeout=UNARY_SECONDS
            )
            return Certified(reply.certificate_chain, codec.receipt_from_proto(reply.receipt))

    def consistency(self, old: int, new: int) -> Sequence[bytes]:
        with answering():
            request = audit_pb2.GetConsistencyRequest(old_size=old, new_size=new)
            reply = self._audit.GetConsistency(request, timeout=UNARY_SECONDS)
        return tuple(codec.capped(reply.proof, 2 * limits.PROOF, "hashes of a proof"))


def claimed(reply: pb.ClaimReply) -> Claimed:
    """What the server says, bounded: names become paths. Raises Refused(MALFORMED, SIZE_LIMIT)."""
    permitted = {
        _fits(ID, one.job): frozenset(codec.capped(one.silos, limits.SILOS, "silos"))
        for one in codec.capped(reply.permitted, limits.JOBS, "jobs")
    }
    if reply.WhichOneof("turn") == "task":
        return Claimed(_task(reply.task), permitted)
    if not 0 <= reply.wait.seconds < math.inf:
        raise Refused(Reason.MALFORMED, f"the server asks to wait {reply.wait.seconds} seconds for a task")
    return Claimed(Wait(reply.wait.seconds, plain(reply.wait.reason, WORDS)), permitted)


def _task(task: pb.RevivalTask) -> Task:
    if not (0 <= task.seconds_left < math.inf and 0 <= task.task_seconds < math.inf):
        raise Refused(Reason.MALFORMED, f"task {plain(task.id, 80)}: no length of time")
    return Task(
        id=_fits(ID, task.id),
        job=_fits(ID, task.job),
        terms=_fits(DIGEST, task.terms_sha256),
        version=task.version,
        head=_fits(DIGEST, task.head_sha256),
        seconds_left=task.seconds_left,
        task_seconds=task.task_seconds,
        teachers=tuple(
            Teacher(
                _fits(NAME, one.silo),
                _fits(ID, one.update),
                _fits(DIGEST, one.base_sha256),
                _fits(DIGEST, one.delta_sha256),
                one.base,
            )
            for one in codec.capped(task.teachers, limits.SILOS, "teachers")
        ),
    )


def _fits(pattern: str, text: str) -> str:
    if not re.fullmatch(pattern, text):
        raise Refused(Reason.MALFORMED, f"the server says {plain(text, 80)!r} where {pattern} is expected")
    return text


def _ended(reply: pb.TaskEnded) -> Ended:
    return Ended(codec.receipt_from_proto(reply.receipt), plain(reply.reason, WORDS))
