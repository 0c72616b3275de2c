"""Revivers over the wire: what they are given, what they may send, and who may call what."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from anabranch.errors import Reason, Refused
from anabranch.terms import JobTerms
from anabranch.tlog.note import NoteVerifier
from anabranch.tlog.receipt import verify_receipt
from anabranch.tlog.revivals import RevivalPerformed, RevivalSkipped
from anabranch.v1 import federation_pb2
from anabranch.v1 import revival_pb2 as pb
from anabranch.wire import codec, identity, limits
from anabranch.wire.tensors import Manifest, TensorSpec, write_tensors
from server.transport.interceptor import CONTROL
from tests.server.at_work import answer, refusal
from tests.server.edge import Edge, Member, candidate
from tests.server.harness import FEDERATION, ORIGIN, FakeSilo
from tests.server.reviver import REPORT, REVIVED, allow, logged
from tests.server.test_tls import (
    ADMIN_CALLS,
    ADMIN_STREAMS,
    REVIVER_CALLS,
    REVIVER_STREAMS,
    SILO_CALLS,
    SILO_STREAMS,
    _call,
)

LARGE = Manifest((TensorSpec("layer.weight", (700, 1000), "trainable"),))  # 2.8 MB: three chunks


@dataclass(frozen=True)
class AtWork:
    """A reviver with a task over two silos' models."""

    edge: Edge
    member: Member
    task: pb.RevivalTask
    silos: list[FakeSilo]
    terms: JobTerms

    def fetch(self, digest: str, offset: int = 0, task: str = "") -> bytes:
        request = pb.FetchFileRequest(task=task or self.task.id, sha256=digest, offset=offset)
        return b"".join(one.chunk for one in self.member.revival.FetchFile(request, timeout=20))

    def result(self, value: float = 1.0) -> bytes:
        path = self.edge.server.directory / "result.safetensors"
        write_tensors(path, LARGE, {s.name: np.full(s.shape, value, np.float32) for s in LARGE.specs})
        return path.read_bytes()

    def submit(self, data: bytes, piece: int = limits.CHUNK, **header: Any) -> pb.TaskEnded:
        said = {"sha256": hashlib.sha256(data).hexdigest(), "report": REPORT.model_dump_json().encode()}
        first = pb.SubmitResultHeader(**{"task": self.task.id, **said, **header})
        rest = (pb.SubmitResultRequest(chunk=data[at : at + piece]) for at in range(0, len(data), piece))
        messages = [pb.SubmitResultRequest(header=first), *rest]
        return self.member.revival.Submit(iter(messages), timeout=20)


def claim(member: Member, **fields: Any) -> pb.ClaimReply:
    reply: pb.ClaimReply = member.revival.Claim(pb.ClaimRequest(**fields), timeout=20)
    return reply


@pytest.fixture
def work(edge: Edge) -> AtWork:
    server = edge.server
    job, terms = server.submit(REVIVED, LARGE)
    silos = [server.enrol(name) for name in "ab"]
    for silo in silos:
        allow(server, silo, job, terms, True)
    for silo, value in zip(silos, (1.0, 2.0), strict=True):
        assert server.send(silo, job, terms, value, LARGE).reason == ""
        assert server.core.aggregation.advance(job)
    member = edge.reviver()
    return AtWork(edge, member, claim(member).task, silos, terms)


def test_a_task_is_claimed_its_files_fetched_and_its_result_logged(work: AtWork) -> None:
    task, terms = work.task, work.terms
    assert (task.version, [one.silo for one in task.teachers]) == (2, ["a", "b"])
    assert 0 < task.seconds_left <= 600
    named = {task.head_sha256, task.terms_sha256, terms.manifest_sha256, terms.archive_sha256}
    named |= {digest for one in task.teachers for digest in (one.base_sha256, one.delta_sha256)}
    for digest in named:
        assert hashlib.sha256(work.fetch(digest)).hexdigest() == digest
    assert work.fetch(task.head_sha256, 1_000_000) == work.fetch(task.head_sha256)[1_000_000:]
    ended = work.submit(work.result())
    assert ended.reason == ""
    key = NoteVerifier.from_vkey(work.edge.server.signer.vkey)
    entry, _ = verify_receipt(codec.receipt_from_proto(ended.receipt), key, ORIGIN)
    assert isinstance(entry.detail, RevivalPerformed)
    assert (entry.actor.id, entry.detail.revival) == (f"spiffe://{FEDERATION}/reviver/r", task.id)
    assert entry.detail.delta_sha256 == hashlib.sha256(work.result()).hexdigest()
    again = work.submit(work.result())  # its answer was lost
    assert codec.receipt_from_proto(again.receipt).index == codec.receipt_from_proto(ended.receipt).index
    assert claim(work.member).wait.reason == "its result waits for the next version"


def test_what_may_be_held_is_told_with_every_claim(work: AtWork) -> None:
    server, job = work.edge.server, work.task.job
    told = claim(work.member, holding=[job, "unknown"])
    assert told.task.id == work.task.id
    assert {one.job: list(one.silos) for one in told.permitted} == {job: ["a", "b"]}
    allow(server, work.silos[0], job, work.terms, False)
    told = claim(work.member, holding=[job], resting=[job])
    assert {one.job: list(one.silos) for one in told.permitted} == {job: ["b"]}
    assert told.WhichOneof("turn") == "wait"
    assert work.submit(work.result()).reason == "withdrawn"
    server.core.jobs.change(server.core.observer, job, "abort", "")
    assert not claim(work.member, holding=[job]).permitted


def test_nothing_is_fetched_that_the_task_does_not_name(work: AtWork) -> None:
    assert refusal(lambda: work.fetch("0" * 64)) is Reason.NOT_FOUND
    assert refusal(lambda: work.fetch(work.terms.initial_sha256[:-1])) is Reason.NOT_FOUND
    assert refusal(lambda: work.fetch("../../keys/log.key")) is Reason.NOT_FOUND
    assert refusal(lambda: work.fetch(work.task.head_sha256, task="unknown")) is Reason.NOT_FOUND
    assert refusal(lambda: work.fetch(work.task.head_sha256, offset=1 << 40)) is Reason.SIZE_LIMIT
    thief = AtWork(work.edge, work.edge.reviver("thief"), work.task, work.silos, work.terms)
    assert refusal(lambda: thief.fetch(work.task.head_sha256)) is Reason.NOT_FOUND
    assert refusal(lambda: thief.submit(work.result())) is Reason.NOT_FOUND
    work.member.revival.Skip(pb.SkipRequest(task=work.task.id, reason="warmup"), timeout=10)
    assert refusal(lambda: work.fetch(work.task.head_sha256)) is Reason.BAD_LEASE


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("longer", Reason.SIZE_LIMIT),
        ("cut short", Reason.SIZE_LIMIT),
        ("a large chunk", Reason.SIZE_LIMIT),
        ("another digest", Reason.DIGEST_MISMATCH),
        ("no digest", Reason.MALFORMED),
        ("not finite", Reason.NONFINITE),
        ("another header", Reason.NAME_MISMATCH),
        ("no report", Reason.MALFORMED),
        ("an endless report", Reason.SIZE_LIMIT),
        ("a second header", Reason.MALFORMED),
    ],
)
def test_a_hostile_result_is_refused_leaves_nothing_and_the_task_goes_on(
    work: AtWork, what: str, reason: Reason
) -> None:
    good = work.result()
    header = pb.SubmitResultHeader(task=work.task.id)
    calls: dict[str, Any] = {
        "longer": lambda: work.submit(good + bytes(4)),
        "cut short": lambda: work.submit(good[:-4]),
        "a large chunk": lambda: work.submit(good, limits.CHUNK + 1),
        "another digest": lambda: work.submit(good, sha256="0" * 64),
        "no digest": lambda: work.submit(good, sha256="../" + "0" * 61),
        "not finite": lambda: work.submit(work.result(float("nan"))),
        "another header": lambda: work.submit(good.replace(b"layer.weight", b"layer.hidden")),
        "no report": lambda: work.submit(good, report=b"{}"),
        "an endless report": lambda: work.submit(good, report=b" " * (limits.REPORT + 1)),
        "a second header": lambda: work.member.revival.Submit(
            iter([pb.SubmitResultRequest(chunk=b"x"), pb.SubmitResultRequest(header=header)]), timeout=10
        ),
    }
    assert refusal(calls[what]) is reason
    assert not work.edge.server.core.blobs.spooled()
    assert not logged(work.edge.server, RevivalPerformed)
    assert claim(work.member).task.id == work.task.id
    assert work.submit(good).reason == ""


def test_a_stream_that_breaks_leaves_nothing(work: AtWork) -> None:
    first = pb.SubmitResultHeader(
        task=work.task.id, sha256="0" * 64, report=REPORT.model_dump_json().encode()
    )

    def breaking() -> Iterator[pb.SubmitResultRequest]:
        yield pb.SubmitResultRequest(header=first)
        yield pb.SubmitResultRequest(chunk=work.result()[: limits.CHUNK])
        raise ConnectionError("gone")

    with pytest.raises(Exception):  # noqa: B017 - grpc's own, of whichever kind
        work.member.revival.Submit(breaking(), timeout=10)
    assert work.submit(work.result()).reason == ""
    assert not work.edge.server.core.blobs.spooled()


def test_what_a_skip_says_fits_the_log(work: AtWork) -> None:
    skip = work.member.revival.Skip
    for fields in (
        {"reason": "deadline"},
        {"reason": "failed", "why": "Error: patient 4711"},
        {"reason": "failed", "why": "x" * 65},
        {"reason": ""},
    ):
        request = pb.SkipRequest(task=work.task.id, **fields)
        assert refusal(lambda r=request: skip(r, timeout=5)) is Reason.MALFORMED
    skip(pb.SkipRequest(task=work.task.id, reason="not_worth", why="slow"), timeout=5)
    [entry] = logged(work.edge.server, RevivalSkipped)
    assert (entry.reason, entry.why) == ("not_worth", "slow")


def test_names_are_counted_before_they_are_read(work: AtWork) -> None:
    for field in ("holding", "resting"):
        many = {field: ["j"] * (limits.JOBS + 1)}
        assert refusal(lambda m=many: claim(work.member, **m)) is Reason.SIZE_LIMIT
    large = pb.SkipRequest(task="x" * CONTROL)
    assert refusal(lambda: work.member.revival.Skip(large, timeout=5)) is Reason.SIZE_LIMIT


def test_a_reviver_renews_its_own_certificate_and_nobody_elses(edge: Edge) -> None:
    member, request = edge.reviver(), candidate()
    reply = member.revival.Renew(federation_pb2.RenewRequest(csr=request.csr), timeout=10)
    found = identity.parse_chain(reply.certificate_chain)[0]
    renewed = edge.member(request.tls_key, reply.certificate_chain)
    assert claim(renewed).wait.reason == "no running job is to be revived"
    assert edge.allow_list.check(identity.fingerprint(found), edge.server.clock()).endswith("/reviver/r")
    assert refusal(lambda: claim(member)) is Reason.BAD_CERTIFICATE  # the renewed one was used
    other = identity.Identity(FEDERATION, "reviver", "another")
    with pytest.raises(Refused, match=r"not one of spiffe:.*/reviver/another"):
        edge.membership.renew(other, candidate().csr, renewed.fingerprint)


def test_each_role_may_call_its_own_services_only(edge: Edge) -> None:
    """In both directions; what only members may read, a reviver may."""
    silo, admin, reviver = edge.enrol("north"), edge.admin(), edge.reviver()
    foreign = (
        (reviver, (*SILO_CALLS, *ADMIN_CALLS), (*SILO_STREAMS, *ADMIN_STREAMS)),
        (silo, REVIVER_CALLS, REVIVER_STREAMS),
        (admin, REVIVER_CALLS, REVIVER_STREAMS),
    )
    for member, calls, streams in foreign:
        for stream, group in ((False, calls), (True, streams)):
            for service, method, request in group:
                code = refusal(
                    lambda s=service, m=method, r=request, x=stream, w=member: _call(w, s, m, r, x)
                )
                assert code is Reason.WRONG_ROLE, method
    assert answer(lambda: claim(reviver)).wait.seconds > 0
