from anabranch.v1 import audit_pb2 as _audit_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SubmitJobHeader(_message.Message):
    __slots__ = ("terms", "archive_bytes", "initial_bytes", "manifest")
    TERMS_FIELD_NUMBER: _ClassVar[int]
    ARCHIVE_BYTES_FIELD_NUMBER: _ClassVar[int]
    INITIAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    terms: bytes
    archive_bytes: int
    initial_bytes: int
    manifest: bytes
    def __init__(self, terms: _Optional[bytes] = ..., archive_bytes: _Optional[int] = ..., initial_bytes: _Optional[int] = ..., manifest: _Optional[bytes] = ...) -> None: ...

class SubmitJobRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: SubmitJobHeader
    chunk: bytes
    def __init__(self, header: _Optional[_Union[SubmitJobHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class SubmitJobReply(_message.Message):
    __slots__ = ("job", "receipt")
    JOB_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    job: str
    receipt: _audit_pb2.Receipt
    def __init__(self, job: _Optional[str] = ..., receipt: _Optional[_Union[_audit_pb2.Receipt, _Mapping]] = ...) -> None: ...

class ListJobStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListJobStatusReply(_message.Message):
    __slots__ = ("jobs", "server")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    SERVER_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[JobStatus]
    server: ServerStatus
    def __init__(self, jobs: _Optional[_Iterable[_Union[JobStatus, _Mapping]]] = ..., server: _Optional[_Union[ServerStatus, _Mapping]] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("job", "interval_seconds")
    JOB_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    job: str
    interval_seconds: float
    def __init__(self, job: _Optional[str] = ..., interval_seconds: _Optional[float] = ...) -> None: ...

class Overview(_message.Message):
    __slots__ = ("jobs", "server", "server_time")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    SERVER_FIELD_NUMBER: _ClassVar[int]
    SERVER_TIME_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[JobStatus]
    server: ServerStatus
    server_time: int
    def __init__(self, jobs: _Optional[_Iterable[_Union[JobStatus, _Mapping]]] = ..., server: _Optional[_Union[ServerStatus, _Mapping]] = ..., server_time: _Optional[int] = ...) -> None: ...

class ServerStatus(_message.Message):
    __slots__ = ("release", "memory_bytes", "memory_peak_bytes", "disk_free_bytes", "disk_bytes", "received_per_second", "sent_per_second", "sessions")
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_PEAK_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    SENT_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    release: str
    memory_bytes: int
    memory_peak_bytes: int
    disk_free_bytes: int
    disk_bytes: int
    received_per_second: float
    sent_per_second: float
    sessions: int
    def __init__(self, release: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., memory_peak_bytes: _Optional[int] = ..., disk_free_bytes: _Optional[int] = ..., disk_bytes: _Optional[int] = ..., received_per_second: _Optional[float] = ..., sent_per_second: _Optional[float] = ..., sessions: _Optional[int] = ...) -> None: ...

class Tally(_message.Message):
    __slots__ = ("outcome", "reason", "count")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    outcome: str
    reason: str
    count: int
    def __init__(self, outcome: _Optional[str] = ..., reason: _Optional[str] = ..., count: _Optional[int] = ...) -> None: ...

class SiloStatus(_message.Message):
    __slots__ = ("silo", "decision", "connected", "last_seen", "base", "training", "step", "steps", "received", "merged", "refused", "retired", "mean_staleness", "bytes", "last_reason", "state", "lease", "leased_seconds", "late_seconds", "elsewhere", "tallies", "failures", "retry_seconds", "samples_per_second", "tokens_per_second", "whole_bytes")
    SILO_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    MERGED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    RETIRED_FIELD_NUMBER: _ClassVar[int]
    MEAN_STALENESS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    LAST_REASON_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    LEASED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LATE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ELSEWHERE_FIELD_NUMBER: _ClassVar[int]
    TALLIES_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    RETRY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    WHOLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    silo: str
    decision: str
    connected: bool
    last_seen: int
    base: int
    training: bool
    step: int
    steps: int
    received: int
    merged: int
    refused: int
    retired: int
    mean_staleness: float
    bytes: int
    last_reason: str
    state: str
    lease: str
    leased_seconds: float
    late_seconds: float
    elsewhere: str
    tallies: _containers.RepeatedCompositeFieldContainer[Tally]
    failures: int
    retry_seconds: float
    samples_per_second: float
    tokens_per_second: float
    whole_bytes: int
    def __init__(self, silo: _Optional[str] = ..., decision: _Optional[str] = ..., connected: _Optional[bool] = ..., last_seen: _Optional[int] = ..., base: _Optional[int] = ..., training: _Optional[bool] = ..., step: _Optional[int] = ..., steps: _Optional[int] = ..., received: _Optional[int] = ..., merged: _Optional[int] = ..., refused: _Optional[int] = ..., retired: _Optional[int] = ..., mean_staleness: _Optional[float] = ..., bytes: _Optional[int] = ..., last_reason: _Optional[str] = ..., state: _Optional[str] = ..., lease: _Optional[str] = ..., leased_seconds: _Optional[float] = ..., late_seconds: _Optional[float] = ..., elsewhere: _Optional[str] = ..., tallies: _Optional[_Iterable[_Union[Tally, _Mapping]]] = ..., failures: _Optional[int] = ..., retry_seconds: _Optional[float] = ..., samples_per_second: _Optional[float] = ..., tokens_per_second: _Optional[float] = ..., whole_bytes: _Optional[int] = ...) -> None: ...

class Evaluation(_message.Message):
    __slots__ = ("version", "silo", "split", "metrics")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SILO_FIELD_NUMBER: _ClassVar[int]
    SPLIT_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    version: int
    silo: str
    split: str
    metrics: _containers.ScalarMap[str, float]
    def __init__(self, version: _Optional[int] = ..., silo: _Optional[str] = ..., split: _Optional[str] = ..., metrics: _Optional[_Mapping[str, float]] = ...) -> None: ...

class Share(_message.Message):
    __slots__ = ("leases", "active", "why")
    LEASES_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    leases: int
    active: int
    why: str
    def __init__(self, leases: _Optional[int] = ..., active: _Optional[int] = ..., why: _Optional[str] = ...) -> None: ...

class RevivalStatus(_message.Message):
    __slots__ = ("teachers", "tallies", "version", "agreement_before", "agreement_after", "seconds", "accuracy_before", "accuracy_after")
    TEACHERS_FIELD_NUMBER: _ClassVar[int]
    TALLIES_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    AGREEMENT_BEFORE_FIELD_NUMBER: _ClassVar[int]
    AGREEMENT_AFTER_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_BEFORE_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_AFTER_FIELD_NUMBER: _ClassVar[int]
    teachers: _containers.RepeatedScalarFieldContainer[str]
    tallies: _containers.RepeatedCompositeFieldContainer[Tally]
    version: int
    agreement_before: float
    agreement_after: float
    seconds: float
    accuracy_before: float
    accuracy_after: float
    def __init__(self, teachers: _Optional[_Iterable[str]] = ..., tallies: _Optional[_Iterable[_Union[Tally, _Mapping]]] = ..., version: _Optional[int] = ..., agreement_before: _Optional[float] = ..., agreement_after: _Optional[float] = ..., seconds: _Optional[float] = ..., accuracy_before: _Optional[float] = ..., accuracy_after: _Optional[float] = ...) -> None: ...

class JobStatus(_message.Message):
    __slots__ = ("job", "name", "status", "reason", "head", "versions", "best", "buffered", "buffer", "buffer_age_seconds", "silos", "evaluations", "server_time", "versions_per_hour", "updates_per_minute", "eta_seconds", "share", "revival", "terms_sha256", "head_sha256")
    JOB_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    BEST_FIELD_NUMBER: _ClassVar[int]
    BUFFERED_FIELD_NUMBER: _ClassVar[int]
    BUFFER_FIELD_NUMBER: _ClassVar[int]
    BUFFER_AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SILOS_FIELD_NUMBER: _ClassVar[int]
    EVALUATIONS_FIELD_NUMBER: _ClassVar[int]
    SERVER_TIME_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    UPDATES_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    ETA_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    REVIVAL_FIELD_NUMBER: _ClassVar[int]
    TERMS_SHA256_FIELD_NUMBER: _ClassVar[int]
    HEAD_SHA256_FIELD_NUMBER: _ClassVar[int]
    job: str
    name: str
    status: str
    reason: str
    head: int
    versions: int
    best: int
    buffered: int
    buffer: int
    buffer_age_seconds: float
    silos: _containers.RepeatedCompositeFieldContainer[SiloStatus]
    evaluations: _containers.RepeatedCompositeFieldContainer[Evaluation]
    server_time: int
    versions_per_hour: float
    updates_per_minute: float
    eta_seconds: float
    share: Share
    revival: RevivalStatus
    terms_sha256: str
    head_sha256: str
    def __init__(self, job: _Optional[str] = ..., name: _Optional[str] = ..., status: _Optional[str] = ..., reason: _Optional[str] = ..., head: _Optional[int] = ..., versions: _Optional[int] = ..., best: _Optional[int] = ..., buffered: _Optional[int] = ..., buffer: _Optional[int] = ..., buffer_age_seconds: _Optional[float] = ..., silos: _Optional[_Iterable[_Union[SiloStatus, _Mapping]]] = ..., evaluations: _Optional[_Iterable[_Union[Evaluation, _Mapping]]] = ..., server_time: _Optional[int] = ..., versions_per_hour: _Optional[float] = ..., updates_per_minute: _Optional[float] = ..., eta_seconds: _Optional[float] = ..., share: _Optional[_Union[Share, _Mapping]] = ..., revival: _Optional[_Union[RevivalStatus, _Mapping]] = ..., terms_sha256: _Optional[str] = ..., head_sha256: _Optional[str] = ...) -> None: ...

class ChangeJobRequest(_message.Message):
    __slots__ = ("job", "action", "reason")
    JOB_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    job: str
    action: str
    reason: str
    def __init__(self, job: _Optional[str] = ..., action: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ChangeJobReply(_message.Message):
    __slots__ = ("receipt",)
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    receipt: _audit_pb2.Receipt
    def __init__(self, receipt: _Optional[_Union[_audit_pb2.Receipt, _Mapping]] = ...) -> None: ...

class ExportModelRequest(_message.Message):
    __slots__ = ("job", "version")
    JOB_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    job: str
    version: str
    def __init__(self, job: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class ExportModelHeader(_message.Message):
    __slots__ = ("version", "digest", "bytes", "card", "receipt", "terms")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    CARD_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    version: int
    digest: str
    bytes: int
    card: bytes
    receipt: _audit_pb2.Receipt
    terms: bytes
    def __init__(self, version: _Optional[int] = ..., digest: _Optional[str] = ..., bytes: _Optional[int] = ..., card: _Optional[bytes] = ..., receipt: _Optional[_Union[_audit_pb2.Receipt, _Mapping]] = ..., terms: _Optional[bytes] = ...) -> None: ...

class ExportModelReply(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: ExportModelHeader
    chunk: bytes
    def __init__(self, header: _Optional[_Union[ExportModelHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class InviteSiloRequest(_message.Message):
    __slots__ = ("silo", "ttl_seconds")
    SILO_FIELD_NUMBER: _ClassVar[int]
    TTL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    silo: str
    ttl_seconds: int
    def __init__(self, silo: _Optional[str] = ..., ttl_seconds: _Optional[int] = ...) -> None: ...

class InviteSiloReply(_message.Message):
    __slots__ = ("bundle", "receipt")
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    bundle: bytes
    receipt: _audit_pb2.Receipt
    def __init__(self, bundle: _Optional[bytes] = ..., receipt: _Optional[_Union[_audit_pb2.Receipt, _Mapping]] = ...) -> None: ...

class Silo(_message.Message):
    __slots__ = ("name", "status", "certificate_not_after", "connected", "last_seen", "release")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_NOT_AFTER_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    name: str
    status: str
    certificate_not_after: int
    connected: bool
    last_seen: int
    release: str
    def __init__(self, name: _Optional[str] = ..., status: _Optional[str] = ..., certificate_not_after: _Optional[int] = ..., connected: _Optional[bool] = ..., last_seen: _Optional[int] = ..., release: _Optional[str] = ...) -> None: ...

class ListSilosRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListSilosReply(_message.Message):
    __slots__ = ("silos",)
    SILOS_FIELD_NUMBER: _ClassVar[int]
    silos: _containers.RepeatedCompositeFieldContainer[Silo]
    def __init__(self, silos: _Optional[_Iterable[_Union[Silo, _Mapping]]] = ...) -> None: ...

class RevokeSiloRequest(_message.Message):
    __slots__ = ("silo", "reason")
    SILO_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    silo: str
    reason: str
    def __init__(self, silo: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class RevokeSiloReply(_message.Message):
    __slots__ = ("receipt", "retired_updates")
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    RETIRED_UPDATES_FIELD_NUMBER: _ClassVar[int]
    receipt: _audit_pb2.Receipt
    retired_updates: int
    def __init__(self, receipt: _Optional[_Union[_audit_pb2.Receipt, _Mapping]] = ..., retired_updates: _Optional[int] = ...) -> None: ...
