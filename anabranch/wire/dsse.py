"""DSSE: signatures over a payload and its type, so that one made for one purpose fits no other.

Specification: https://github.com/secure-systems-lab/dsse, envelope v1.0.0 and protocol v1.0.0. Stricter here:
one canonical JSON form (RFC 8785), padded standard base64 only, Ed25519 only, and a key id that is the
SHA-256 of the raw public key and must match: the key is always chosen by the verifier, never by the envelope.
"""

import base64
import binascii
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from anabranch.errors import Misuse, Reason, Refused
from anabranch.wire import canonical, limits


@dataclass(frozen=True)
class Signature:
    keyid: str  # hex SHA-256 of the signer's raw Ed25519 public key
    sig: bytes  # 64 bytes over pae(payload_type, payload)


@dataclass(frozen=True)
class Envelope:
    payload_type: str
    payload: bytes
    signatures: tuple[Signature, ...]

    def encode(self) -> bytes:
        """Canonical JSON. Raises Misuse above limits.ENVELOPE bytes."""
        data = canonical.encode(
            {
                "payload": _to_base64(self.payload),
                "payloadType": self.payload_type,
                "signatures": [{"keyid": s.keyid, "sig": _to_base64(s.sig)} for s in self.signatures],
            }
        )
        if len(data) > limits.ENVELOPE:
            raise Misuse(f"an envelope of {len(data)} bytes is above the limit of {limits.ENVELOPE}")
        return data


def keyid(public: bytes) -> str:
    """The name of an Ed25519 key: hex SHA-256 of its 32 raw public bytes."""
    return canonical.sha256(public)


def pae(payload_type: str, payload: bytes) -> bytes:
    """Pre-authentication encoding (DSSE protocol, "Signature Definition"): what is signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign(payload_type: str, payload: bytes, key: Ed25519PrivateKey) -> Envelope:
    """An envelope with one signature."""
    signature = Signature(keyid(key.public_key().public_bytes_raw()), key.sign(pae(payload_type, payload)))
    return Envelope(payload_type, payload, (signature,))


def verify(envelope: Envelope, public: bytes, payload_type: str) -> bytes:
    """The payload, signed by `public` (32 raw bytes) as `payload_type`. Raises Refused(BAD_SIGNATURE)."""
    if envelope.payload_type != payload_type:
        raise Refused(
            Reason.BAD_SIGNATURE,
            f"signed as {envelope.payload_type[:80]!r}, but {payload_type!r} is expected here",
        )
    wanted = keyid(public)
    for signature in envelope.signatures:
        if signature.keyid == wanted:
            verify_signature(signature.sig, public, payload_type, envelope.payload)
            return envelope.payload
    raise Refused(
        Reason.BAD_SIGNATURE, f"no signature by key {wanted}; sign with the key registered at enrolment"
    )


def verify_signature(sig: bytes, public: bytes, payload_type: str, payload: bytes) -> None:
    """A detached signature, as a log entry carries it. Raises Refused(BAD_SIGNATURE)."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(sig, pae(payload_type, payload))
    except (InvalidSignature, ValueError) as error:
        raise Refused(
            Reason.BAD_SIGNATURE,
            f"the signature of key {keyid(public)} does not fit the {payload_type!r} payload",
        ) from error


def parse_envelope(data: bytes) -> Envelope:
    """Read an envelope; nothing in it is believed before `verify`. Raises Refused(SIZE_LIMIT, MALFORMED)."""
    if len(data) > limits.ENVELOPE:
        raise Refused(Reason.SIZE_LIMIT, f"envelope of {len(data)} bytes; at most {limits.ENVELOPE}")
    # Its own object, one list, an object per signature; base64 and hex hold no bracket. Reading thousands of empty lists
    # only to refuse them would cost a server a tenth of a second per message.
    if data.count(b"{") + data.count(b"[") > 2 + limits.SIGNATURES:
        raise Refused(Reason.MALFORMED, "envelope: more objects and lists than an envelope has")
    match canonical.decode(data):
        case {"payload": str(payload), "payloadType": str(kind), "signatures": list(signatures), **rest} if (
            not rest
        ):
            parsed = tuple(_parse_signature(signature) for signature in signatures)
        case _:
            raise Refused(Reason.MALFORMED, "envelope: expected exactly payload, payloadType and signatures")
    if not 1 <= len(parsed) <= limits.SIGNATURES or len({s.keyid for s in parsed}) != len(parsed):
        raise Refused(
            Reason.MALFORMED, f"envelope: expected 1 to {limits.SIGNATURES} signatures by different keys"
        )
    return Envelope(kind, _from_base64(payload, "payload"), parsed)


def _parse_signature(value: Any) -> Signature:
    match value:
        case {"keyid": str(name), "sig": str(sig), **rest} if not rest:
            return Signature(name, _from_base64(sig, "sig"))
    raise Refused(Reason.MALFORMED, "envelope: a signature is exactly keyid and sig")


def _to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _from_base64(text: str, where: str) -> bytes:
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise Refused(Reason.MALFORMED, f"envelope: {where} is not base64: {error}") from error
    if _to_base64(data) != text:  # leftover bits in the last character: a second spelling of the same bytes
        raise Refused(Reason.MALFORMED, f"envelope: {where} is not canonical base64")
    return data
