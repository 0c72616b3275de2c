"""The one table between our errors and gRPC status.

The status code is for proxies, dashboards and other people's tools; our own peers read the two trailing
metadata keys, which carry kind and reason exactly. What concerns our storage or our bugs crosses the wire
without a word about internals.
"""

from collections.abc import Mapping
from typing import Any, Final

import grpc

from anabranch import durable
from anabranch.errors import AnabranchError, Conflict, Corrupt, Misuse, Reason, Refused, Unavailable
from anabranch.wire import limits

ERROR_KEY: Final = "anabranch-error"  # refused | conflict | unavailable | corrupt | misuse
REASON_KEY: Final = "anabranch-reason"  # a Reason, with refused only

Metadata = tuple[tuple[str, str], ...]
_Code = grpc.StatusCode

REFUSED: Final[Mapping[Reason, grpc.StatusCode]] = {
    Reason.MALFORMED: _Code.INVALID_ARGUMENT,
    Reason.SIZE_LIMIT: _Code.OUT_OF_RANGE,
    Reason.DIGEST_MISMATCH: _Code.INVALID_ARGUMENT,
    Reason.BAD_SIGNATURE: _Code.INVALID_ARGUMENT,
    Reason.BAD_LEASE: _Code.FAILED_PRECONDITION,
    Reason.REPLAYED: _Code.ALREADY_EXISTS,
    Reason.UNKNOWN_BASE: _Code.FAILED_PRECONDITION,
    Reason.TOO_STALE: _Code.FAILED_PRECONDITION,
    Reason.SHAPE_MISMATCH: _Code.INVALID_ARGUMENT,
    Reason.DTYPE_MISMATCH: _Code.INVALID_ARGUMENT,
    Reason.NAME_MISMATCH: _Code.INVALID_ARGUMENT,
    Reason.NONFINITE: _Code.INVALID_ARGUMENT,
    Reason.NORM_EXCEEDED: _Code.INVALID_ARGUMENT,
    Reason.JOB_ENDED: _Code.FAILED_PRECONDITION,
    Reason.JOB_NOT_APPROVED: _Code.PERMISSION_DENIED,
    Reason.JOB_NOT_RUNNING: _Code.FAILED_PRECONDITION,
    Reason.CODE_DIGEST_MISMATCH: _Code.INVALID_ARGUMENT,
    Reason.POLICY: _Code.PERMISSION_DENIED,
    Reason.DP_BUDGET: _Code.PERMISSION_DENIED,
    Reason.QUOTA: _Code.RESOURCE_EXHAUSTED,
    Reason.REVOKED_IDENTITY: _Code.UNAUTHENTICATED,
    Reason.DUPLICATE_IDENTITY: _Code.FAILED_PRECONDITION,
    Reason.BAD_CERTIFICATE: _Code.UNAUTHENTICATED,
    Reason.BAD_TOKEN: _Code.UNAUTHENTICATED,
    Reason.WRONG_ROLE: _Code.PERMISSION_DENIED,
    Reason.NOT_FOUND: _Code.NOT_FOUND,
    Reason.TASK_FAILED: _Code.FAILED_PRECONDITION,
    Reason.TASK_HUNG: _Code.FAILED_PRECONDITION,
    Reason.TASK_GARBAGE: _Code.FAILED_PRECONDITION,
    Reason.TASK_OUT_OF_MEMORY: _Code.FAILED_PRECONDITION,
}
KINDS: Final[Mapping[str, tuple[type[AnabranchError], grpc.StatusCode]]] = {
    "conflict": (Conflict, _Code.ABORTED),
    "unavailable": (Unavailable, _Code.UNAVAILABLE),
    "corrupt": (Corrupt, _Code.DATA_LOSS),
    "misuse": (Misuse, _Code.INTERNAL),
}
_SILENT: Final[Mapping[str, str]] = {
    "corrupt": "the server's storage is damaged and it has stopped; its operator must restore it",
    "misuse": "the server failed on a bug of ours; its operator finds the cause in the server's log",
}
_REASONS = frozenset(reason.value for reason in Reason)

# Codes of gRPC itself that waiting cannot cure; from a peer of ours they would carry our metadata.
_FOREIGN: Final[Mapping[grpc.StatusCode, str]] = {
    _Code.UNIMPLEMENTED: "the peer does not know this method: another release, or no Anabranch server",
    _Code.INVALID_ARGUMENT: "the peer could not read our message",
    _Code.NOT_FOUND: "the peer is no Anabranch server",
}


def to_status(error: BaseException) -> tuple[grpc.StatusCode, str, Metadata]:
    """Status code, message and trailing metadata for any exception; an unknown one becomes misuse."""
    if isinstance(error, Refused):
        return (
            REFUSED[error.code],
            _header(str(error)),
            ((ERROR_KEY, "refused"), (REASON_KEY, error.code.value)),
        )
    kind, message = _kind(error)
    return KINDS[kind][1], _header(message), ((ERROR_KEY, kind),)


def from_rpc_error(error: grpc.RpcError) -> AnabranchError:
    """The error the peer meant; without our metadata, what gRPC or a proxy on the way meant.

    Every request may be sent twice, so what only the transport knows is Unavailable: wait and retry.
    """
    code, message = error.code(), error.details() or "no details"
    trailing: Any = error.trailing_metadata() or ()  # pairs; values of other people's keys may be bytes
    metadata = {key: value for key, value in trailing if isinstance(value, str)}
    kind = metadata.get(ERROR_KEY, "")
    if kind == "refused":
        return _refused(metadata.get(REASON_KEY, ""), code, message)
    if kind in KINDS:
        return KINDS[kind][0](message)
    if code is _Code.RESOURCE_EXHAUSTED:
        return Refused(Reason.SIZE_LIMIT, f"gRPC refused the size of a message: {message}")
    if code is _Code.UNIMPLEMENTED and "ompression algorithm" in message:
        return Refused(Reason.MALFORMED, f"compressed messages are not taken ({message})")
    if code in _FOREIGN:
        return Misuse(f"{_FOREIGN[code]} ({code.name}: {message})")
    return Unavailable(f"no answer from the server ({code.name}: {message})")


def _kind(error: BaseException) -> tuple[str, str]:
    for kind, (cls, _) in KINDS.items():
        if isinstance(error, cls):
            return kind, _SILENT.get(kind, str(error))
    if isinstance(error, OSError) and error.errno in durable.UNWRITABLE:
        return "unavailable", "the server's disk is full or read-only; retry when its operator has seen to it"
    return "misuse", _SILENT["misuse"]


def _refused(reason: str, code: grpc.StatusCode, message: str) -> Refused:
    """A reason of a newer release keeps its meaning as a refusal, under the nearest reason known here."""
    if reason in _REASONS:
        return Refused(Reason(reason), message)
    nearest = next((known for known, status in REFUSED.items() if status is code), Reason.MALFORMED)
    return Refused(nearest, f"{message} (reason {reason[:40]!r}, unknown to this release)")


def _header(message: str) -> str:
    """Fits an HTTP/2 header block, whatever the message quotes."""
    return message if len(message) <= limits.STATUS_MESSAGE else message[: limits.STATUS_MESSAGE - 1] + "…"
