"""Enrolment, on the port where callers have a token instead of a certificate."""

import asyncio

from anabranch.errors import Reason, Refused
from anabranch.v1 import enrolment_pb2 as pb
from anabranch.wire import codec, limits
from server.enrolment import SigningKey
from server.transport.rooms import Rooms

TOKEN_ID = 64  # characters


class Enrolment:
    def __init__(self, rooms: Rooms) -> None:
        self._membership = rooms.membership

    async def Begin(self, request: pb.BeginRequest, _nobody: None) -> pb.BeginReply:
        nonce = await asyncio.to_thread(self._membership.begin, _token_id(request.token_id))
        return pb.BeginReply(nonce=nonce)

    async def Enrol(self, request: pb.EnrolRequest, _nobody: None) -> pb.EnrolReply:
        claimed = codec.capped(request.keys, limits.KEYS, "keys")
        keys = [SigningKey(key.purpose, key.public, key.proof) for key in claimed]
        chain, receipts = await asyncio.to_thread(
            self._membership.enrol, _token_id(request.token_id), request.token, request.csr, keys
        )
        return pb.EnrolReply(
            certificate_chain=chain, receipts=[codec.receipt_to_proto(receipt) for receipt in receipts]
        )


def _token_id(text: str) -> str:
    if len(text) > TOKEN_ID:
        raise Refused(Reason.SIZE_LIMIT, f"token id of {len(text)} characters; at most {TOKEN_ID}")
    return text
