"""The console's connection to a server: mTLS with an admin certificate that `anabranch-server init` wrote.

Every receipt the server returns is checked against the log key the admin directory pins, so a person is only told
"logged" when the entry is proven.
"""

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from anabranch.errors import Reason, Refused, Unavailable, plain
from anabranch.tlog.note import NoteVerifier
from anabranch.tlog.receipt import verify_receipt
from anabranch.v1 import admin_pb2_grpc, audit_pb2
from anabranch.wire import codec, status, tls
from anabranch.wire.bundle import FederationInfo, parse_federation
from anabranch.wire.identity import load_private, parse_chain

UNARY_SECONDS = 30.0
TEXT = 200  # characters of one thing the server says
M = TypeVar("M", bound=Message)
FILES = ("cert.pem", "key.pem", "ca.pem", "federation.json")


@dataclass(frozen=True)
class Admin:
    """An open connection. `stub` is the generated `Admin` stub; call it inside `answering`."""

    federation: FederationInfo
    stub: Any


@dataclass(frozen=True)
class Logged:
    """An entry of the audit log whose inclusion proof was verified."""

    index: int
    type: str
    detail: dict[str, Any]


def load_federation(directory: Path) -> FederationInfo:
    """What `directory` pins. Raises Refused(NOT_FOUND) naming the file, else as `parse_federation`."""
    missing = [name for name in FILES if not (directory / name).is_file()]
    if missing:
        inside = sorted(str(one.parent) for one in directory.glob("admin/*/cert.pem"))
        if inside:
            raise Refused(
                Reason.NOT_FOUND,
                f"{directory} is the directory of a server: name an administrator's in it, --admin {inside[0]}",
            )
        raise Refused(
            Reason.NOT_FOUND,
            f"{directory} has no {', '.join(missing)}: name the admin directory that `anabranch-server init` wrote"
            " (SERVER/admin/NAME) with --admin or ANABRANCH_ADMIN",
        )
    try:
        return parse_federation((directory / "federation.json").read_bytes())
    except Refused as error:
        raise Refused(error.code, f"{directory / 'federation.json'}: {error}; {_anew(directory)}") from error


def _check_identity(directory: Path, key: bytes, certificate: bytes) -> None:
    """Here, because TLS only says that the connection broke. Raises Refused naming the file or the date."""
    for name, parse, data in (("key.pem", load_private, key), ("cert.pem", parse_chain, certificate)):
        try:
            parse(data)
        except Refused as error:
            raise Refused(error.code, f"{directory / name}: {error}; {_anew(directory)}") from error
    until = parse_chain(certificate)[0].not_valid_after_utc
    if until < datetime.now(UTC):
        raise Refused(
            Reason.BAD_CERTIFICATE,
            f"the certificate in {directory} was good until {until:%F %T} UTC by this machine's clock; {_anew(directory)}",
        )


def _anew(directory: Path) -> str:
    return f"on the server's machine, `anabranch-server admin SERVER {directory.name}` makes it anew"


@contextmanager
def connect(directory: Path) -> Iterator[Admin]:
    """Connect as the admin whose certificate lies in `directory`. Raises as `load_federation`."""
    federation = load_federation(directory)
    ca, key, certificate = ((directory / name).read_bytes() for name in ("ca.pem", "key.pem", "cert.pem"))
    _check_identity(directory, key, certificate)
    with answering(federation), tls.channel(federation.server, ca, key, certificate) as channel:
        yield Admin(federation, admin_pb2_grpc.AdminStub(channel))  # type: ignore[no-untyped-call]


@contextmanager
def answering(federation: FederationInfo) -> Iterator[None]:
    """Turn a failed call into the error the server meant; say which server did not answer."""
    try:
        yield
    except grpc.RpcError as error:
        meant = status.from_rpc_error(error)
        if isinstance(meant, Unavailable):
            raise Unavailable(
                f"{federation.server}: {meant}; see that `anabranch-server serve` runs there and can be reached from here"
            ) from error
        raise meant from error


def presentable(message: M) -> M:
    """A server's message, every text in it as a terminal may be shown it."""
    for field, value in message.ListFields():
        if isinstance(value, str):
            setattr(message, field.name, plain(value, TEXT))
        elif isinstance(value, Message):
            presentable(value)
        elif isinstance(value, MutableMapping):  # metrics, by name
            numbers = {plain(name, TEXT): number for name, number in value.items()}
            value.clear()
            value.update(numbers)
        elif field.message_type is not None:
            for one in value:
                presentable(one)
        elif field.type == field.TYPE_STRING:  # several
            texts = [plain(one, TEXT) for one in value]
            value.clear()
            value.extend(texts)
    return message


def logged(admin: Admin, receipt: audit_pb2.Receipt) -> Logged:
    """Verify a receipt. Raises Refused(DIGEST_MISMATCH | BAD_SIGNATURE) when the server cannot prove the entry."""
    pinned = admin.federation
    checked = codec.receipt_from_proto(receipt)
    entry, _ = verify_receipt(checked, NoteVerifier.from_vkey(pinned.log_vkey), pinned.log_origin)
    detail = entry.detail if isinstance(entry.detail, dict) else entry.detail.model_dump(exclude_none=True)
    return Logged(checked.index, entry.type, detail)
