"""The join bundle an administrator hands to a silo out of band, and what stays of it once the token is used.

Read leniently in white space, because people copy it, and strictly in everything else. The pins are the trust
anchor: a bundle whose CA does not fit them is refused before anything is dialled.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from anabranch.errors import Reason, Refused
from anabranch.terms import Name, explain
from anabranch.wire import canonical, identity, limits


def _time(text: str) -> str:
    canonical.from_utc(text)
    return text


_CLOSED = ConfigDict(frozen=True, extra="forbid")
Address = Annotated[
    str,
    Field(pattern=r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?):[1-9][0-9]{0,4}$"),
]
Pin = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Pins = Annotated[tuple[Pin, ...], Field(min_length=1, max_length=8)]
Trust = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,253}[a-z0-9])?$")]
Line = Annotated[str, Field(pattern=r"^[!-~]{1,512}$")]
Pem = Annotated[str, Field(pattern=r"^[\n -~]*$")]


class FederationInfo(BaseModel):
    """What an agent or an admin keeps as `federation.json`: where the federation is, what it must prove."""

    model_config = _CLOSED

    server: Address  # mTLS
    enrolment: Address  # server-authenticated TLS
    ca_pem: Pem
    ca_pins: Pins  # SPKI of every certificate in ca_pem
    federation: Trust
    log_origin: Line
    log_vkey: Line
    silo: Name | None = None  # None: an admin's

    def encode(self) -> bytes:
        """One line of JSON."""
        return _encode(self)


class JoinBundle(BaseModel):
    """`FederationInfo` with the one-time token of one silo. Whoever holds it can enrol as that silo until it
    is used.
    """

    model_config = _CLOSED

    server: Address
    enrolment: Address
    ca_pem: Pem
    ca_pins: Pins
    federation: Trust
    log_origin: Line
    log_vkey: Line
    silo: Name
    token_id: Line
    token: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)  # 32 bytes
    expires: Annotated[str, AfterValidator(_time)]

    def encode(self) -> bytes:
        """One line of JSON."""
        return _encode(self)

    def federation_info(self) -> FederationInfo:
        """The part worth keeping; the token is not in it."""
        return FederationInfo(**self.model_dump(exclude={"token_id", "token", "expires"}))


def parse_bundle(data: bytes) -> JoinBundle:
    """Raises Refused(SIZE_LIMIT, MALFORMED), and Refused(BAD_CERTIFICATE) if ca_pem does not fit ca_pins."""
    bundle = _parse(JoinBundle, data)
    check_pins(bundle.ca_pem.encode(), bundle.ca_pins)
    return bundle


def parse_federation(data: bytes) -> FederationInfo:
    """Raises as `parse_bundle`."""
    info = _parse(FederationInfo, data)
    check_pins(info.ca_pem.encode(), info.ca_pins)
    return info


def check_pins(ca_pem: bytes, pins: Sequence[str]) -> None:
    """Every certificate of `ca_pem` is pinned, and nothing else is in it: TLS also trusts blocks that are labelled
    otherwise, which our parser would pass over. Raises Refused(BAD_CERTIFICATE).
    """
    chain = identity.parse_chain(ca_pem)
    if b"".join(cert.public_bytes(Encoding.PEM) for cert in chain) != ca_pem:
        raise Refused(
            Reason.BAD_CERTIFICATE,
            "ca_pem holds more than its certificates; ask the administrator for a new bundle",
        )
    for cert in chain:
        pin = identity.spki_pin(cert)
        if pin not in pins:
            raise Refused(
                Reason.BAD_CERTIFICATE,
                f"the CA {pin} is not one of the pinned {', '.join(pins)}: somebody replaced it, or this is "
                "another federation's; ask the administrator for a new bundle",
            )


_Model = TypeVar("_Model", FederationInfo, JoinBundle)


def _encode(model: BaseModel) -> bytes:
    return canonical.encode(model.model_dump(mode="json", exclude_none=True))


def _parse(kind: type[_Model], data: bytes) -> _Model:
    if len(data) > limits.BUNDLE:
        raise Refused(Reason.SIZE_LIMIT, f"{kind.__name__} of {len(data)} bytes; at most {limits.BUNDLE}")
    try:
        return kind.model_validate(json.loads(data, object_pairs_hook=_without_duplicates))
    except ValidationError as error:
        raise Refused(
            Reason.MALFORMED, f"{kind.__name__}: {explain(error)}"
        ) from None  # the cause shows the token
    except (ValueError, RecursionError):
        raise Refused(Reason.MALFORMED, f"{kind.__name__}: not JSON; copy the whole file again") from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return entries
