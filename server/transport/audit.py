"""The log, as any member may ask for it."""

import asyncio

from anabranch.tlog.receipt import Receipt
from anabranch.v1 import audit_pb2 as pb
from anabranch.wire import codec
from server.audit.log import Log
from server.transport.peer import Peer
from server.transport.rooms import Rooms


async def continuing(log: Log, receipt: Receipt, seen: int) -> pb.Receipt:
    """A receipt as it travels to a silo that knows the first `seen` entries of the log."""
    return codec.receipt_to_proto(await asyncio.to_thread(log.continuing, receipt, seen))


class Audit:
    def __init__(self, rooms: Rooms) -> None:
        self._log = rooms.log

    async def GetCheckpoint(self, _request: pb.GetCheckpointRequest, _peer: Peer) -> pb.GetCheckpointReply:
        return pb.GetCheckpointReply(checkpoint=await asyncio.to_thread(self._log.checkpoint))

    async def GetConsistency(self, request: pb.GetConsistencyRequest, _peer: Peer) -> pb.GetConsistencyReply:
        proof = await asyncio.to_thread(self._log.consistency, request.old_size, request.new_size)
        return pb.GetConsistencyReply(proof=proof)
