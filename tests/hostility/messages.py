"""Messages that want to take more than they bring. The tests send each once; `benchmarks.hostility` measures each."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import zstandard

from anabranch.terms import JobTerms
from anabranch.v1 import admin_pb2, enrolment_pb2, federation_pb2, update_pb2
from anabranch.wire import canonical, codec, limits
from anabranch.wire.tensors import Manifest, TensorSpec
from server.transport.interceptor import CONTROL
from tests.hostility.target import CALL_SECONDS, MANIFEST, MIB, Target, met, submission

MEMBER, STRANGER, ADMIN = "member", "stranger", "admin"
NOT_TAKEN = "malformed"  # gRPC itself says UNIMPLEMENTED: compression is switched off
BOMB = 256 * MIB  # of zeros; gzip makes 260 kB of it, so that gRPC's own bound on messages lets it in


@dataclass(frozen=True)
class Hostile:
    name: str
    by: str  # who sends it
    method: str  # "Service/Method"
    expected: str  # a reason code, or the kind of error
    send: Callable[[Target], str]


def _method(name: str) -> str:
    return f"/anabranch.v1.{name}"


def _raw(by: str, method: str, kind: str, data: bytes) -> Callable[[Target], str]:
    """Bytes where a message is expected, on a call of `kind` as gRPC names it."""

    def send(target: Target) -> str:
        channel = _channel(target, by)
        call = getattr(channel, kind)(_method(method))
        request = iter([data]) if kind.startswith("stream") else data
        return met(lambda: _drain(call(request, timeout=CALL_SECONDS)))

    return send


def _channel(target: Target, by: str, compression: Any = None) -> grpc.Channel:
    if compression is None and by != STRANGER:
        return target.admin.channel if by == ADMIN else target.members["mallory"].channel
    if by == STRANGER:
        credentials = grpc.ssl_channel_credentials(target.ca)
    else:
        member = target.admin if by == ADMIN else target.members["mallory"]
        credentials = grpc.ssl_channel_credentials(target.ca, member.key, member.chain)
    # Not our client's options: those keep it from sending what is too large.
    return grpc.secure_channel(target.address(by == STRANGER), credentials, compression=compression)


def _unbounded(by: str, method: str, kind: str, data: bytes) -> Callable[[Target], str]:
    def send(target: Target) -> str:
        member = target.members["mallory"]
        key, chain = (None, None) if by == STRANGER else (member.key, member.chain)
        credentials = grpc.ssl_channel_credentials(target.ca, key, chain)
        with grpc.secure_channel(target.address(by == STRANGER), credentials) as channel:
            call = getattr(channel, kind)(_method(method))
            request = iter([data]) if kind.startswith("stream") else data
            return met(lambda: _drain(call(request, timeout=CALL_SECONDS)))

    return send


def _bomb(by: str, method: str, kind: str) -> Callable[[Target], str]:
    def send(target: Target) -> str:
        with _channel(target, by, grpc.Compression.Gzip) as channel:
            call = getattr(channel, kind)(_method(method))
            request = iter([bytes(BOMB)]) if kind.startswith("stream") else bytes(BOMB)
            return met(lambda: _drain(call(request, timeout=CALL_SECONDS)))

    return send


def _drain(reply: Any) -> Any:
    return list(reply) if hasattr(reply, "__next__") else reply


def repeated(tag: bytes, size: int) -> bytes:
    """So many empty sub-messages of one field: two bytes each on the wire, dozens once parsed."""
    return (tag + b"\0") * (size // 2)


def heartbeat(progress: bytes) -> bytes:
    """An AgentMessage whose heartbeat has `progress` as its leases."""
    return b"\x12" + _varint(len(progress)) + progress


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _session(data: bytes) -> Callable[[Target], str]:
    """A hostile heartbeat in a session that began well."""

    def send(target: Target) -> str:
        hello = federation_pb2.Hello(protocol_min=1, protocol_max=1, release="0.1.0")
        messages = iter([federation_pb2.AgentMessage(hello=hello).SerializeToString(), data])
        member = target.members["mallory"]
        credentials = grpc.ssl_channel_credentials(target.ca, member.key, member.chain)
        with grpc.secure_channel(target.address(), credentials) as channel:
            session = channel.stream_stream(_method("Federation/Session"))
            return met(lambda: list(session(messages, timeout=CALL_SECONDS)))

    return send


# --- tensor files -----------------------------------------------------------------------------------------------------


def million_tensors(size: int = 73 * MIB) -> bytes:
    """A safetensors header of `size` bytes that declares empty tensors only."""
    one = '"%07d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},'
    count = size // len(one % 0)
    text = "{" + "".join(one % number for number in range(count))[:-1] + "}"
    return len(text).to_bytes(8, "little") + text.encode()


def wide_header() -> bytes:
    """As much structure as the bound on headers lets through: a megabyte of empty lists."""
    text = b"[" + b"[]," * ((limits.HEADER - 4) // 3) + b"0]"
    return len(text).to_bytes(8, "little") + text


def _upload(
    content: Callable[[], bytes], frame: Callable[[], bytes] | None = None
) -> Callable[[Target], str]:
    """An update whose statement is right and whose bytes are `content`, as far as the server takes them.

    `frame`: sent instead, as what zstd made of a chunk.
    """

    def send(target: Target) -> str:
        lease, data = target.lease("mallory"), content()
        update = hashlib.sha256(data[:4096] + lease.id.encode()).hexdigest()[:32]
        envelope = target.envelope("mallory", lease, update, data)
        header = update_pb2.SubmitHeader(update=update, envelope=envelope)

        def messages() -> Iterator[update_pb2.SubmitRequest]:
            yield update_pb2.SubmitRequest(header=header)
            if frame is not None:
                yield update_pb2.SubmitRequest(zstd=frame())
                return
            for chunk in codec.chunks(data):
                yield update_pb2.SubmitRequest(chunk=chunk)

        stub = target.members["mallory"].updates
        reply: list[Any] = []
        outcome = met(lambda: reply.append(stub.Submit(messages(), timeout=CALL_SECONDS)))
        return reply[0].reason if reply else outcome

    return send


def _initial(target: Target) -> str:
    """The same header as version 0 of a job whose manifest says 73 MB and whose terms name these very bytes."""
    data = million_tensors()
    empty = Manifest((TensorSpec("w", (1,), "trainable"),))
    room = (len(data) - empty.file_bytes + 4) // 4
    manifest = Manifest((TensorSpec("w", (room,), "trainable"),))
    data = data.ljust(manifest.file_bytes, b" ")[: manifest.file_bytes]
    terms = _terms(target, initial_sha256=canonical.sha256(data), manifest_sha256=manifest.digest())
    parts = submission(terms, manifest.encode(), b"archive", data)
    return met(lambda: target.admin.admin.SubmitJob(parts, timeout=CALL_SECONDS))


def _terms(target: Target, **changes: str) -> JobTerms:
    assert target.terms is not None
    return target.terms.model_copy(update=changes)


# --- documents --------------------------------------------------------------------------------------------------------


def _submission(terms: bytes, manifest: bytes) -> Callable[[Target], str]:
    def send(target: Target) -> str:
        parts = submission(terms, manifest, b"archive", b"x" * MANIFEST.file_bytes)
        return met(lambda: target.admin.admin.SubmitJob(parts, timeout=CALL_SECONDS))

    return send


def lists(size: int) -> bytes:
    return b"[" + b",".join([b"[]"] * ((size - 2) // 3)) + b"]"


def nested(size: int) -> bytes:
    return b"[" * (size // 2) + b"]" * (size // 2)


def small_tensors() -> bytes:
    """A manifest that holds, of as many tensors as fit into one."""
    one = [{"name": f"{number:05x}", "role": "buffer", "shape": []} for number in range(17_000)]
    return json.dumps(one, separators=(",", ":")).encode()


JOB_IDS, LEASES, KEYS = b"\x0a", b"\x12", b"\x22"  # field tags of what repeats
UNDER = CONTROL - 64  # just under the bound of every message that carries no bulk data
BULK_UNDER = limits.REQUEST_MESSAGE - 64
FOUR = 4 * MIB

MESSAGES = (
    Hostile("4 MB of empty job ids", MEMBER, "Federation/NextTask", "size_limit",
            _unbounded(MEMBER, "Federation/NextTask", "unary_unary", repeated(JOB_IDS, FOUR))),
    Hostile("4 MB of empty leases in a heartbeat", MEMBER, "Federation/Session", "size_limit",
            _session(heartbeat(repeated(LEASES, FOUR)))),
    Hostile("4 MB of empty keys", STRANGER, "Enrolment/Enrol", "size_limit",
            _unbounded(STRANGER, "Enrolment/Enrol", "unary_unary", repeated(KEYS, FOUR))),
    Hostile("empty job ids, just under the bound", MEMBER, "Federation/NextTask", "size_limit",
            _raw(MEMBER, "Federation/NextTask", "unary_unary", repeated(JOB_IDS, UNDER))),
    Hostile("empty leases, just under the bound", MEMBER, "Federation/Session", "size_limit",
            _session(heartbeat(repeated(LEASES, UNDER)))),
    Hostile("empty keys, just under the bound", STRANGER, "Enrolment/Enrol", "size_limit",
            _raw(STRANGER, "Enrolment/Enrol", "unary_unary", repeated(KEYS, UNDER))),
    Hostile("a chunk of unknown empty fields", MEMBER, "Updates/Submit", "malformed",
            _raw(MEMBER, "Updates/Submit", "stream_unary", repeated(b"\x7a", BULK_UNDER))),
    Hostile("a header of unknown empty fields", ADMIN, "Admin/SubmitJob", "malformed",
            _raw(ADMIN, "Admin/SubmitJob", "stream_unary", repeated(b"\x7a", BULK_UNDER))),
    Hostile("gzip bomb, unary", MEMBER, "Federation/NextTask", NOT_TAKEN,
            _bomb(MEMBER, "Federation/NextTask", "unary_unary")),
    Hostile("gzip bomb, server stream", MEMBER, "Federation/FetchModel", NOT_TAKEN,
            _bomb(MEMBER, "Federation/FetchModel", "unary_stream")),
    Hostile("gzip bomb, client stream", MEMBER, "Updates/Submit", NOT_TAKEN,
            _bomb(MEMBER, "Updates/Submit", "stream_unary")),
    Hostile("gzip bomb, both streams", MEMBER, "Federation/Session", NOT_TAKEN,
            _bomb(MEMBER, "Federation/Session", "stream_stream")),
    Hostile("gzip bomb, administrator", ADMIN, "Admin/SubmitJob", NOT_TAKEN,
            _bomb(ADMIN, "Admin/SubmitJob", "stream_unary")),
    Hostile("gzip bomb, before authentication", STRANGER, "Enrolment/Begin", NOT_TAKEN,
            _bomb(STRANGER, "Enrolment/Begin", "unary_unary")),
    Hostile("gzip bomb instead of a token", STRANGER, "Enrolment/Enrol", NOT_TAKEN,
            _bomb(STRANGER, "Enrolment/Enrol", "unary_unary")),
    Hostile("zstd bomb instead of a chunk", MEMBER, "Updates/Submit", "size_limit",
            _upload(lambda: bytes(MANIFEST.file_bytes), lambda: zstandard.compress(bytes(BOMB)))),
    Hostile("73 MB safetensors header as an update", MEMBER, "Updates/Submit", "size_limit",
            _upload(million_tensors)),
    Hostile("73 MB safetensors header as version 0", ADMIN, "Admin/SubmitJob", "size_limit", _initial),
    Hostile("1 MB safetensors header of empty lists", MEMBER, "Updates/Submit", "size_limit",
            _upload(wide_header)),
    Hostile("1 MB safetensors header of tensors", MEMBER, "Updates/Submit", "name_mismatch",
            _upload(lambda: million_tensors(limits.HEADER - 1024))),
    Hostile("manifest of empty lists", ADMIN, "Admin/SubmitJob", "malformed",
            _submission(b"{}", lists(limits.MANIFEST))),
    Hostile("manifest nested without end", ADMIN, "Admin/SubmitJob", "malformed",
            _submission(b"{}", nested(limits.MANIFEST))),
    Hostile("manifest of 17,000 tensors", ADMIN, "Admin/SubmitJob", "size_limit",
            _submission(b"{}", small_tensors())),
    Hostile("decision of empty lists", MEMBER, "Federation/Decide", "malformed",
            _raw(MEMBER, "Federation/Decide", "unary_unary",
                 federation_pb2.DecideRequest(envelope=lists(limits.ENVELOPE)).SerializeToString())),
    Hostile("evaluation nested without end", MEMBER, "Updates/SubmitEvaluation", "malformed",
            _raw(MEMBER, "Updates/SubmitEvaluation", "unary_unary",
                 update_pb2.SubmitEvaluationRequest(envelope=nested(limits.ENVELOPE)).SerializeToString())),
    Hostile("certificate request of 120 kB", STRANGER, "Enrolment/Enrol", "size_limit",
            _raw(STRANGER, "Enrolment/Enrol", "unary_unary",
                 enrolment_pb2.EnrolRequest(token_id="x", token=bytes(32), csr=bytes(120_000)).SerializeToString())),
    Hostile("job reason of 120 kB", ADMIN, "Admin/ChangeJob", "malformed",
            _raw(ADMIN, "Admin/ChangeJob", "unary_unary",
                 admin_pb2.ChangeJobRequest(job="x", action="pause", reason="\U0001f4a3" * 30_000).SerializeToString())),
)  # fmt: skip
