from anabranch.v1 import audit_pb2 as _audit_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TaskKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_KIND_UNSPECIFIED: _ClassVar[TaskKind]
    TRAIN: _ClassVar[TaskKind]
    EVALUATE: _ClassVar[TaskKind]
TASK_KIND_UNSPECIFIED: TaskKind
TRAIN: TaskKind
EVALUATE: TaskKind

class Hello(_message.Message):
    __slots__ = ("protocol_min", "protocol_max", "release")
    PROTOCOL_MIN_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_MAX_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    protocol_min: int
    protocol_max: int
    release: str
    def __init__(self, protocol_min: _Optional[int] = ..., protocol_max: _Optional[int] = ..., release: _Optional[str] = ...) -> None: ...

class LeaseProgress(_message.Message):
    __slots__ = ("lease", "step", "steps", "samples_per_second", "tokens_per_second")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    lease: str
    step: int
    steps: int
    samples_per_second: float
    tokens_per_second: float
    def __init__(self, lease: _Optional[str] = ..., step: _Optional[int] = ..., steps: _Optional[int] = ..., samples_per_second: _Optional[float] = ..., tokens_per_second: _Optional[float] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("sequence", "progress")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    progress: _containers.RepeatedCompositeFieldContainer[LeaseProgress]
    def __init__(self, sequence: _Optional[int] = ..., progress: _Optional[_Iterable[_Union[LeaseProgress, _Mapping]]] = ...) -> None: ...

class AgentMessage(_message.Message):
    __slots__ = ("hello", "heartbeat")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    heartbeat: Heartbeat
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("protocol", "release", "heartbeat_seconds", "server_time")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SERVER_TIME_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    release: str
    heartbeat_seconds: int
    server_time: int
    def __init__(self, protocol: _Optional[int] = ..., release: _Optional[str] = ..., heartbeat_seconds: _Optional[int] = ..., server_time: _Optional[int] = ...) -> None: ...

class JobChanged(_message.Message):
    __slots__ = ("job", "status")
    JOB_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    job: str
    status: str
    def __init__(self, job: _Optional[str] = ..., status: _Optional[str] = ...) -> None: ...

class AbortLease(_message.Message):
    __slots__ = ("lease", "reason")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    lease: str
    reason: str
    def __init__(self, lease: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Revoked(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Drain(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ServerMessage(_message.Message):
    __slots__ = ("welcome", "job_changed", "abort", "revoked", "drain")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    JOB_CHANGED_FIELD_NUMBER: _ClassVar[int]
    ABORT_FIELD_NUMBER: _ClassVar[int]
    REVOKED_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    job_changed: JobChanged
    abort: AbortLease
    revoked: Revoked
    drain: Drain
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., job_changed: _Optional[_Union[JobChanged, _Mapping]] = ..., abort: _Optional[_Union[AbortLease, _Mapping]] = ..., revoked: _Optional[_Union[Revoked, _Mapping]] = ..., drain: _Optional[_Union[Drain, _Mapping]] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("id", "terms", "status", "decision", "head", "submitted", "manifest", "revival", "newest")
    ID_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    REVIVAL_FIELD_NUMBER: _ClassVar[int]
    NEWEST_FIELD_NUMBER: _ClassVar[int]
    id: str
    terms: bytes
    status: str
    decision: str
    head: int
    submitted: _audit_pb2.Receipt
    manifest: bytes
    revival: bool
    newest: _audit_pb2.Receipt
    def __init__(self, id: _Optional[str] = ..., terms: _Optional[bytes] = ..., status: _Optional[str] = ..., decision: _Optional[str] = ..., head: _Optional[int] = ..., submitted: _Optional[_Union[_audit_pb2.Receipt, _Mapping]] = ..., manifest: _Optional[bytes] = ..., revival: _Optional[bool] = ..., newest: _Optional[_Union[_audit_pb2.Receipt, _Mapping]] = ...) -> None: ...

class ListJobsRequest(_message.Message):
    __slots__ = ("seen",)
    SEEN_FIELD_NUMBER: _ClassVar[int]
    seen: int
    def __init__(self, seen: _Optional[int] = ...) -> None: ...

class ListJobsReply(_message.Message):
    __slots__ = ("jobs",)
    JOBS_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[Job]
    def __init__(self, jobs: _Optional[_Iterable[_Union[Job, _Mapping]]] = ...) -> None: ...

class FetchArchiveRequest(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: str
    def __init__(self, job: _Optional[str] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class DecideRequest(_message.Message):
    __slots__ = ("job", "envelope", "seen")
    JOB_FIELD_NUMBER: _ClassVar[int]
    ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    job: str
    envelope: bytes
    seen: int
    def __init__(self, job: _Optional[str] = ..., envelope: _Optional[bytes] = ..., seen: _Optional[int] = ...) -> None: ...

class DecideReply(_message.Message):
    __slots__ = ("receipt",)
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    receipt: _audit_pb2.Receipt
    def __init__(self, receipt: _Optional[_Union[_audit_pb2.Receipt, _Mapping]] = ...) -> None: ...

class View(_message.Message):
    __slots__ = ("version", "density", "encoding", "mask_digest", "digest", "bytes")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DENSITY_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    MASK_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    version: int
    density: float
    encoding: str
    mask_digest: str
    digest: str
    bytes: int
    def __init__(self, version: _Optional[int] = ..., density: _Optional[float] = ..., encoding: _Optional[str] = ..., mask_digest: _Optional[str] = ..., digest: _Optional[str] = ..., bytes: _Optional[int] = ...) -> None: ...

class Lease(_message.Message):
    __slots__ = ("id", "job", "kind", "view", "nonce", "deadline", "split", "local_steps", "issued")
    ID_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    SPLIT_FIELD_NUMBER: _ClassVar[int]
    LOCAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    ISSUED_FIELD_NUMBER: _ClassVar[int]
    id: str
    job: str
    kind: TaskKind
    view: View
    nonce: str
    deadline: int
    split: str
    local_steps: int
    issued: _audit_pb2.Receipt
    def __init__(self, id: _Optional[str] = ..., job: _Optional[str] = ..., kind: _Optional[_Union[TaskKind, str]] = ..., view: _Optional[_Union[View, _Mapping]] = ..., nonce: _Optional[str] = ..., deadline: _Optional[int] = ..., split: _Optional[str] = ..., local_steps: _Optional[int] = ..., issued: _Optional[_Union[_audit_pb2.Receipt, _Mapping]] = ...) -> None: ...

class Wait(_message.Message):
    __slots__ = ("seconds", "reason")
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    seconds: float
    reason: str
    def __init__(self, seconds: _Optional[float] = ..., reason: _Optional[str] = ...) -> None: ...

class NextTaskRequest(_message.Message):
    __slots__ = ("jobs", "seen", "cycles_left")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    CYCLES_LEFT_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedScalarFieldContainer[str]
    seen: int
    cycles_left: int
    def __init__(self, jobs: _Optional[_Iterable[str]] = ..., seen: _Optional[int] = ..., cycles_left: _Optional[int] = ...) -> None: ...

class NextTaskReply(_message.Message):
    __slots__ = ("lease", "wait")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    lease: Lease
    wait: Wait
    def __init__(self, lease: _Optional[_Union[Lease, _Mapping]] = ..., wait: _Optional[_Union[Wait, _Mapping]] = ...) -> None: ...

class FetchModelRequest(_message.Message):
    __slots__ = ("job", "digest", "offset", "seen")
    JOB_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    job: str
    digest: str
    offset: int
    seen: int
    def __init__(self, job: _Optional[str] = ..., digest: _Optional[str] = ..., offset: _Optional[int] = ..., seen: _Optional[int] = ...) -> None: ...

class ModelHeader(_message.Message):
    __slots__ = ("view", "receipts")
    VIEW_FIELD_NUMBER: _ClassVar[int]
    RECEIPTS_FIELD_NUMBER: _ClassVar[int]
    view: View
    receipts: _containers.RepeatedCompositeFieldContainer[_audit_pb2.Receipt]
    def __init__(self, view: _Optional[_Union[View, _Mapping]] = ..., receipts: _Optional[_Iterable[_Union[_audit_pb2.Receipt, _Mapping]]] = ...) -> None: ...

class FetchModelReply(_message.Message):
    __slots__ = ("header", "chunk", "zstd")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    ZSTD_FIELD_NUMBER: _ClassVar[int]
    header: ModelHeader
    chunk: bytes
    zstd: bytes
    def __init__(self, header: _Optional[_Union[ModelHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ..., zstd: _Optional[bytes] = ...) -> None: ...

class ReleaseLeaseRequest(_message.Message):
    __slots__ = ("lease", "reason", "exception", "code_line", "seen")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    EXCEPTION_FIELD_NUMBER: _ClassVar[int]
    CODE_LINE_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    lease: str
    reason: str
    exception: str
    code_line: str
    seen: int
    def __init__(self, lease: _Optional[str] = ..., reason: _Optional[str] = ..., exception: _Optional[str] = ..., code_line: _Optional[str] = ..., seen: _Optional[int] = ...) -> None: ...

class ReleaseLeaseReply(_message.Message):
    __slots__ = ("receipt",)
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    receipt: _audit_pb2.Receipt
    def __init__(self, receipt: _Optional[_Union[_audit_pb2.Receipt, _Mapping]] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("csr", "seen")
    CSR_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    csr: bytes
    seen: int
    def __init__(self, csr: _Optional[bytes] = ..., seen: _Optional[int] = ...) -> None: ...

class RenewReply(_message.Message):
    __slots__ = ("certificate_chain", "receipt")
    CERTIFICATE_CHAIN_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    certificate_chain: bytes
    receipt: _audit_pb2.Receipt
    def __init__(self, certificate_chain: _Optional[bytes] = ..., receipt: _Optional[_Union[_audit_pb2.Receipt, _Mapping]] = ...) -> None: ...
