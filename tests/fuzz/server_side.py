"""What the server parses: every request of its services, from members that may be hostile.

The rooms behind the requests are real, over a real state store: what is well formed is carried out. A signed document
is signed here by the silo's real key, because an enrolled silo can sign whatever it likes.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import cache
from typing import Any, TypeVar

import numpy as np
from google.protobuf.message import Message

from anabranch.errors import Conflict, Refused, Unavailable
from anabranch.terms import parse_terms
from anabranch.v1 import admin_pb2, audit_pb2, enrolment_pb2, federation_pb2, update_pb2
from anabranch.wire import canonical, dsse, statements
from anabranch.wire.identity import Identity, csr
from anabranch.wire.tensors import write_tensors
from server.ca.authority import read_request
from server.enrolment import SigningKey, read_claim
from server.sessions import Sessions
from server.transport.admin import FASTEST, SLOWEST, Admin, between_looks
from server.transport.audit import Audit
from server.transport.enrolment import Enrolment
from server.transport.federation import Federation, _hello
from server.transport.peer import Peer
from server.transport.rooms import Rooms
from server.transport.submission import Submission, check_sizes
from server.transport.updates import Updates
from server.vitals import Vitals
from tests.fuzz import scratch, shapes
from tests.fuzz.target import Target
from tests.fuzz.wire import parsed
from tests.server import harness
from tests.server.edge import candidate, make_membership
from tests.server.harness import ADMIN, MANIFEST, Server
from tests.wire import pki

T = TypeVar("T")
Request = TypeVar("Request", bound=Message)
SIGNED = 40_000  # bytes of a statement that fit an envelope
ANSWERS = (Refused, Conflict, Unavailable)  # what a caller may be told; anything else is a bug of the server


@cache
def loop() -> asyncio.Runner:
    return asyncio.Runner()


def wait(work: Awaitable[T]) -> T:
    async def all_of_it() -> T:
        return await asyncio.wait_for(work, 20)

    return loop().run(all_of_it())


class Scene:
    """A server with a silo that holds a lease to train in one job and a lease to evaluate in another."""

    def __init__(self) -> None:
        self.server = Server(scratch.folder("server"))
        self.sessions = Sessions(self.server.clock)
        core, membership = self.server.core, make_membership(self.server, self.sessions)
        self.membership = membership
        self.rooms = Rooms(
            core.intake,
            core.scheduling,
            core.jobs,
            core.reviving,
            membership,
            core.log,
            self.sessions,
            membership.allow_list,
            Vitals(self.server.directory, self.sessions),
        )
        self.north = self.server.enrol("north")
        self.job, self.terms = self.server.submit()
        self.server.decide(self.north, self.job, self.terms)
        self.lease = self.server.lease(self.north, self.job)
        self.other, terms = self.server.submit("[evaluation]\nevery = 1\n[aggregation]\nbuffer = 1\n")
        self.server.decide(self.north, self.other, terms)
        self.server.send(self.north, self.other, terms, 0.5)
        self.server.core.aggregation.advance(self.other)
        self.evaluation = self.server.lease(self.north, self.other)
        assert (self.lease.kind, self.evaluation.kind) == ("train", "evaluate")
        self.peer = Peer(Identity(harness.FEDERATION, "silo", "north", 1), "0" * 64)
        self.admin = Peer(Identity(harness.FEDERATION, "admin", "owner"), "0" * 64)


@cache
def scene() -> Scene:
    return Scene()


def asked(kind: type[Request], ask: Callable[[Scene, Request], Awaitable[object]]) -> Callable[[bytes], None]:
    def given(data: bytes) -> None:
        request = parsed(kind, data)
        wait(ask(scene(), request))

    return given


def unary(
    name: str,
    kind: type[Request],
    ask: Callable[[Scene, Request], Awaitable[object]],
    *examples: dict[str, Any],
) -> Target:
    def seeds() -> list[bytes]:
        return [kind(**{**example, **_known(kind)}).SerializeToString() for example in examples]

    return Target(name, asked(kind, ask), seeds, shapes.message(kind), ANSWERS)


def _known(kind: type[Message]) -> dict[str, Any]:
    """What only the running scene can tell."""
    fields, found = kind.DESCRIPTOR.fields_by_name, scene()
    known: dict[str, Any] = {}
    if "job" in fields:
        known["job"] = found.job
    if "digest" in fields:
        known["digest"] = found.terms.initial_sha256
    if "jobs" in fields:
        known["jobs"] = [found.job]
    return known


async def drained(stream: AsyncIterator[Any]) -> None:
    async for _ in stream:
        pass


async def watched(found: Scene, request: admin_pb2.WatchRequest) -> None:
    """The first state, and when the next would come."""
    stream = Admin(found.rooms).Watch(request, found.admin)
    await anext(stream)
    await stream.aclose()
    assert FASTEST <= between_looks(request.interval_seconds) <= SLOWEST


async def given_one_by_one(messages: Sequence[T]) -> AsyncIterator[T]:
    for message in messages:
        yield message


# --- what silos sign -------------------------------------------------------------------------------------------------


def signed_update(data: bytes) -> None:
    """An enrolled silo signs any statement at all and sends four bytes after it."""
    found = scene()
    envelope = found.north.sign(data[:SIGNED])
    name = re.search(rb'"subject":\[{"digest":{"sha256":"[^"]*"},"name":"([^"]*)"', data)
    header = update_pb2.SubmitHeader(
        update=name[1].decode("utf-8", "replace") if name else "u-1", envelope=envelope
    )
    body = [update_pb2.SubmitRequest(header=header), update_pb2.SubmitRequest(chunk=b"\x10\0\0\0" * 20)]

    async def send() -> None:
        await Updates(found.rooms).Submit(given_one_by_one(body), found.peer)

    wait(send())


@cache
def update_statements() -> list[bytes]:
    found = scene()
    delta = found.north.delta(scratch.folder("deltas"), 1.0, MANIFEST)
    return [found.north.statement(found.lease, found.terms, delta).encode()]


def header(data: bytes) -> None:
    request = parsed(update_pb2.SubmitHeader, data)
    found = scene()
    wait(
        Updates(found.rooms).Submit(given_one_by_one([update_pb2.SubmitRequest(header=request)]), found.peer)
    )


def headers() -> list[bytes]:
    found = scene()
    envelope = found.north.sign(update_statements()[0])
    return [update_pb2.SubmitHeader(update="u-1", envelope=envelope).SerializeToString()]


def signed_decision(data: bytes) -> None:
    found = scene()
    envelope = dsse.sign(statements.PAYLOAD_TYPE, data[:SIGNED], found.north.approver).encode()
    request = federation_pb2.DecideRequest(job=found.job, envelope=envelope)
    wait(Federation(found.rooms).Decide(request, found.peer))


def decisions() -> list[bytes]:
    found = scene()
    return [
        statements.DecisionStatement(
            federation=harness.FEDERATION, job=found.job, terms_sha256=found.terms.digest(), decision="approve",
            silo="north", time=canonical.utc(found.server.clock()),
        ).encode()
    ]  # fmt: skip


def signed_evaluation(data: bytes) -> None:
    found = scene()
    request = update_pb2.SubmitEvaluationRequest(
        lease=found.evaluation.id, envelope=found.north.sign(data[:SIGNED])
    )
    wait(Updates(found.rooms).SubmitEvaluation(request, found.peer))


def evaluations() -> list[bytes]:
    lease = scene().evaluation
    return [
        statements.EvaluationStatement(
            federation=harness.FEDERATION, job=lease.job, lease=lease.id, nonce=lease.nonce,
            version=lease.view.version, view_sha256=lease.view.digest, split="validation",
            metrics={"accuracy": canonical.hexfloat(0.5)}, num_examples=3,
        ).encode()
    ]  # fmt: skip


# --- a job on its way in ---------------------------------------------------------------------------------------------


def submission(data: bytes) -> None:
    """Any header; where its sizes hold, the bytes follow and the job is taken or refused."""
    found, header = scene(), parsed(admin_pb2.SubmitJobHeader, data)
    check_sizes(header)
    archive, initial = b"archive", scratch.folder("initial") / "initial"
    given = Submission(header, found.rooms.jobs.spool())
    try:
        given.take(archive)
        given.take(initial.read_bytes())
        job, _ = given.hand_over(found.rooms.jobs.submit, ADMIN)
    finally:
        given.discard()
    found.server.decide(found.north, job, parse_terms(header.terms))
    wait(Federation(found.rooms).NextTask(federation_pb2.NextTaskRequest(jobs=[job]), found.peer))
    wait(Federation(found.rooms).ListJobs(federation_pb2.ListJobsRequest(), found.peer))
    wait(Admin(found.rooms).ListJobStatus(admin_pb2.ListJobStatusRequest(), found.admin))
    found.rooms.jobs.change(ADMIN, job, "abort", "")


def submissions() -> list[bytes]:
    initial = scratch.folder("initial") / "initial"
    write_tensors(initial, MANIFEST, {s.name: np.zeros(s.shape, np.float32) for s in MANIFEST.specs})
    header = admin_pb2.SubmitJobHeader(
        terms=scene().terms.encode(),
        archive_bytes=len(b"archive"),
        initial_bytes=MANIFEST.file_bytes,
        manifest=MANIFEST.encode(),
    )
    return [header.SerializeToString()]


def submitted_terms(data: bytes) -> None:
    header = admin_pb2.SubmitJobHeader.FromString(submissions()[0])
    header.terms = data
    submission(header.SerializeToString())


# --- sessions --------------------------------------------------------------------------------------------------------


def hello(data: bytes) -> None:
    wait(_hello(given_one_by_one([parsed(federation_pb2.AgentMessage, data)])))


def heartbeat(data: bytes) -> None:
    found, message = scene(), parsed(federation_pb2.AgentMessage, data)

    async def hear() -> None:
        mailbox = found.sessions.open("north", "0", "0.1.0")
        try:
            await Federation(found.rooms)._hear(given_one_by_one([message]), mailbox)
            await watched(found, admin_pb2.WatchRequest(job=found.job))
        finally:
            found.sessions.close(mailbox)

    wait(hear())


# --- enrolment -------------------------------------------------------------------------------------------------------

NONCE = b"n" * 32


def claim(data: bytes) -> None:
    request = parsed(enrolment_pb2.EnrolRequest, data)
    keys = [SigningKey(key.purpose, key.public, key.proof) for key in request.keys]
    found = read_claim(request.token_id, request.token, request.csr, keys, [NONCE])
    assert found.keys == tuple(keys)


@cache
def claims() -> list[bytes]:
    one = candidate()
    keys = [
        enrolment_pb2.Key(purpose=k.purpose, public=k.public, proof=k.proof) for k in one.keys("t1", NONCE)
    ]
    return [
        enrolment_pb2.EnrolRequest(token_id="t1", token=bytes(32), csr=one.csr, keys=keys).SerializeToString()
    ]


SERVER = (
    unary("NextTask", federation_pb2.NextTaskRequest, lambda s, r: Federation(s.rooms).NextTask(r, s.peer), {}),
    unary("Decide", federation_pb2.DecideRequest, lambda s, r: Federation(s.rooms).Decide(r, s.peer), {"envelope": b"{}"}),
    unary("ReleaseLease", federation_pb2.ReleaseLeaseRequest, lambda s, r: Federation(s.rooms).ReleaseLease(r, s.peer), {"lease": "l-1", "reason": "task_failed", "exception": "KeyError", "code_line": "task.py:7"}),
    unary("Renew", federation_pb2.RenewRequest, lambda s, r: Federation(s.rooms).Renew(r, s.peer), {"csr": candidate().csr}),
    unary("FetchModel", federation_pb2.FetchModelRequest, lambda s, r: drained(Federation(s.rooms).FetchModel(r, s.peer)), {"offset": 3}),
    unary("FetchArchive", federation_pb2.FetchArchiveRequest, lambda s, r: drained(Federation(s.rooms).FetchArchive(r, s.peer)), {}),
    unary("UploadStatus", update_pb2.UploadStatusRequest, lambda s, r: Updates(s.rooms).UploadStatus(r, s.peer), {"update": "u-1"}),
    unary("SubmitEvaluation", update_pb2.SubmitEvaluationRequest, lambda s, r: Updates(s.rooms).SubmitEvaluation(r, s.peer), {"lease": "l-1", "envelope": b"{}"}),
    unary("GetConsistency", audit_pb2.GetConsistencyRequest, lambda s, r: Audit(s.rooms).GetConsistency(r, s.peer), {"old_size": 1, "new_size": 2}),
    unary("ChangeJob", admin_pb2.ChangeJobRequest, lambda s, r: Admin(s.rooms).ChangeJob(r, s.admin), {"action": "resume", "reason": "operator asked"}),
    unary("ExportModel", admin_pb2.ExportModelRequest, lambda s, r: drained(Admin(s.rooms).ExportModel(r, s.admin)), {"version": "head"}, {"version": "0"}),
    unary("Watch", admin_pb2.WatchRequest, watched, {"interval_seconds": 1.0}),
    unary("InviteSilo", admin_pb2.InviteSiloRequest, lambda s, r: Admin(s.rooms).InviteSilo(r, s.admin), {"silo": "south", "ttl_seconds": 60}),
    unary("RevokeSilo", admin_pb2.RevokeSiloRequest, lambda s, r: Admin(s.rooms).RevokeSilo(r, s.admin), {"silo": "south", "reason": "left"}),
    unary("Begin", enrolment_pb2.BeginRequest, lambda s, r: Enrolment(s.rooms).Begin(r, None), {"token_id": "t1"}),
    unary("Enrol", enrolment_pb2.EnrolRequest, lambda s, r: Enrolment(s.rooms).Enrol(r, None), {"token_id": "t1", "token": bytes(32), "csr": b"x"}),
    Target("Submit", header, headers, shapes.message(update_pb2.SubmitHeader), ANSWERS),
    Target("update an enrolled silo signed", signed_update, update_statements, shapes.json_document, ANSWERS),
    Target("decision an enrolled silo signed", signed_decision, decisions, shapes.json_document, ANSWERS),
    Target("evaluation an enrolled silo signed", signed_evaluation, evaluations, shapes.json_document, ANSWERS),
    Target("SubmitJob", submission, submissions, shapes.message(admin_pb2.SubmitJobHeader), ANSWERS),
    Target("terms on their way in", submitted_terms, lambda: [scene().terms.encode()], shapes.json_document, ANSWERS),
    Target("hello", hello, lambda: [federation_pb2.AgentMessage(hello=federation_pb2.Hello(protocol_min=1, protocol_max=1, release="0.1.0")).SerializeToString()], shapes.message(federation_pb2.AgentMessage)),
    Target("heartbeat", heartbeat, lambda: [federation_pb2.AgentMessage(heartbeat=federation_pb2.Heartbeat(sequence=1, progress=[federation_pb2.LeaseProgress(lease=scene().lease.id, step=1, steps=2)])).SerializeToString()], shapes.message(federation_pb2.AgentMessage)),
    Target("certificate request", lambda data: read_request(data) and None, lambda: [csr(pki.p256())]),
    Target("enrolment", claim, claims, shapes.message(enrolment_pb2.EnrolRequest)),
)  # fmt: skip
