from anabranch.v1 import audit_pb2 as _audit_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class UploadStatusRequest(_message.Message):
    __slots__ = ("update", "seen")
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    update: str
    seen: int
    def __init__(self, update: _Optional[str] = ..., seen: _Optional[int] = ...) -> None: ...

class UploadStatusReply(_message.Message):
    __slots__ = ("synced", "reply")
    SYNCED_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    synced: int
    reply: SubmitReply
    def __init__(self, synced: _Optional[int] = ..., reply: _Optional[_Union[SubmitReply, _Mapping]] = ...) -> None: ...

class SubmitHeader(_message.Message):
    __slots__ = ("update", "envelope", "offset", "seen")
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    update: str
    envelope: bytes
    offset: int
    seen: int
    def __init__(self, update: _Optional[str] = ..., envelope: _Optional[bytes] = ..., offset: _Optional[int] = ..., seen: _Optional[int] = ...) -> None: ...

class SubmitRequest(_message.Message):
    __slots__ = ("header", "chunk", "zstd")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    ZSTD_FIELD_NUMBER: _ClassVar[int]
    header: SubmitHeader
    chunk: bytes
    zstd: bytes
    def __init__(self, header: _Optional[_Union[SubmitHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ..., zstd: _Optional[bytes] = ...) -> None: ...

class SubmitReply(_message.Message):
    __slots__ = ("receipt", "reason")
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    receipt: _audit_pb2.Receipt
    reason: str
    def __init__(self, receipt: _Optional[_Union[_audit_pb2.Receipt, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class SubmitEvaluationRequest(_message.Message):
    __slots__ = ("lease", "envelope", "seen")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    lease: str
    envelope: bytes
    seen: int
    def __init__(self, lease: _Optional[str] = ..., envelope: _Optional[bytes] = ..., seen: _Optional[int] = ...) -> None: ...
