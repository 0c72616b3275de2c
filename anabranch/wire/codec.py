"""Protobuf messages to and from what our code works with, and the counts that are judged before a message is
touched.

Parsing a repeated message field costs memory once its elements are touched from Python, many times its size
on the wire; `capped` looks at the length only.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, TypeVar

from google.protobuf.message import Message

from anabranch.errors import Reason, Refused
from anabranch.tlog.entry import MAX_ENTRY
from anabranch.tlog.note import MAX_NOTE
from anabranch.tlog.receipt import Receipt
from anabranch.v1 import audit_pb2, federation_pb2
from anabranch.wire import limits

TaskKind = Literal["train", "evaluate"]

_KINDS: dict[TaskKind, federation_pb2.TaskKind] = {
    "train": federation_pb2.TRAIN,
    "evaluate": federation_pb2.EVALUATE,
}
_CHUNK_TAG = bytes([2 << 3 | 2])  # field 2, length-delimited
_Element = TypeVar("_Element")
_Message = TypeVar("_Message")


def capped(field: Sequence[_Element], most: int, what: str) -> Sequence[_Element]:
    """`field` itself, if it has at most `most` elements. Raises Refused(SIZE_LIMIT) before one is touched."""
    if len(field) > most:
        raise Refused(Reason.SIZE_LIMIT, f"{len(field)} {what} in one message; at most {most}")
    return field


def receipt_to_proto(receipt: Receipt) -> audit_pb2.Receipt:
    return audit_pb2.Receipt(
        entry=receipt.entry,
        index=receipt.index,
        proof=receipt.proof,
        checkpoint=receipt.checkpoint,
        seen=receipt.seen,
        consistency=receipt.consistency,
    )


def receipt_from_proto(message: audit_pb2.Receipt) -> Receipt:
    """Bounded, not verified: that is `verify_receipt`. Raises Refused(SIZE_LIMIT, MALFORMED)."""
    for size, most, what in (
        (len(message.entry), MAX_ENTRY, "entry"),
        (len(message.checkpoint), MAX_NOTE, "checkpoint"),
    ):
        if size > most:
            raise Refused(Reason.SIZE_LIMIT, f"receipt: {what} of {size} bytes; at most {most}")
    proof = tuple(capped(message.proof, limits.PROOF, "hashes of a proof"))
    consistency = tuple(capped(message.consistency, 2 * limits.PROOF, "hashes of a proof"))
    if not message.entry or not message.checkpoint or any(len(node) != 32 for node in proof + consistency):
        raise Refused(Reason.MALFORMED, "receipt: expected an entry, a checkpoint and hashes of 32 bytes")
    return Receipt(message.entry, message.index, proof, message.checkpoint, message.seen, consistency)


def task_kind_to_proto(kind: TaskKind) -> federation_pb2.TaskKind:
    return _KINDS[kind]


def task_kind_from_proto(value: int) -> TaskKind:
    """Raises Refused(MALFORMED) for a kind of a newer release."""
    for kind, number in _KINDS.items():
        if number == value:
            return kind
    raise Refused(Reason.MALFORMED, f"task kind {value} is unknown to this release; update the agent")


def chunk_message(data: bytes | memoryview) -> bytes:
    """The serialised message whose only field is `chunk = 2`: of every stream of bulk data but archives.

    The bytes the generated classes write, without their two copies through a growing arena: bulk data is most of what
    crosses the wire, and those copies cost more than TLS does.
    """
    return b"".join((_before_chunk(len(data)), data))


def chunk_or(parse: Callable[[bytes], _Message]) -> Callable[[bytes], memoryview | _Message]:
    """A deserialiser of such a stream: of what `chunk_message` writes the chunk, not copied; of the rest what `parse` reads.

    A writer that encodes its lengths in more bytes than it needs is understood as well, by `parse`.
    """

    def read(data: bytes) -> memoryview | _Message:
        for start in range(2, 6):
            before = _before_chunk(max(0, len(data) - start))
            if len(before) == start and data.startswith(before):
                return memoryview(data)[start:]
        return parse(data)

    return read


def _before_chunk(size: int) -> bytes:
    """Tag and length of a chunk; the length takes one byte for each seven bits."""
    before = bytearray(_CHUNK_TAG)
    while size > 0x7F:
        before.append(size & 0x7F | 0x80)
        size >>= 7
    before.append(size)
    return bytes(before)


def serialise(message: Message | bytes) -> bytes:
    """A message as it travels; bytes are one already."""
    return message if isinstance(message, bytes) else message.SerializeToString()


def chunks(data: bytes) -> Iterator[bytes]:
    """`data` in pieces of at most limits.CHUNK bytes; none for no data."""
    for start in range(0, len(data), limits.CHUNK):
        yield data[start : start + limits.CHUNK]
