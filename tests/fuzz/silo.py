"""What a silo parses: a server's words, a stranger's at its address, and files at its site."""

import json
import shutil
import socket
import ssl
from collections.abc import Callable
from datetime import datetime
from functools import cache

from cryptography import x509

from anabranch.errors import Corrupt, Refused
from anabranch.terms import JobTerms, parse_job_file, parse_terms
from anabranch.tlog import checkpoint, entry, merkle
from anabranch.tlog.receipt import Receipt
from anabranch.v1 import federation_pb2 as pb
from anabranch.v1 import update_pb2
from anabranch.wire import codec
from anabranch.wire.manifest import Manifest
from anabranch.wire.statements import EvaluationStatement
from silo_agent import approval, config, identity, messages, outbox, policy, probe
from silo_agent.receipts import LogView, journal
from tests.fuzz import scratch, shapes
from tests.fuzz.documents import JOB_TOML, bundles, ca, certificates, terms
from tests.fuzz.target import Target
from tests.fuzz.wire import KEY, ORIGIN, SIGNER, VERIFIER, envelopes, parsed
from tests.tlog.conftest import MemoryLog
from tests.wire import pki
from tests.wire.samples import MANIFEST

MINE = "hosp-a"

# --- what the server says --------------------------------------------------------------------------------------------


@cache
def honest() -> tuple[MemoryLog, pb.Job, pb.Lease]:
    """A log with one job and one lease to evaluate, and what the server tells about them."""
    log = MemoryLog()
    agreed = JobTerms(
        file=parse_job_file(JOB_TOML.decode()),
        archive_sha256="a" * 64,
        initial_sha256="b" * 64,
        manifest_sha256=MANIFEST.digest(),
    )
    submitted = {
        "name": "digits",
        "terms_sha256": agreed.digest(),
        **agreed.model_dump(include={"archive_sha256", "initial_sha256", "manifest_sha256"}),
    }
    leased = {
        "lease": "l-1", "silo": MINE, "kind": "evaluate", "version": 3, "view_sha256": "a" * 64,
        "deadline": "2026-11-20T00:00:00.000000Z", "nonce": "0" * 32, "local_steps": 0,
    }  # fmt: skip
    leaves = []
    for type, kind, detail in (("job.submitted", "job", submitted), ("lease.issued", "lease", leased)):
        found = entry.new_entry(
            type,
            id=entry.uuid7(1_795_132_800_000, bytes(10)),
            time="2026-11-20T00:00:00.000000Z",
            fed="fed.example",
            observer="spiffe://fed.example/aggregator/0",
            actor=entry.Actor(id="spiffe://fed.example/aggregator/0", auth="local"),
            target=entry.Target(kind=kind, id="j-1"),
            job="digits-1",
            detail=detail,
        )
        leaves.append(entry.encode_entry(found))
        log.append(leaves[-1])
    note = checkpoint.sign(checkpoint.Checkpoint(ORIGIN, 2, log.roots[2]), SIGNER)
    proofs = [
        codec.receipt_to_proto(Receipt(leaf, i, tuple(merkle.inclusion_proof(i, 2, log.node)), note))
        for i, leaf in enumerate(leaves)
    ]
    job = pb.Job(
        id="digits-1",
        terms=agreed.encode(),
        status="running",
        manifest=MANIFEST.encode(),
        submitted=proofs[0],
    )
    view = pb.View(version=3, density=1.0, encoding="safetensors", digest="a" * 64, bytes=4096)
    lease = pb.Lease(
        id="l-1",
        job="digits-1",
        kind=pb.EVALUATE,
        view=view,
        nonce="0" * 32,
        split="validation",
        issued=proofs[1],
    )
    return log, job, lease


def view() -> LogView:
    folder = scratch.folder("view")
    shutil.rmtree(folder / "evidence", ignore_errors=True)
    log = honest()[0]
    return LogView(
        folder / "log-view.json",
        folder / "evidence",
        ORIGIN,
        VERIFIER,
        lambda old, new: merkle.consistency_proof(old, new, log.node),
    )


def offered(data: bytes) -> None:
    """What is believed of an offered job is what the log says; a person is shown it."""
    job = messages.offered_job(parsed(pb.Job, data))
    shown(approval.examine(job, view()))
    assert job.terms == honest()[1].terms


def logged_terms(data: bytes) -> bytes:
    """Terms some owner had logged, shown to a person at a silo."""
    found = parse_terms(data)
    job = messages.OfferedJob("digits-1", data, "running", "", 0, b"", Receipt(b"{}", 0, (), "note"))
    shown(approval.Proposal(job, found, found.digest(), Manifest(MANIFEST.specs)))
    for text in found.file.job.requires:
        approval.wanted(text)
    policy.admit(policy.parse_policy(POLICY.decode(), "policy.toml"), found, 4096)
    return found.encode()


def shown(proposal: approval.Proposal) -> None:
    for label, text in approval.describe(proposal, "a"):
        assert (label + text).isprintable(), text


def requirement(text: bytes) -> None:
    approval.wanted(text.decode("utf-8", "replace"))


def task(data: bytes) -> None:
    """A lease the log vouches for becomes a statement that can be signed; a pause is one that can be waited."""
    found = messages.task(parsed(pb.NextTaskReply, data))
    if isinstance(found, messages.Wait):
        assert 0 <= found.seconds < float("inf")
    elif found.kind == "evaluate":
        EvaluationStatement(
            federation="fed.example", job=found.job, lease=found.id, nonce="0" * 32, version=3,
            view_sha256=found.view.digest, split=found.split, metrics={}, num_examples=0,
        )  # fmt: skip


def pushed(data: bytes) -> None:
    messages.from_proto(parsed(pb.ServerMessage, data))


def model_header(data: bytes) -> None:
    header = parsed(pb.ModelHeader, data)
    messages.viewed(header.view)
    for one in codec.capped(header.receipts, 16, "receipts"):
        codec.receipt_from_proto(one)


def decided(data: bytes) -> None:
    messages.decided(parsed(update_pb2.SubmitReply, data))


def foreign(data: bytes) -> None:
    """Whoever answers at the server's address shows a certificate of their own making; a person reads what it is."""
    leaf = probe.readable(data)
    error = ssl.SSLCertVerificationError("self-signed")
    error.verify_message = "self-signed"  # type: ignore[misc]
    for said in (
        lambda: probe._other_ca(leaf, "localhost:7443", "fed.example", error),
        lambda: probe._wrong_host(leaf, "localhost:7443"),
        lambda: probe._dates(leaf, "localhost:7443"),
    ):
        assert str(said()).isprintable()


def strange_certificates() -> list[bytes]:
    from cryptography.hazmat.primitives.serialization import Encoding

    named = pki.leaf(ca(), subject=pki.common_name("inspection proxy"), extra=x509.OCSPNoCheck())
    other = x509.SubjectAlternativeName([x509.OtherName(x509.ObjectIdentifier("1.2.3"), b"\x05\x00")])
    odd = pki.leaf(ca(), drop=(x509.SubjectAlternativeName,), extra=other)
    return [*certificates(), *(cert.public_bytes(Encoding.DER) for cert in (named, odd))]


def proxy_answer(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data[:50_000])  # fits the socket's buffer; more than is read of it
        theirs.shutdown(socket.SHUT_WR)
        probe._tunnel(ours, "localhost:7443", probe.Proxy("proxy", 3128, None))


# --- files at the site -----------------------------------------------------------------------------------------------

POLICY = b"""[data.default]
path = "/srv/data/digits"
params = { site = "north" }
[models.tiny]
path = "/srv/models/tiny"
[models.bert]
hub = "google-bert/bert-base-uncased"
revision = "0123456789abcdef0123456789abcdef01234567"
[approve]
terms = ["aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"]
[run]
isolation = "required"
max_update_bytes = "1GiB"
hours = ["20:00-06:00"]
gpus = [0]
"""
SETTINGS = b"""server = "fed.example:7443"
proxy = "http://user:word@proxy.example:3128"
keep_models = 2
"""


def site_policy(data: bytes) -> None:
    """A policy that is read can be asked."""
    rules = policy.load_policy(scratch.file("policy.toml", data))
    policy.open_now(rules, datetime(2026, 11, 20, 12))
    policy.parse_bytes(rules.run.max_update_bytes)
    for agreed in map(parse_terms, terms()):
        policy.admit(rules, agreed, 4096)


def settings(data: bytes) -> None:
    home = config.Home(scratch.folder("home"))
    home.settings.write_bytes(data)
    found = config.load_settings(home)
    if found.server is not None:
        config.split_address(found.server)
        probe.proxy_for(found.server, found.proxy)


def decision_file(data: bytes) -> None:
    directory = scratch.folder("decisions")
    (directory / f"{'a' * 64}.json").write_bytes(data)
    decisions = approval.Decisions(directory)
    decisions.known("digits-1")
    decisions.of("a" * 64)


def log_view(data: bytes) -> None:
    found = view()
    found.path.write_bytes(data)
    try:
        found.current()
    finally:
        found.path.unlink()


def log_views() -> list[bytes]:
    return [
        json.dumps(
            {"checkpoint": checkpoint.sign(checkpoint.Checkpoint(ORIGIN, 2, honest()[0].roots[2]), SIGNER)}
        ).encode()
    ]


def outbox_entry(data: bytes) -> None:
    box = scratch.folder("outbox")
    shutil.rmtree(box / "u-1", ignore_errors=True)
    (box / "u-1").mkdir()
    (box / "u-1" / "envelope.json").write_bytes(data)
    (box / "u-1" / "delta.safetensors").write_bytes(bytes(4096))
    list(outbox.Outbox(box).pending("digits"))


def sequence(data: bytes) -> None:
    scratch.file("sequence", data)
    assert 0 <= outbox.next_sequence(scratch.folder("files")) <= 2**53 - 1


def torn_journal(data: bytes) -> None:
    """Whatever an append left behind, the next receipt is whole on a line of its own."""
    path = scratch.file("receipts.jsonl", data)
    journal(path, Receipt(b"{}", 0, (), "note"))
    last = path.read_bytes().splitlines()[-1]
    assert json.loads(last)["checkpoint"] == "note"


def own_identity(which: str) -> Callable[[bytes], None]:
    """One file of the silo's own identity damaged."""

    def given(data: bytes) -> None:
        directory = scratch.folder("identity")
        for name, content in own_files().items():
            (directory / name).write_bytes(content)
        (directory / which).write_bytes(data)
        identity.load(directory)

    return given


@cache
def own_files() -> dict[str, bytes]:
    from anabranch.wire.identity import private_pem

    key = private_pem(KEY)
    return {
        identity.TLS_KEY: private_pem(pki.p256()),
        identity.TLS_CHAIN: pki.pem(pki.leaf(ca()), ca().issuing),
        identity.UPDATE_KEY: key,
        identity.APPROVER_KEY: key,
        identity.CA: ca().pem,
        identity.FEDERATION: bundles()[1],
    }


def messages_of(*bodies: dict[str, object]) -> Callable[[], list[bytes]]:
    return lambda: [pb.ServerMessage(**body).SerializeToString() for body in bodies]  # type: ignore[arg-type]


def tasks() -> list[bytes]:
    waiting = pb.NextTaskReply(wait=pb.Wait(seconds=2.5, reason="nothing to do"))
    return [pb.NextTaskReply(lease=honest()[2]).SerializeToString(), waiting.SerializeToString()]


def headers() -> list[bytes]:
    lease = honest()[2]
    return [pb.ModelHeader(view=lease.view, receipts=[lease.issued]).SerializeToString()]


def own(which: str) -> Target:
    return Target(
        f"own {which}", own_identity(which), lambda: [own_files()[which]], errors=(Refused, Corrupt)
    )


SILO = (
    Target("session message", pushed, messages_of({"welcome": pb.Welcome(protocol=1, release="0.1.0")}, {"abort": pb.AbortLease(lease="l", reason="r")}, {"revoked": pb.Revoked(reason="r")}, {"drain": pb.Drain()}), shapes.message(pb.ServerMessage)),
    Target("offered job", offered, lambda: [honest()[1].SerializeToString()], shapes.message(pb.Job)),
    Target("terms shown to a person", logged_terms, terms, shapes.json_document),
    Target("requirement", requirement, lambda: [b"monai>=1.4", b"a[b]; python_version >= '3.11' and extra == 'x'", b"a @ https://x/y.whl"]),
    Target("task", task, tasks, shapes.message(pb.NextTaskReply)),
    Target("model header", model_header, headers, shapes.message(pb.ModelHeader)),
    Target("decision about an update", decided, lambda: [update_pb2.SubmitReply(receipt=honest()[2].issued, reason="nonfinite").SerializeToString()], shapes.message(update_pb2.SubmitReply)),
    Target("certificate of a stranger", foreign, strange_certificates),
    Target("answer of a proxy", proxy_answer, lambda: [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 407 Login\r\nA: b\r\n\r\n"], errors=(probe.HopFailed,)),
    Target("policy.toml", site_policy, lambda: [POLICY], shapes.toml_text),
    Target("agent.toml", settings, lambda: [SETTINGS], shapes.toml_text),
    Target("decision file", decision_file, lambda: [b'{"decision":"approve","job":"digits-1","time":"2026"}'], shapes.json_document, errors=(Corrupt,)),
    Target("log view", log_view, log_views, shapes.json_document, errors=(Corrupt,)),
    Target("outbox entry", outbox_entry, lambda: envelopes()[:1], shapes.json_document, errors=(Corrupt,)),
    Target("sequence", sequence, lambda: [b"7\n"], errors=(Corrupt,)),
    Target("receipts journal", torn_journal, lambda: [b'{"a":1}\n{"b"']),
    *map(own, (identity.TLS_CHAIN, identity.TLS_KEY, identity.UPDATE_KEY, identity.FEDERATION)),
)  # fmt: skip
