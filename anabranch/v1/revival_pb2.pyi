from anabranch.v1 import audit_pb2 as _audit_pb2
from anabranch.v1 import federation_pb2 as _federation_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ClaimRequest(_message.Message):
    __slots__ = ("holding", "resting")
    HOLDING_FIELD_NUMBER: _ClassVar[int]
    RESTING_FIELD_NUMBER: _ClassVar[int]
    holding: _containers.RepeatedScalarFieldContainer[str]
    resting: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, holding: _Optional[_Iterable[str]] = ..., resting: _Optional[_Iterable[str]] = ...) -> None: ...

class ClaimReply(_message.Message):
    __slots__ = ("task", "wait", "permitted")
    TASK_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    PERMITTED_FIELD_NUMBER: _ClassVar[int]
    task: RevivalTask
    wait: _federation_pb2.Wait
    permitted: _containers.RepeatedCompositeFieldContainer[Permission]
    def __init__(self, task: _Optional[_Union[RevivalTask, _Mapping]] = ..., wait: _Optional[_Union[_federation_pb2.Wait, _Mapping]] = ..., permitted: _Optional[_Iterable[_Union[Permission, _Mapping]]] = ...) -> None: ...

class Permission(_message.Message):
    __slots__ = ("job", "silos")
    JOB_FIELD_NUMBER: _ClassVar[int]
    SILOS_FIELD_NUMBER: _ClassVar[int]
    job: str
    silos: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, job: _Optional[str] = ..., silos: _Optional[_Iterable[str]] = ...) -> None: ...

class RevivalTask(_message.Message):
    __slots__ = ("id", "job", "terms_sha256", "version", "head_sha256", "seconds_left", "task_seconds", "teachers")
    ID_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    TERMS_SHA256_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    HEAD_SHA256_FIELD_NUMBER: _ClassVar[int]
    SECONDS_LEFT_FIELD_NUMBER: _ClassVar[int]
    TASK_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TEACHERS_FIELD_NUMBER: _ClassVar[int]
    id: str
    job: str
    terms_sha256: str
    version: int
    head_sha256: str
    seconds_left: float
    task_seconds: float
    teachers: _containers.RepeatedCompositeFieldContainer[TaughtBy]
    def __init__(self, id: _Optional[str] = ..., job: _Optional[str] = ..., terms_sha256: _Optional[str] = ..., version: _Optional[int] = ..., head_sha256: _Optional[str] = ..., seconds_left: _Optional[float] = ..., task_seconds: _Optional[float] = ..., teachers: _Optional[_Iterable[_Union[TaughtBy, _Mapping]]] = ...) -> None: ...

class TaughtBy(_message.Message):
    __slots__ = ("silo", "update", "base_sha256", "delta_sha256", "base")
    SILO_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    BASE_SHA256_FIELD_NUMBER: _ClassVar[int]
    DELTA_SHA256_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    silo: str
    update: str
    base_sha256: str
    delta_sha256: str
    base: int
    def __init__(self, silo: _Optional[str] = ..., update: _Optional[str] = ..., base_sha256: _Optional[str] = ..., delta_sha256: _Optional[str] = ..., base: _Optional[int] = ...) -> None: ...

class FetchFileRequest(_message.Message):
    __slots__ = ("task", "sha256", "offset")
    TASK_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    task: str
    sha256: str
    offset: int
    def __init__(self, task: _Optional[str] = ..., sha256: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class FetchFileReply(_message.Message):
    __slots__ = ("chunk",)
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    chunk: bytes
    def __init__(self, chunk: _Optional[bytes] = ...) -> None: ...

class SubmitResultHeader(_message.Message):
    __slots__ = ("task", "sha256", "report")
    TASK_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    task: str
    sha256: str
    report: bytes
    def __init__(self, task: _Optional[str] = ..., sha256: _Optional[str] = ..., report: _Optional[bytes] = ...) -> None: ...

class SubmitResultRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: SubmitResultHeader
    chunk: bytes
    def __init__(self, header: _Optional[_Union[SubmitResultHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class SkipRequest(_message.Message):
    __slots__ = ("task", "reason", "why")
    TASK_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    task: str
    reason: str
    why: str
    def __init__(self, task: _Optional[str] = ..., reason: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...

class TaskEnded(_message.Message):
    __slots__ = ("receipt", "reason")
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    receipt: _audit_pb2.Receipt
    reason: str
    def __init__(self, receipt: _Optional[_Union[_audit_pb2.Receipt, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...
