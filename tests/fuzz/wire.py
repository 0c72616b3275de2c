"""What both ends parse: `anabranch`."""

import json
import ssl
import struct
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import grpc
import numpy as np
import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import DecodeError, Message

from anabranch.errors import AnabranchError, Reason, Refused
from anabranch.terms import JobFile, JobTerms, parse_job_file, parse_terms
from anabranch.tlog import checkpoint, entry, merkle, note, receipt, tiles
from anabranch.v1 import audit_pb2
from anabranch.wire import canonical, codec, dsse, identity, limits, statements, status, tensors
from anabranch.wire.bundle import FederationInfo, JoinBundle, parse_bundle, parse_federation
from anabranch.wire.header import check_header_bytes
from anabranch.wire.manifest import parse_manifest
from tests.fuzz import scratch, shapes
from tests.fuzz.target import Target
from tests.tlog.conftest import DETAILS, MemoryLog
from tests.wire import pki
from tests.wire.samples import ARRAYS, MANIFEST

M = TypeVar("M", bound=Message)
ORIGIN = "audit.fed.example/demo"
SIGNER = note.NoteSigner(ORIGIN, Ed25519PrivateKey.from_private_bytes(b"\x01" * 32))
VERIFIER = note.NoteVerifier.from_vkey(SIGNER.vkey)
KEY = Ed25519PrivateKey.from_private_bytes(b"\x02" * 32)
PUBLIC = KEY.public_key().public_bytes_raw()
A, B, C = "a" * 64, "b" * 64, "c" * 64
TIME = "2026-11-20T00:00:00.000000Z"


def text(parse: Callable[[str], Any]) -> Callable[[bytes], bytes | None]:
    """A parser of text, given bytes: what is no text cannot reach it."""

    def given(data: bytes) -> bytes | None:
        try:
            found = parse(data.decode("utf-8", "surrogatepass"))
        except UnicodeDecodeError:
            return None
        return found.encode() if isinstance(found, str) else None

    return given


def parsed(kind: type[M], data: bytes) -> M:
    """As the transport parses a message, before any of our code sees it."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise Refused(Reason.MALFORMED, "not what its schema says") from error


# --- canonical forms -------------------------------------------------------------------------------------------------


def canonical_json(data: bytes) -> bytes:
    """rfc8785 and `json` agree about what it says, and about plain spellings of it."""
    value = canonical.decode(data)
    assert json.loads(data) == value
    if data.isascii():
        assert json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() == data
    return canonical.encode(value)


def documents() -> list[bytes]:
    values: list[Any] = [None, {}, [], {"a": [1, "é", None, True], "b": {"c": -5}}, "\u2028", 2**53 - 1]
    return [canonical.encode(value) for value in values]


# --- the log ---------------------------------------------------------------------------------------------------------


@cache
def log() -> tuple[MemoryLog, list[bytes]]:
    found, leaves = MemoryLog(), entries()[:7]
    for leaf in leaves:
        found.append(leaf)
    return found, leaves


@cache
def entries() -> list[bytes]:
    """One of every type, and one of a type nobody knows."""
    made = []
    for type, detail in DETAILS.items():
        found = entry.new_entry(
            type,
            id=entry.uuid7(1_795_132_800_000, bytes(10)),
            time=TIME,
            fed="fed.example",
            observer="spiffe://fed.example/aggregator/0",
            actor=entry.Actor(id="spiffe://fed.example/silo/hosp-a/agent/0", auth="mtls", cert_sha256=A),
            target=entry.Target(kind="update", id="u-1", sha256=A),
            job="digits",
            detail=detail,
            sealed=entry.Sealed(commit=A, fields=("metrics",)),
            sigs=[
                entry.Sig(
                    keyid=A, payloadType=statements.PAYLOAD_TYPE, sig="A" * 85 + "w==", payload_sha256=B
                )
            ],
        )
        made.append(entry.encode_entry(found))
    strange = json.loads(made[-1]) | {"type": "witness.seen", "action": "seen", "detail": {"x": [1]}}
    return [*made, canonical.encode(strange)]


def one_entry(data: bytes) -> bytes | None:
    found = entry.parse_entry(data)
    return entry.encode_entry(found) if found.understood else None


def head(size: int) -> checkpoint.Checkpoint:
    return checkpoint.Checkpoint(ORIGIN, size, log()[0].roots[size])


def note_text(data: str) -> str | None:
    """Signed again it is the same note, unless others have signed it too."""
    found = note.open_note(data, VERIFIER)
    return SIGNER.sign(found) if data.count("\u2014") == 1 else None


def notes() -> list[bytes]:
    one = checkpoint.sign(head(5), SIGNER)
    other = note.NoteSigner("witness", KEY).sign(head(5).encode()).rpartition("\n\n")[2]
    return [one.encode(), (one + other).encode()]


def signed_head(data: str) -> None:
    """Whatever else is in the note, the text is one the key has signed: five or seven entries of this log."""
    assert checkpoint.open_checkpoint(data, VERIFIER, ORIGIN) == head(5)


def vkey(data: str) -> str:
    found = note.NoteVerifier.from_vkey(data)
    return data if found.key_id.hex() in data else ""


def inclusion(data: bytes) -> None:
    """Under an honest root, nothing but the honest leaf is proven."""
    index, size, leaf, root, *proof = unpacked(data, "<QQ", 2)
    merkle.verify_inclusion(index, size, leaf, proof, root)
    found, leaves = log()
    if size <= len(leaves) and root == found.roots[size]:
        assert leaf == merkle.leaf_hash(leaves[index])


def inclusions() -> list[bytes]:
    found, leaves = log()
    return [
        struct.pack("<QQ", index, size)
        + merkle.leaf_hash(leaves[index])
        + found.roots[size]
        + b"".join(merkle.inclusion_proof(index, size, found.node))
        for index, size in ((0, 1), (2, 5), (6, 7))
    ]


def consistency(data: bytes) -> None:
    """Under an honest new root, nothing but the honest old root is proven."""
    old, new, before, after, *proof = unpacked(data, "<QQ", 2)
    merkle.verify_consistency(old, new, before, after, proof)
    found, leaves = log()
    if new <= len(leaves) and after == found.roots[new]:
        assert before == found.roots[old]


def consistencies() -> list[bytes]:
    found, _ = log()
    return [
        struct.pack("<QQ", old, new)
        + found.roots[old]
        + found.roots[new]
        + b"".join(merkle.consistency_proof(old, new, found.node))
        for old, new in ((1, 2), (3, 7), (4, 7), (7, 7))
    ]


def unpacked(data: bytes, numbers: str, hashes: int) -> list[Any]:
    """Numbers, then hashes of 32 bytes; the last may be shorter, as a peer may send it."""
    data = data.ljust(struct.calcsize(numbers) + 32 * hashes, b"\0")
    rest = data[struct.calcsize(numbers) :]
    cut = [rest[start : start + 32] for start in range(0, len(rest), 32)]
    return [*struct.unpack_from(numbers, data), *cut]


def proven(data: bytes) -> None:
    found = codec.receipt_from_proto(parsed(audit_pb2.Receipt, data))
    receipt.verify_receipt(found, VERIFIER, ORIGIN)
    assert found.entry == log()[1][found.index]


def receipts() -> list[bytes]:
    found, leaves = log()
    return [
        codec.receipt_to_proto(
            receipt.Receipt(
                leaves[index],
                index,
                tuple(merkle.inclusion_proof(index, 5, found.node)),
                checkpoint.sign(head(5), SIGNER),
            )
        ).SerializeToString()
        for index in (0, 4)
    ]


# --- what silos sign -------------------------------------------------------------------------------------------------


@cache
def signed() -> dict[str, bytes]:
    update = statements.UpdateStatement(
        update="u-1", federation="fed.example", job="digits", lease="l-1", nonce="0" * 32, sequence=4, base_version=12,
        base_sha256=A, delta_sha256=B, bytes=4096, terms_sha256=C, manifest_sha256=A, num_examples=7, steps=20,
        release="0.1.0", checkpoint=statements.SeenCheckpoint(size=5, root=A),
    )  # fmt: skip
    decision = statements.DecisionStatement(
        federation="fed.example", job="digits", terms_sha256=A, decision="approve", silo="north", time=TIME
    )
    evaluation = statements.EvaluationStatement(
        federation="fed.example", job="digits", lease="l-1", nonce="0" * 32, version=12, view_sha256=A,
        split="validation", metrics={"accuracy": canonical.hexfloat(0.5)}, num_examples=7,
    )  # fmt: skip
    return {"update": update.encode(), "decision": decision.encode(), "evaluation": evaluation.encode()}


def envelope(data: bytes) -> bytes:
    """What verifies was signed by this key, whatever else the envelope says."""
    found = dsse.parse_envelope(data)
    try:
        payload = dsse.verify(found, PUBLIC, statements.PAYLOAD_TYPE)
    except Refused:
        return found.encode()
    assert payload in signed().values()
    return found.encode()


def envelopes() -> list[bytes]:
    return [dsse.sign(statements.PAYLOAD_TYPE, payload, KEY).encode() for payload in signed().values()]


# --- tensors ---------------------------------------------------------------------------------------------------------


def tensor_header(data: bytes) -> None:
    check_header_bytes(data, MANIFEST.file_bytes, MANIFEST)


def tensor_file(data: bytes) -> bytes:
    """Admitted by us: then it is our own spelling, and the library reads the same numbers."""
    path = scratch.file("update.safetensors", data)
    tensors.check_file(path, MANIFEST)
    tensors.check_values(path, MANIFEST)
    read = tensors.read_tensors(path, MANIFEST)
    same(read, safetensors.numpy.load(data))
    tensors.write_tensors(path, MANIFEST, read)
    return path.read_bytes()


def foreign_tensor_file(data: bytes) -> None:
    """Any all-float32 file we take, the library takes; names, shapes and numbers are the same."""
    path = scratch.file("initial.safetensors", data)
    tensors.read_manifest(path)
    manifest, _ = tensors.canonicalise(path, path.with_name("canonical.safetensors"))
    same(
        tensors.read_tensors(path.with_name("canonical.safetensors"), manifest), safetensors.numpy.load(data)
    )


def same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert array.shape == theirs[name].shape
        assert array.tobytes() == theirs[name].tobytes()


def tensor_files() -> list[bytes]:
    path = scratch.file("good.safetensors", b"")
    tensors.write_tensors(path, MANIFEST, ARRAYS)
    other = safetensors.numpy.save(
        {"b": np.ones((2, 3), np.float32), "a": np.zeros(0, np.float32)}, {"format": "np"}
    )
    return [path.read_bytes(), other]


def usable_manifest(data: bytes) -> bytes:
    """Every shape it admits, an array can have."""
    found = parse_manifest(data)
    for spec in found.specs:
        if spec.elements < 1000:
            np.empty(spec.shape, np.float32)
    return found.encode()


# --- identities ------------------------------------------------------------------------------------------------------


@cache
def ca() -> pki.Authority:
    return pki.authority()


def certificate(data: bytes) -> None:
    """A leaf as TLS shows it; none but one that our CA signed is somebody."""
    found = identity.parse_chain(ssl.DER_cert_to_PEM_cert(data).encode())[0]
    identity.verify_leaf(found, [ca().root], [ca().issuing], pki.NOW.timestamp())
    assert data in certificates()


@cache
def certificates() -> list[bytes]:
    made = [
        pki.leaf(ca()),
        pki.leaf(ca(), uris=[pki.AGGREGATOR], hosts=["localhost", "127.0.0.1"], usages=[pki.SERVER]),
        pki.leaf(ca(), uris=[pki.ADMIN], life=timedelta(hours=12)),
        pki.leaf(ca(), mails=["a@b.example"]),
        ca().issuing,
    ]
    return [cert.public_bytes(Encoding.DER) for cert in made]


def chain(data: bytes) -> None:
    """What an enrolling silo does with the chain it is sent."""
    leaf, *intermediates = identity.parse_chain(data)
    identity.verify_leaf(leaf, [ca().root], intermediates, pki.NOW.timestamp(), "silo")
    identity.fingerprint(leaf)


def join(parse: Callable[[bytes], JoinBundle | FederationInfo]) -> Callable[[bytes], None]:
    def given(data: bytes) -> None:
        found = parse(data)
        assert parse(found.encode()) == found
        found.ca_pem.encode("ascii")  # as `ssl` is given it
        identity.parse_chain(found.ca_pem.encode())

    return given


@cache
def bundles() -> list[bytes]:
    info = {
        "server": "fed.example:7443", "enrolment": "[::1]:7444", "ca_pem": ca().pem.decode(),
        "ca_pins": (identity.spki_pin(ca().root),), "federation": pki.FEDERATION, "log_origin": ORIGIN,
        "log_vkey": SIGNER.vkey, "silo": "north",
    }  # fmt: skip
    joining = JoinBundle(**info, token_id="t1", token="ab" * 32, expires=TIME)  # type: ignore[arg-type]
    return [joining.encode(), joining.federation_info().encode()]


# --- terms, status ---------------------------------------------------------------------------------------------------

JOB_TOML = b"""[job]
name = "digits"
task = "task.py:Digits"
requires = ["monai>=1.4"]
params = { depth = 3, rate = 0.5 }
[silos]
min = 3
[training]
local_steps = 20
optimizer = { name = "sgd", lr = 0.1 }
progress_timeout = "10m"
[aggregation]
max_wait = "10m"
max_update_norm = 4.0
[stop]
versions = 80
"""


def terms() -> list[bytes]:
    file = parse_job_file(JOB_TOML.decode())
    bare = JobFile.model_validate({"job": {"name": "a", "task": "train.py"}})
    return [
        JobTerms(file=one, archive_sha256=A, initial_sha256=B, manifest_sha256=C).encode()
        for one in (file, bare)
    ]


class Failure(grpc.RpcError):
    """What gRPC raises: a code, a text, and pairs of which some are bytes."""

    def __init__(self, data: bytes) -> None:
        code, _, rest = data.partition(b"\n")
        self._code = list(grpc.StatusCode)[len(code) % len(grpc.StatusCode)]
        lines = rest.decode("utf-8", "replace").split("\n")
        self._details = lines.pop(0) if lines else None
        self._pairs = [
            (key, value if key != "b" else value.encode())
            for key, _, value in (x.partition("=") for x in lines)
        ]

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str | None:
        return self._details

    def trailing_metadata(self) -> Sequence[tuple[str, Any]]:
        return self._pairs


def failure(data: bytes) -> None:
    """Whatever a peer says, it is one of ours; and what we would say of it can be sent."""
    meant = status.from_rpc_error(Failure(data))
    assert isinstance(meant, AnabranchError)
    _, message, metadata = status.to_status(meant)
    assert len(message) <= limits.STATUS_MESSAGE
    assert all(value.isascii() for _, value in metadata)
    raise meant


FAILURES = [
    b"...\nno such job\nanabranch-error=refused\nanabranch-reason=not_found",
    b"\nwait\nanabranch-error=unavailable",
    b"..\nx\nb=y",
]

WIRE = (
    Target("canonical JSON", canonical_json, documents, shapes.json_document),
    Target("hex floats", text(lambda t: canonical.hexfloat(canonical.from_hexfloat(t))), lambda: [b"0x1.8000000000000p+1"]),
    Target("times", text(lambda t: canonical.utc(canonical.from_utc(t))), lambda: [TIME.encode()]),
    Target("note", text(note_text), notes),
    Target("checkpoint", text(signed_head), notes),
    Target("checkpoint text", text(lambda t: checkpoint.parse(t).encode()), lambda: [head(5).encode().encode()]),
    Target("vkey", text(vkey), lambda: [SIGNER.vkey.encode()]),
    Target("entry bundle", lambda data: tiles.encode_bundle(tiles.parse_bundle(data)), lambda: [tiles.encode_bundle(entries()[:3])]),
    Target("audit entry", one_entry, entries, shapes.json_document),
    Target("inclusion proof", inclusion, inclusions),
    Target("consistency proof", consistency, consistencies),
    Target("receipt", proven, receipts, shapes.message(audit_pb2.Receipt)),
    Target("update statement", lambda data: statements.parse_update(data).encode(), lambda: [signed()["update"]], shapes.json_document),
    Target("decision statement", lambda data: statements.parse_decision(data).encode(), lambda: [signed()["decision"]], shapes.json_document),
    Target("evaluation statement", lambda data: statements.parse_evaluation(data).encode(), lambda: [signed()["evaluation"]], shapes.json_document),
    Target("envelope", envelope, envelopes, shapes.json_document),
    Target("manifest", usable_manifest, lambda: [MANIFEST.encode()], shapes.json_document),
    Target("tensor header", tensor_header, lambda: [MANIFEST.header()]),
    Target("tensor file", tensor_file, tensor_files),
    Target("foreign tensor file", foreign_tensor_file, tensor_files, shapes.tensor_file),
    Target("identity", text(lambda t: identity.parse_identity(t).uri), lambda: [u.encode() for u in (pki.SILO, pki.AGGREGATOR, pki.ADMIN)]),
    Target("certificate", certificate, certificates),
    Target("certificate chain", chain, lambda: [pki.pem(pki.leaf(ca()), ca().issuing)]),
    Target("private key", lambda data: identity.private_pem(identity.load_private(data)) and None, lambda: [identity.private_pem(KEY), identity.private_pem(pki.p256())]),
    Target("join bundle", join(parse_bundle), lambda: bundles()[:1], shapes.json_document),
    Target("federation.json", join(parse_federation), lambda: bundles()[1:], shapes.json_document),
    Target("job terms", lambda data: parse_terms(data).encode(), terms, shapes.json_document),
    Target("job.toml", text(parse_job_file), lambda: [JOB_TOML], shapes.toml_text),
    Target("error of a peer", failure, lambda: FAILURES, errors=(AnabranchError,)),
)  # fmt: skip
