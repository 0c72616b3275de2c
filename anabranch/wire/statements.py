"""What a silo signs: in-toto Statement v1 payloads, one predicate type each, in canonical JSON.

Specification: https://github.com/in-toto/attestation, spec v1 "Statement". The subject is the thing spoken
about, by digest; the predicate is a closed schema: an unknown or missing field, or a second spelling of the
same statement, is refused.
"""

import builtins
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from anabranch.errors import Reason, Refused
from anabranch.terms import Digest, Name, explain
from anabranch.tlog.claim import PrivacyClaim
from anabranch.wire import canonical, limits

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
UPDATE_TYPE: Final = "https://anabranch.dev/update/v1"
DECISION_TYPE: Final = "https://anabranch.dev/decision/v1"
EVALUATION_TYPE: Final = "https://anabranch.dev/evaluation/v1"


def _hexfloat(text: str) -> str:
    canonical.from_hexfloat(text)
    return text


def _time(text: str) -> str:
    canonical.from_utc(text)
    return text


_CLOSED = ConfigDict(frozen=True, extra="forbid", strict=True)
Id = Annotated[str, Field(pattern=r"^[0-9a-z](?:[0-9a-z_-]{0,62}[0-9a-z])?$")]  # as in log entries
Trust = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,253}[a-z0-9])?$")]
Count = Annotated[int, Field(ge=0, le=2**53 - 1)]
Hexfloat = Annotated[str, AfterValidator(_hexfloat)]
Time = Annotated[str, AfterValidator(_time)]
Nonce = Annotated[str, Field(pattern=r"^[0-9a-f]{16,64}$")]
LABEL = r"^[ -~]{1,64}$"
Label = Annotated[str, Field(pattern=LABEL)]
Metrics = Annotated[dict[Label, Hexfloat], Field(max_length=limits.METRICS)]


class SeenCheckpoint(BaseModel):
    """The newest tree head its signer had verified: every statement is also gossip about the log."""

    model_config = _CLOSED

    size: Count
    root: Digest


class UpdateStatement(BaseModel):
    """One update. Subject: the delta file."""

    model_config = _CLOSED

    update: Id  # chosen by the silo before the first attempt to send
    federation: Trust
    job: Id
    lease: Id
    nonce: Nonce
    sequence: Count  # of this silo's updates in this job, growing
    base_version: Count
    base_sha256: Digest  # of the version's parameters
    delta_sha256: Digest
    bytes: Count  # of the delta file
    terms_sha256: Digest
    manifest_sha256: Digest
    num_examples: Count | None = None  # only when the terms weight by examples: it ends up in the log
    steps: Count
    release: Label  # of the agent
    checkpoint: SeenCheckpoint
    privacy: PrivacyClaim | None = None  # exactly where the terms have [privacy]

    def encode(self) -> builtins.bytes:
        """The payload to sign: canonical JSON, without what is None."""
        predicate = self.model_dump(mode="json", exclude={"update", "delta_sha256"}, exclude_none=True)
        return _statement(self.update, self.delta_sha256, UPDATE_TYPE, predicate)


class DecisionStatement(BaseModel):
    """What a person at a silo decided about a job. Subject: the job terms."""

    model_config = _CLOSED

    federation: Trust
    job: Id
    terms_sha256: Digest
    decision: Literal["approve", "deny", "withdraw"]
    silo: Name
    time: Time
    revival: bool | None = (
        None  # whether its models may teach: said of jobs with [revival], when they are approved
    )

    def encode(self) -> bytes:
        """The payload to sign: canonical JSON, without `revival` when it is None."""
        predicate = self.model_dump(mode="json", exclude={"job", "terms_sha256"}, exclude_none=True)
        return _statement(self.job, self.terms_sha256, DECISION_TYPE, predicate)


class EvaluationStatement(BaseModel):
    """What a silo measured on its own records. Subject: the view of the model that it evaluated."""

    model_config = _CLOSED

    federation: Trust
    job: Id
    lease: Id
    nonce: Nonce
    version: Count
    view_sha256: Digest
    split: Label
    metrics: Metrics
    num_examples: Count

    def encode(self) -> bytes:
        """The payload to sign: canonical JSON."""
        predicate = self.model_dump(mode="json", exclude={"job", "view_sha256"})
        return _statement(self.job, self.view_sha256, EVALUATION_TYPE, predicate)


def parse_update(payload: bytes) -> UpdateStatement:
    """Raises Refused(SIZE_LIMIT, MALFORMED)."""
    name, digest, predicate = _open(payload, UPDATE_TYPE)
    return _build(UpdateStatement, payload, predicate, {"update": name, "delta_sha256": digest})


def parse_decision(payload: bytes) -> DecisionStatement:
    """Raises Refused(SIZE_LIMIT, MALFORMED)."""
    name, digest, predicate = _open(payload, DECISION_TYPE)
    return _build(DecisionStatement, payload, predicate, {"job": name, "terms_sha256": digest})


def parse_evaluation(payload: bytes) -> EvaluationStatement:
    """Raises Refused(SIZE_LIMIT, MALFORMED)."""
    name, digest, predicate = _open(payload, EVALUATION_TYPE)
    return _build(EvaluationStatement, payload, predicate, {"job": name, "view_sha256": digest})


def _statement(name: str, digest: str, predicate_type: str, predicate: dict[str, Any]) -> bytes:
    return canonical.encode(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": name, "digest": {"sha256": digest}}],
            "predicateType": predicate_type,
            "predicate": predicate,
        }
    )


def _open(payload: bytes, predicate_type: str) -> tuple[Any, Any, dict[str, Any]]:
    if len(payload) > limits.ENVELOPE:
        raise Refused(Reason.SIZE_LIMIT, f"statement of {len(payload)} bytes; at most {limits.ENVELOPE}")
    match canonical.decode(payload):
        case {
            "_type": str(kind),
            "subject": [{"name": name, "digest": {"sha256": digest}}],
            "predicateType": str(found),
            "predicate": dict(predicate),
        } if kind == STATEMENT_TYPE and found == predicate_type:
            return name, digest, predicate
    raise Refused(
        Reason.MALFORMED, f"expected an in-toto statement with one subject and predicate {predicate_type}"
    )


_Statement = TypeVar("_Statement", UpdateStatement, DecisionStatement, EvaluationStatement)


def _build(
    kind: type[_Statement], payload: bytes, predicate: dict[str, Any], subject: dict[str, Any]
) -> _Statement:
    """Validated, and `payload` again when encoded: so a statement has one spelling and one digest."""
    if subject.keys() & predicate.keys():
        raise Refused(Reason.MALFORMED, f"{kind.__name__}: the predicate repeats what its subject says")
    try:
        statement = kind.model_validate({**predicate, **subject})
    except ValidationError as error:
        raise Refused(Reason.MALFORMED, f"{kind.__name__}: {explain(error)}") from error
    if statement.encode() != payload:
        raise Refused(Reason.MALFORMED, f"{kind.__name__}: a field is present that must be left out here")
    return statement
