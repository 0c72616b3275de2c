from anabranch.v1 import audit_pb2 as _audit_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BeginRequest(_message.Message):
    __slots__ = ("token_id",)
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    token_id: str
    def __init__(self, token_id: _Optional[str] = ...) -> None: ...

class BeginReply(_message.Message):
    __slots__ = ("nonce",)
    NONCE_FIELD_NUMBER: _ClassVar[int]
    nonce: bytes
    def __init__(self, nonce: _Optional[bytes] = ...) -> None: ...

class Key(_message.Message):
    __slots__ = ("purpose", "public", "proof")
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    purpose: str
    public: bytes
    proof: bytes
    def __init__(self, purpose: _Optional[str] = ..., public: _Optional[bytes] = ..., proof: _Optional[bytes] = ...) -> None: ...

class EnrolRequest(_message.Message):
    __slots__ = ("token_id", "token", "csr", "keys")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    CSR_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    token_id: str
    token: bytes
    csr: bytes
    keys: _containers.RepeatedCompositeFieldContainer[Key]
    def __init__(self, token_id: _Optional[str] = ..., token: _Optional[bytes] = ..., csr: _Optional[bytes] = ..., keys: _Optional[_Iterable[_Union[Key, _Mapping]]] = ...) -> None: ...

class EnrolReply(_message.Message):
    __slots__ = ("certificate_chain", "receipts")
    CERTIFICATE_CHAIN_FIELD_NUMBER: _ClassVar[int]
    RECEIPTS_FIELD_NUMBER: _ClassVar[int]
    certificate_chain: bytes
    receipts: _containers.RepeatedCompositeFieldContainer[_audit_pb2.Receipt]
    def __init__(self, certificate_chain: _Optional[bytes] = ..., receipts: _Optional[_Iterable[_Union[_audit_pb2.Receipt, _Mapping]]] = ...) -> None: ...
