"""What each type of audit entry says: closed schemas, one per type.

Types are additive and a type's meaning never changes: new content gets a new type, which an older auditor
reports as "not understood" while the tree still verifies. Every text is a digest, an identifier, a name or a
code with a bounded alphabet, so that no path, host name, address or sentence can enter a log that all parties
read.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from anabranch.terms import Digest, Name
from anabranch.tlog.fields import (
    CODE_LINE,
    CODE_LINE_LENGTH,
    EXCEPTION,
    METHOD,
    VKEY,
    Count,
    Ed25519Public,
    FieldName,
    HexFloat,
    Id,
    IdentityUri,
    Metric,
    Nonce,
    OperatorReason,
    Optimizer,
    Origin,
    Pin,
    ReasonText,
    Release,
    Serial,
    Split,
    Time,
    Word,
)
from anabranch.tlog.revivals import RevivalPerformed, RevivalSkipped
from anabranch.wire import canonical

SPANS = 1000  # in one entry, whose length is limited


class LogGenesis(BaseModel, extra="forbid", frozen=True):
    origin: Origin
    vkey: Annotated[str, Field(pattern=VKEY)]
    ca_pins: tuple[Pin, ...]
    numeric_profile: Word


class Recovered(BaseModel, extra="forbid", frozen=True):
    """What a start found unfinished: frozen aggregation steps, and updates put back into their buffers."""

    open_steps: Count
    requeued: Count


class ServerStarted(BaseModel, extra="forbid", frozen=True):
    release: Release
    epoch: Count
    recovered: Recovered | None = None


class SiloInvited(BaseModel, extra="forbid", frozen=True):
    silo: Name
    token_id: Id
    expires: Time


class PublicKey(BaseModel, extra="forbid", frozen=True):
    purpose: Word  # "update", "approver"
    public: Ed25519Public  # the raw 32 bytes in hex; its SHA-256 is the `keyid` of signatures


class SiloEnrolled(BaseModel, extra="forbid", frozen=True):
    silo: Name
    agent: Count
    token_id: Id
    csr_sha256: Digest
    keys: tuple[PublicKey, ...]


class SiloRevoked(BaseModel, extra="forbid", frozen=True):
    silo: Name
    reason: ReasonText
    certificates: tuple[Digest, ...]
    updates: tuple[Id, ...]  # retired with it


class SiloPresence(BaseModel, extra="forbid", frozen=True):
    """`silo.lost`: no heartbeat while holding a lease. `silo.returned`: heard of again."""

    silo: Name


class CertIssued(BaseModel, extra="forbid", frozen=True):
    identity: IdentityUri
    cert_sha256: Digest
    spki_sha256: Digest
    serial: Serial  # lowercase hex
    not_before: Time
    not_after: Time


class CertRenewed(BaseModel, extra="forbid", frozen=True):
    identity: IdentityUri
    cert_sha256: Digest
    spki_sha256: Digest
    serial: Serial
    not_before: Time
    not_after: Time
    previous_cert_sha256: Digest


class AuthFailed(BaseModel, extra="forbid", frozen=True):
    """Failed attempts of one kind, counted together so that nobody can flood the log."""

    code: Word  # an `anabranch.errors.Reason`
    count: Annotated[int, Field(strict=True, ge=1, le=canonical.MAX_INT)]
    method: Annotated[str, Field(pattern=METHOD)]  # "unknown" for a method we do not serve


class JobSubmitted(BaseModel, extra="forbid", frozen=True):
    name: Name
    terms_sha256: Digest
    archive_sha256: Digest
    initial_sha256: Digest
    manifest_sha256: Digest


class JobDecision(BaseModel, extra="forbid", frozen=True):
    """One silo approves, denies or withdraws; `sigs` carries its approver's signature."""

    silo: Name
    terms_sha256: Digest
    revival: Annotated[bool, Field(strict=True)] | None = None  # its models may teach; of jobs with [revival]


class JobStarted(BaseModel, extra="forbid", frozen=True):
    silos: tuple[Name, ...]


class JobChanged(BaseModel, extra="forbid", frozen=True):
    reason: OperatorReason
    head: Count


class ModelPublished(BaseModel, extra="forbid", frozen=True):
    version: Count
    parent: Count | None = None  # absent for version 0 only
    parameters_sha256: Digest
    optimizer_sha256: Digest | None = None
    ema_sha256: Digest | None = None
    bytes: Count
    step: Id | None = None  # the aggregation that made it

    @model_validator(mode="after")
    def _descends(self) -> "ModelPublished":
        if (self.parent is None) != (self.version == 0):
            raise ValueError("version 0 has no parent, every other version has one")
        if self.parent is not None and self.parent >= self.version:
            raise ValueError("a version is newer than its parent")
        return self


class ModelEncoded(BaseModel, extra="forbid", frozen=True):
    version: Count
    tier: Name | None = None  # whose silos get it; absent: those that are in none
    density: HexFloat
    encoding: Word
    mask_sha256: Digest | None = None
    view_sha256: Digest
    bytes: Count


class ModelEvaluated(BaseModel, extra="forbid", frozen=True):
    """Metrics and record counts are in the sealed part; `sigs` carries the silo's evaluation statement."""

    version: Count
    silo: Name
    split: Split


class ModelBest(BaseModel, extra="forbid", frozen=True):
    version: Count
    metric: Metric
    value: HexFloat


class ModelExported(BaseModel, extra="forbid", frozen=True):
    version: Count
    sha256: Digest
    selector: Annotated[str, Field(pattern=r"^(?:head|best|ema|[0-9]{1,16})$")]


class LeaseIssued(BaseModel, extra="forbid", frozen=True):
    lease: Id
    silo: Name
    kind: Literal["train", "evaluate"]
    version: Count
    view_sha256: Digest
    deadline: Time
    nonce: Nonce
    local_steps: Count
    group: Id | None = None  # of silos that arrive together (fedcompass): the lease that founded it
    expected: Time | None = None  # when it is to arrive; `deadline` is how long it is waited for


class LeaseReleased(BaseModel, extra="forbid", frozen=True):
    """The task could not be done. The traceback stays at the silo."""

    lease: Id
    silo: Name
    reason: ReasonText
    exception: Annotated[str, Field(pattern=EXCEPTION)] | None = None
    code_line: Annotated[str, Field(pattern=CODE_LINE, max_length=CODE_LINE_LENGTH)] | None = None


class UpdateReceived(BaseModel, extra="forbid", frozen=True):
    update: Id
    silo: Name
    lease: Id
    sequence: Count
    version: Count  # the base, from the lease
    staleness: Count  # head - base when it arrived
    bytes: Count
    delta_sha256: Digest
    statement_sha256: Digest
    norm: HexFloat


class UpdateRefused(BaseModel, extra="forbid", frozen=True):
    update: Id | None = None
    silo: Name
    lease: Id | None = None
    code: Word  # an `anabranch.errors.Reason`
    delta_sha256: Digest | None = None


class UpdateRetired(BaseModel, extra="forbid", frozen=True):
    update: Id
    silo: Name
    reason: Literal["job_ended", "withdrawn", "superseded"]


class AggregationInput(BaseModel, extra="forbid", frozen=True):
    update: Id
    silo: Name
    delta_sha256: Digest
    base: Count
    staleness: Count
    weight: HexFloat
    coefficient: HexFloat  # multiplies the delta in the direction
    arrived: Count | None = None  # of the `windows` since its silo approved, this one included (fedfix)
    windows: Count | None = None


class FurtherTerm(BaseModel, extra="forbid", frozen=True):
    """What the direction holds besides the deltas of the inputs: a version's parameters, or a delta merged before.
    Its digest stands in the entry that published or received it.
    """

    version: Count | None = None
    update: Id | None = None
    coefficient: HexFloat

    @model_validator(mode="after")
    def _names_one(self) -> "FurtherTerm":
        if (self.version is None) == (self.update is None):
            raise ValueError("a term is a version or an update")
        return self


class AggregationPerformed(BaseModel, extra="forbid", frozen=True):
    """Everything a replay needs besides the files: inputs and further terms in order, and each scalar that came from
    a reduction.
    """

    version: Count  # the new one
    base: Count  # the head it was applied to
    step: Id
    strategy: Word
    inputs: Annotated[tuple[AggregationInput, ...], Field(min_length=1)]
    further: Annotated[tuple[FurtherTerm, ...], Field(min_length=1)] | None = None
    participants: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None  # where a rule counts them
    revival: Id | None = None  # whose step, times the terms' gain, was added behind the server optimizer
    scalars: dict[FieldName, HexFloat]
    optimizer: Optimizer
    absent: tuple[Name, ...]  # silos waited for in vain
    closed_by: Literal["full", "max_wait", "interval", "first", "latest"]
    numeric_profile: Word


class Span(BaseModel, extra="forbid", frozen=True):
    """Versions `first` to `last`, both included."""

    first: Count
    last: Count

    @model_validator(mode="after")
    def _forwards(self) -> "Span":
        if self.last < self.first:
            raise ValueError("a span ends before it begins")
        return self


class RetentionPruned(BaseModel, extra="forbid", frozen=True):
    """Content of a job that the server no longer keeps. Its digests stay in the log, and so do signed statements;
    content that anything else names as well stays too.
    """

    kind: Literal["snapshots", "deltas"]  # "deltas": of every update of the job, which has ended
    rule: Literal["updates", "snapshots"]  # the key of the terms' [retention] whose time is over
    seconds: Count  # what the terms say there, rounded down
    versions: Annotated[tuple[Span, ...], Field(max_length=SPANS)]  # whose snapshots; none for deltas

    @model_validator(mode="after")
    def _names_versions(self) -> "RetentionPruned":
        if bool(self.versions) != (self.kind == "snapshots"):
            raise ValueError("snapshots are of versions, deltas of all updates of a job")
        return self


DETAILS: Mapping[str, type[BaseModel]] = MappingProxyType(
    {
        "log.genesis": LogGenesis,
        "server.started": ServerStarted,
        "silo.invited": SiloInvited,
        "silo.enrolled": SiloEnrolled,
        "silo.revoked": SiloRevoked,
        "silo.lost": SiloPresence,
        "silo.returned": SiloPresence,
        "cert.issued": CertIssued,
        "cert.renewed": CertRenewed,
        "auth.failed": AuthFailed,
        "job.submitted": JobSubmitted,
        "job.approved": JobDecision,
        "job.denied": JobDecision,
        "job.withdrawn": JobDecision,
        "job.started": JobStarted,
        "job.paused": JobChanged,
        "job.resumed": JobChanged,
        "job.aborted": JobChanged,
        "job.completed": JobChanged,
        "model.published": ModelPublished,
        "model.encoded": ModelEncoded,
        "model.evaluated": ModelEvaluated,
        "model.best": ModelBest,
        "model.exported": ModelExported,
        "lease.issued": LeaseIssued,
        "lease.released": LeaseReleased,
        "update.received": UpdateReceived,
        "update.refused": UpdateRefused,
        "update.retired": UpdateRetired,
        "aggregation.performed": AggregationPerformed,
        "revival.performed": RevivalPerformed,
        "revival.skipped": RevivalSkipped,
        "retention.pruned": RetentionPruned,
    }
)
