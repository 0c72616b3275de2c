"""What a server and a reviver parse of each other."""

from functools import cache

from anabranch.v1 import revival_pb2 as pb
from anabranch.wire import canonical
from anabranch.wire.identity import Identity
from reviver.client import Claimed, claimed
from server.core.revival import parse_report
from server.transport.peer import Peer
from server.transport.revival import Revival
from tests.fuzz import shapes
from tests.fuzz.server_side import ANSWERS, drained, given_one_by_one, scene, unary, wait
from tests.fuzz.target import Target
from tests.fuzz.wire import parsed
from tests.server import harness
from tests.server.reviver import REPORT, allow

REVIVER, SUBMITS = (Peer(Identity(harness.FEDERATION, "reviver", name), "0" * 64) for name in ("r", "s"))
RULE = "[aggregation]\nbuffer = 1\n[revival]\nfreeze = 0\nwarmup = 0\n"


@cache
def revival() -> Revival:
    """With a job that is to be revived for each of two revivers: a task ends when its result is taken."""
    found = scene()
    for _ in range(2):
        job, terms = found.server.submit(RULE)
        allow(found.server, found.north, job, terms, True)
        found.server.send(found.north, job, terms, 0.5)
        found.server.core.aggregation.advance(job)
    return Revival(found.rooms)


@cache
def task(of: Peer = REVIVER) -> pb.RevivalTask:
    reply: pb.ClaimReply = wait(revival().Claim(pb.ClaimRequest(), of))
    return reply.task


def files() -> list[bytes]:
    request = pb.FetchFileRequest(task=task().id, sha256=task().head_sha256, offset=3)
    return [request.SerializeToString()]


def fetched(data: bytes) -> None:
    wait(drained(revival().FetchFile(parsed(pb.FetchFileRequest, data), REVIVER)))


def result() -> bytes:
    return scene().north.delta(scene().server.directory, 1.0).read_bytes()


def submitted(data: bytes) -> None:
    """Any header, then a whole file."""
    header = parsed(pb.SubmitResultHeader, data)
    body = [pb.SubmitResultRequest(header=header), pb.SubmitResultRequest(chunk=result())]
    wait(revival().Submit(given_one_by_one(body), SUBMITS))


def headers() -> list[bytes]:
    report = REPORT.model_dump_json().encode()
    header = pb.SubmitResultHeader(task=task(SUBMITS).id, sha256=canonical.sha256(result()), report=report)
    return [header.SerializeToString()]


def reported(data: bytes) -> None:
    report = parse_report(data)
    assert report.effect is None or all(0 <= share <= 1 for share in report.effect)


def answered(data: bytes) -> None:
    """Names become paths, and seconds are waited."""
    found = claimed(parsed(pb.ClaimReply, data))
    assert isinstance(found, Claimed)
    job = getattr(found.turn, "job", "")
    assert "/" not in job
    assert not job.startswith(".")


def answers() -> list[bytes]:
    permitted = [pb.Permission(job=task().job, silos=["north"])]
    waiting = pb.ClaimReply(permitted=permitted)
    waiting.wait.seconds = 2.5
    return [pb.ClaimReply(task=task(), permitted=permitted).SerializeToString(), waiting.SerializeToString()]


REVIVAL = (
    unary(
        "Claim",
        pb.ClaimRequest,
        lambda s, r: revival().Claim(r, REVIVER),
        {"holding": ["digits-1"], "resting": ["digits-2"]},
    ),
    Target("FetchFile", fetched, files, shapes.message(pb.FetchFileRequest), ANSWERS),
    unary(
        "Skip",
        pb.SkipRequest,
        lambda s, r: revival().Skip(r, REVIVER),
        {"task": "t-1", "reason": "failed", "why": "KeyError"},
    ),
    Target("result of a reviver", submitted, headers, shapes.message(pb.SubmitResultHeader), ANSWERS),
    Target(
        "report of a reviver", reported, lambda: [REPORT.model_dump_json().encode()], shapes.json_document
    ),
    Target("answer to a claim", answered, answers, shapes.message(pb.ClaimReply)),
)
