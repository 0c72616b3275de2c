from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from anabranch.errors import Reason, Refused
from anabranch.tlog.receipt import Receipt
from anabranch.v1 import admin_pb2, audit_pb2, federation_pb2, update_pb2
from anabranch.wire import codec, limits


def refused(call, *args):
    with pytest.raises(Refused) as caught:
        call(*args)
    return caught.value.code


@given(
    st.binary(min_size=1, max_size=50),
    st.integers(0, 2**63),
    st.lists(st.binary(min_size=32, max_size=32), max_size=limits.PROOF).map(tuple),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=50),
)
def test_receipts_round_trip(entry, index, proof, checkpoint):
    receipt = Receipt(entry, index, proof, checkpoint)
    message = audit_pb2.Receipt.FromString(codec.receipt_to_proto(receipt).SerializeToString())
    assert codec.receipt_from_proto(message) == receipt


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"entry": b""}, Reason.MALFORMED),
        ({"checkpoint": ""}, Reason.MALFORMED),
        ({"proof": [b"x" * 31]}, Reason.MALFORMED),
        ({"proof": [b""] * 65}, Reason.SIZE_LIMIT),
        ({"entry": b"x" * 65_536}, Reason.SIZE_LIMIT),
        ({"checkpoint": "x" * 65_537}, Reason.SIZE_LIMIT),
    ],
)
def test_receipts_are_bounded(change, code):
    message = audit_pb2.Receipt(**{"entry": b"{}", "checkpoint": "note", **change})
    assert refused(codec.receipt_from_proto, message) is code


def test_repeated_fields_are_counted():
    beat = federation_pb2.Heartbeat(progress=[federation_pb2.LeaseProgress()] * 5)
    assert codec.capped(beat.progress, 5, "leases") is not None
    assert refused(codec.capped, beat.progress, 4, "leases") is Reason.SIZE_LIMIT


def test_task_kinds():
    for kind in ("train", "evaluate"):
        assert codec.task_kind_from_proto(codec.task_kind_to_proto(kind)) == kind
    for unknown in (0, 3, 99):
        assert refused(codec.task_kind_from_proto, unknown) is Reason.MALFORMED


@pytest.mark.parametrize("size", [0, 1, limits.CHUNK - 1, limits.CHUNK, limits.CHUNK + 1, 3 * limits.CHUNK])
def test_chunks_are_the_data_in_pieces(size):
    data = bytes(size)
    pieces = list(codec.chunks(data))
    assert b"".join(pieces) == data
    assert all(0 < len(piece) <= limits.CHUNK for piece in pieces)


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, limits.CHUNK - 1, limits.CHUNK])
def test_a_chunk_is_written_as_the_generated_classes_write_it(size: int) -> None:
    data = bytes(size)
    written = codec.chunk_message(data)
    for message in (update_pb2.SubmitRequest, admin_pb2.SubmitJobRequest, federation_pb2.FetchModelReply):
        assert message(chunk=data).SerializeToString() == written
        assert message.FromString(written).chunk == data


MESSAGES = (update_pb2.SubmitRequest, admin_pb2.SubmitJobRequest, federation_pb2.FetchModelReply)


@pytest.mark.parametrize(
    "size", [0, 1, 127, 128, 129, 16383, 16384, 16385, limits.CHUNK, (1 << 21) - 1, 1 << 21]
)
def test_a_chunk_is_read_where_it_lies(size: int) -> None:
    written = codec.chunk_message(bytes(size))
    chunk = codec.chunk_or(update_pb2.SubmitRequest.FromString)(written)
    assert isinstance(chunk, memoryview)
    assert chunk.obj is written
    assert chunk == bytes(size)


@given(
    st.one_of(
        st.binary(max_size=300),
        st.tuples(st.binary(max_size=6), st.integers(0, 300)).map(
            lambda two: b"\x12" + two[0] + bytes(two[1])
        ),
        st.binary(max_size=300).map(codec.chunk_message),
        st.binary(max_size=20).map(
            lambda name: update_pb2.SubmitRequest(header={"envelope": name}).SerializeToString()
        ),
    ),
    st.sampled_from(MESSAGES),
)
def test_any_bulk_message_is_read_as_the_generated_classes_read_it(data: bytes, message: Any) -> None:
    try:
        found = codec.chunk_or(message.FromString)(data)
    except DecodeError:
        with pytest.raises(DecodeError):
            message.FromString(data)
        return
    if isinstance(found, memoryview):
        found = message(chunk=bytes(found))
    assert found == message.FromString(data)
