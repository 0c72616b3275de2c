"""One audit entry: the envelope around a typed detail, and its canonical bytes.

The bytes are what the Merkle tree hashes; there is exactly one encoding of an entry. The log index is an
entry's sequence number, so it is no field. Facts that are private to a silo, or that can be guessed from a
hash because there are few of them, travel as a salted commitment in `sealed`; whoever holds values and salt
can open it to an auditor.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator, model_validator

from anabranch.errors import Misuse, Reason, Refused
from anabranch.terms import Digest, explain
from anabranch.tlog.details import DETAILS
from anabranch.tlog.fields import FEDERATION, ID, IDENTITY, ORIGIN, Id, IdentityUri, ReasonText, Time, Word
from anabranch.wire import canonical

ENTRY_TYPES: Mapping[str, type[BaseModel]] = DETAILS
MAX_ENTRY = 65_535  # bytes: where the tile format ends; an aggregation names up to 150 updates or silos
TARGET_KINDS = frozenset(
    {"log", "silo", "certificate", "job", "model", "lease", "update", "revival", "server"}
)
AUTH = frozenset({"mtls", "token", "local"})

_UUID7 = r"^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"
_TYPE = r"^[a-z][a-z0-9_]{0,31}(?:\.[a-z][a-z0-9_]{0,31}){1,3}$"
_VERSION_OF = r"^[0-9a-z](?:[0-9a-z_-]{0,62}[0-9a-z])?/(?:0|[1-9][0-9]{0,15})$"  # <job>/<version>
TARGET_ID = {"log": ORIGIN, "model": _VERSION_OF, "server": IDENTITY, "certificate": IDENTITY}
_PAYLOAD_TYPE = r"^application/[a-z0-9][a-z0-9.+-]{0,79}$"
_SIGNATURE = r"^[A-Za-z0-9+/]{85}[AQgw]==$"  # base64 of 64 bytes, no stray bits

OF_A_JOB = frozenset(
    {
        type
        for type in ENTRY_TYPES
        if type.startswith(("job.", "model.", "lease.", "aggregation.", "revival.", "retention."))
    }
    | {"update.received", "update.retired"}
)  # the envelope says of which; a refused update may belong to none
SIGNED = frozenset({"job.approved", "job.denied", "job.withdrawn", "model.evaluated", "update.received"})
_REASON_CODED = frozenset({"auth.failed", "update.refused"})


class Actor(BaseModel, extra="forbid", frozen=True):
    """Who did it, and how we know."""

    id: IdentityUri
    auth: Word  # mtls | token | local
    cert_sha256: Digest | None = None


class Target(BaseModel, extra="forbid", frozen=True):
    kind: Word  # one of TARGET_KINDS
    id: str  # an identifier, or what `TARGET_ID` says of its kind
    sha256: Digest | None = None

    @model_validator(mode="after")
    def _named_by_kind(self) -> "Target":
        if not any(re.fullmatch(pattern, self.id) for pattern in (ID, TARGET_ID.get(self.kind, ID))):
            raise ValueError(f"{self.id[:80]!r} does not name a {self.kind}")
        return self


class Outcome(BaseModel, extra="forbid", frozen=True):
    status: Literal["success", "failure", "denied", "pending"] = "success"
    reason: ReasonText | None = None


class ModelRef(BaseModel, extra="forbid", frozen=True):
    name: Id
    version: Annotated[str, Field(pattern=r"^(?:0|[1-9][0-9]{0,15})$")]
    sha256: Digest


class Sealed(BaseModel, extra="forbid", frozen=True):
    """A commitment to values kept elsewhere; made by `seal`."""

    commit: Digest
    alg: Literal["sha256-salted/v1"] = "sha256-salted/v1"
    fields: Annotated[tuple[Word, ...], Field(min_length=1)]


class Sig(BaseModel, extra="forbid", frozen=True):
    """Ed25519 over the DSSE pre-authentication encoding of (payloadType, payload); the payload is named by
    digest.
    """

    keyid: Digest  # SHA-256 of the raw public key
    payloadType: Annotated[str, Field(pattern=_PAYLOAD_TYPE)]  # DSSE's spelling
    sig: Annotated[str, Field(pattern=_SIGNATURE)]
    payload_sha256: Digest


class Entry(BaseModel, extra="forbid", frozen=True):
    """The envelope. `detail` is an instance of `ENTRY_TYPES[type]`, or a plain dict when the type is not
    understood.
    """

    v: Annotated[int, Field(strict=True, ge=1, le=1)] = 1
    id: Annotated[str, Field(pattern=_UUID7)]
    type: Annotated[str, Field(pattern=_TYPE)]
    time: Time
    fed: Annotated[str, Field(pattern=FEDERATION)]
    observer: IdentityUri  # who wrote the record
    actor: Actor
    action: str  # the type without its first word
    target: Target
    outcome: Outcome
    job: Id | None = None
    model: ModelRef | None = None
    detail: BaseModel | dict[str, Any]
    sealed: Sealed | None = None
    sigs: Annotated[tuple[Sig, ...], Field(min_length=1)] | None = None

    @property
    def understood(self) -> bool:
        """Whether this release knows the type. If not, its bytes are in the tree all the same."""
        return self.type in ENTRY_TYPES

    @field_validator("detail", mode="plain")
    @classmethod
    def _typed(cls, value: Any, info: ValidationInfo) -> BaseModel | dict[str, Any]:
        schema = ENTRY_TYPES.get(info.data.get("type", ""))
        if schema is None:
            if not isinstance(value, dict):
                raise ValueError("a detail is an object")
            return value
        try:
            return schema.model_validate(value)
        except ValidationError as error:
            raise ValueError(explain(error)) from error

    @model_validator(mode="after")
    def _coherent(self) -> "Entry":
        action = self.type.partition(".")[2]
        if self.action != action:
            raise ValueError(f"the action of {self.type} is {action!r}, not {self.action!r}")
        for uri in (self.observer, self.actor.id):
            if not uri.startswith(f"spiffe://{self.fed}/"):
                raise ValueError(f"{uri} is outside the federation {self.fed}")
        if self.understood:
            self._keep_rules()
        return self

    def _keep_rules(self) -> None:
        """Rules of the types we know; a later type may bring kinds and ways to authenticate of its own."""
        if self.target.kind not in TARGET_KINDS:
            raise ValueError(f"target: {self.target.kind!r} is none of {', '.join(sorted(TARGET_KINDS))}")
        if self.actor.auth not in AUTH:
            raise ValueError(f"actor: {self.actor.auth!r} is none of {', '.join(sorted(AUTH))}")
        if self.type in OF_A_JOB and self.job is None:
            raise ValueError(f"{self.type} names its job")
        if self.type in SIGNED and self.sigs is None:
            raise ValueError(f"{self.type} carries the silo's signature")
        if self.type == "model.evaluated" and self.sealed is None:
            raise ValueError("model.evaluated seals its metrics")


def new_entry(
    type: str,
    *,
    id: str,
    time: str,
    fed: str,
    observer: str,
    actor: Actor,
    target: Target,
    detail: BaseModel | Mapping[str, Any],
    outcome: Outcome | None = None,
    job: str | None = None,
    model: ModelRef | None = None,
    sealed: Sealed | None = None,
    sigs: Sequence[Sig] = (),
) -> Entry:
    """An entry of a known type, checked against its schema; `outcome` defaults to success.

    `id` comes from `uuid7`, `time` from `canonical.utc`. Raises Misuse naming the field: an entry we may not
    write is our bug, whoever the value came from, because it should have been refused before it got here.
    """
    if type not in ENTRY_TYPES:
        raise Misuse(f"{type!r} is no entry type; add its schema to anabranch.tlog.details")
    try:
        entry = Entry(
            id=id,
            type=type,
            time=time,
            fed=fed,
            observer=observer,
            actor=actor,
            action=type.partition(".")[2],
            target=target,
            outcome=outcome or Outcome(),
            job=job,
            model=model,
            detail=detail if isinstance(detail, BaseModel) else dict(detail),
            sealed=sealed,
            sigs=tuple(sigs) or None,
        )
    except ValidationError as error:
        raise Misuse(f"entry {type}: {explain(error)}") from error
    return entry


def encode_entry(entry: Entry) -> bytes:
    """Canonical JSON of an entry, the bytes of its leaf. Absent fields are left out.

    Raises Misuse when the type is not ours to write, a reason code is not on the list, or it exceeds
    MAX_ENTRY.
    """
    if not entry.understood:
        raise Misuse(f"entries of type {entry.type!r} are not ours to write")
    document = _document(entry)
    code = document["detail"].get("code")
    if entry.type in _REASON_CODED and code not in set(Reason):
        raise Misuse(f"entry {entry.type}: {code!r} is no reason code of anabranch.errors")
    data = canonical.encode(document)
    if len(data) > MAX_ENTRY:
        raise Misuse(f"entry {entry.type} of {len(data)} bytes exceeds {MAX_ENTRY}")
    return data


def parse_entry(data: bytes) -> Entry:
    """Read an entry from its leaf bytes.

    Raises Refused(SIZE_LIMIT) above MAX_ENTRY, Refused(MALFORMED) when `data` is not canonical or breaks the
    schema of a type we know. An unknown type parses, with `understood` False, as long as its envelope is one.
    """
    if len(data) > MAX_ENTRY:
        raise Refused(Reason.SIZE_LIMIT, f"audit entry of {len(data)} bytes exceeds {MAX_ENTRY}")
    document = canonical.decode(data)
    try:
        entry = Entry.model_validate(document)
    except ValidationError as error:
        raise Refused(Reason.MALFORMED, f"audit entry: {explain(error)}") from error
    if _document(entry) != document:
        raise Refused(Reason.MALFORMED, f"audit entry {entry.type}: an absent field is left out, not null")
    return entry


def seal(values: Mapping[str, Any], salt: bytes) -> Sealed:
    """Commit to `values` (canonical-JSON-able: reals as hex floats) under 32 random bytes of `salt`.

    commit = SHA-256("fl-audit-commit/v1" ‖ 0x00 ‖ salt ‖ JCS(values)). Keep both: without them it opens to
    nobody.
    """
    if len(salt) != 32:
        raise Misuse(f"a salt has 32 random bytes, not {len(salt)}")
    commit = canonical.sha256(b"fl-audit-commit/v1\x00" + salt + canonical.encode(dict(values)))
    return Sealed(commit=commit, fields=tuple(sorted(values)))


def uuid7(milliseconds: int, random: bytes) -> str:
    """A version 7 UUID (RFC 9562 §5.7) of unix `milliseconds` and 10 `random` bytes; it sorts by time."""
    if not 0 <= milliseconds < 2**48 or len(random) != 10:
        raise Misuse("uuid7 takes 48 bits of unix milliseconds and 10 random bytes")
    rand_a, rand_b = int.from_bytes(random[:2]) & 0xFFF, int.from_bytes(random[2:]) & (2**62 - 1)
    text = f"{milliseconds << 80 | 7 << 76 | rand_a << 64 | 2 << 62 | rand_b:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _document(entry: Entry) -> dict[str, Any]:
    """The entry as plain JSON values, absent fields left out; an unknown type's detail exactly as it came."""
    document = entry.model_dump(mode="json", exclude_none=True, exclude={"detail"})
    detail = entry.detail
    if isinstance(detail, BaseModel):
        detail = detail.model_dump(mode="json", exclude_none=True)
    return {**document, "detail": detail}
