"""What both ends parse: the log, and what silos sign. `anabranch.tlog` and `anabranch.wire`."""

import json
import struct
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import DecodeError, Message

from anabranch.errors import Reason, Refused
from anabranch.tlog import checkpoint, entry, merkle, note, receipt, tiles
from anabranch.tlog.claim import PrivacyClaim
from anabranch.v1 import audit_pb2
from anabranch.wire import canonical, codec, dsse, limits, squeeze, statements
from tests.fuzz import shapes
from tests.fuzz.target import Target
from tests.tlog.conftest import DETAILS, MemoryLog

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
    """One of every type, one of a type that nobody knows, and one with such a reason code."""
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
    coded = json.loads(next(data for data in made if b'"type":"auth.failed"' in data))
    later = coded | {"detail": coded["detail"] | {"code": "robust_outlier"}}
    return [*made, canonical.encode(strange), canonical.encode(later)]


def one_entry(data: bytes) -> bytes | None:
    """A type or a reason code of a later release is read, and not ours to write."""
    found = entry.parse_entry(data)
    later = found.type in ("auth.failed", "update.refused") and found.detail.code not in set(Reason)  # type: ignore[union-attr]
    return None if later or not found.understood else entry.encode_entry(found)


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


def chunk(data: bytes) -> None:
    """A chunk as it travels when files are packed: never more than one, and it travels again."""
    found = squeeze.unsqueeze(data)
    assert len(found) <= limits.CHUNK
    assert squeeze.unsqueeze(squeeze.squeeze(found)) == found


def squeezed() -> list[bytes]:
    return [squeeze.squeeze(data) for data in (b"", b"a chunk", bytes(range(256)) * 64, bytes(limits.CHUNK))]


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
                seen=3,
                consistency=tuple(merkle.consistency_proof(3, 5, found.node)),
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
    one = canonical.hexfloat(1.0)
    claim = PrivacyClaim(
        unit="example", sample_rate=one, noise_multiplier=one, max_grad_norm=one, steps=20, delta=one, cycles=3,
        ledger_head=A,
    )  # fmt: skip
    private = update.model_copy(update={"num_examples": None, "privacy": claim})
    decision = statements.DecisionStatement(
        federation="fed.example", job="digits", terms_sha256=A, decision="approve", silo="north", time=TIME
    )
    evaluation = statements.EvaluationStatement(
        federation="fed.example", job="digits", lease="l-1", nonce="0" * 32, version=12, view_sha256=A,
        split="validation", metrics={"accuracy": canonical.hexfloat(0.5)}, num_examples=7,
    )  # fmt: skip
    return {
        "update": update.encode(),
        "private": private.encode(),
        "decision": decision.encode(),
        "evaluation": evaluation.encode(),
    }


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
    Target("squeezed chunk", chunk, squeezed),
    Target("inclusion proof", inclusion, inclusions),
    Target("consistency proof", consistency, consistencies),
    Target("receipt", proven, receipts, shapes.message(audit_pb2.Receipt)),
    Target("update statement", lambda data: statements.parse_update(data).encode(), lambda: [signed()["update"], signed()["private"]], shapes.json_document),
    Target("decision statement", lambda data: statements.parse_decision(data).encode(), lambda: [signed()["decision"]], shapes.json_document),
    Target("evaluation statement", lambda data: statements.parse_evaluation(data).encode(), lambda: [signed()["evaluation"]], shapes.json_document),
    Target("envelope", envelope, envelopes, shapes.json_document),
)  # fmt: skip
