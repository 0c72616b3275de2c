"""Updates and evaluations on their way in: decode, hand to intake in a thread, encode."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from anabranch.errors import Conflict, Refused
from anabranch.v1 import update_pb2 as pb
from anabranch.wire.values import Bytes
from server.intake import Decided, Intake, Upload
from server.transport.audit import continuing
from server.transport.files import Bulk, chunks_of, ended_short, header_of, in_thread, pour, settled
from server.transport.peer import Peer
from server.transport.rooms import Rooms


@dataclass(eq=False)
class _Stream:
    task: "asyncio.Task[object]"
    superseded: bool = False

    def supersede(self) -> None:
        self.superseded = True
        self.task.cancel()


@dataclass
class _Turns:
    """The streams of one update: the newest has the file, after the one before has let go of it."""

    file: asyncio.Lock = field(default_factory=asyncio.Lock)
    streams: list[_Stream] = field(default_factory=list)


class Updates:
    def __init__(self, rooms: Rooms) -> None:
        self._intake: Intake = rooms.intake
        self._log = rooms.log
        self._turns: dict[tuple[str, str], _Turns] = {}

    async def UploadStatus(self, request: pb.UploadStatusRequest, peer: Peer) -> pb.UploadStatusReply:
        status = await asyncio.to_thread(self._intake.status, peer.silo, request.update)
        decided = await self._reply(status.decided, request.seen) if status.decided is not None else None
        return pb.UploadStatusReply(synced=status.synced, reply=decided)

    async def Submit(self, messages: AsyncIterator[Bulk], peer: Peer) -> pb.SubmitReply:
        header: pb.SubmitHeader = await header_of(messages)
        async with self._alone(peer.silo, header.update):
            decided = await self._receive(header, messages, peer)
        return await self._reply(decided, header.seen)

    async def _receive(self, header: pb.SubmitHeader, messages: AsyncIterator[Bulk], peer: Peer) -> Decided:
        """Take the bytes; decide when all are here. A refusal that the bytes caused is recorded like any other."""
        upload = await self._open(header, peer)
        if isinstance(upload, Decided):
            return upload
        found: list[Refused] = []

        def take(chunk: Bytes) -> None:
            try:
                upload.append(chunk)
            except Refused as refusal:
                found.append(refusal)
                raise

        try:
            await pour(chunks_of(messages), take)
            if not upload.complete:
                await ended_short()
        except BaseException:
            if found:
                return await settled(in_thread(upload.refuse, found[0]))
            await settled(in_thread(upload.suspend))
            raise
        return await settled(in_thread(upload.finish))

    async def _open(self, header: pb.SubmitHeader, peer: Peer) -> Upload | Decided:
        opening = in_thread(
            self._intake.open, peer.silo, peer.actor(), header.update, header.envelope, header.offset
        )
        try:
            return await settled(opening)
        except asyncio.CancelledError:
            if opening.exception() is None and isinstance(opened := opening.result(), Upload):
                await settled(in_thread(opened.suspend))
            raise

    @asynccontextmanager
    async def _alone(self, silo: str, update: str) -> AsyncIterator[None]:
        """One stream at a time writes an update's file; otherwise a second one could change it after it was checked.

        The newest wins: the one before is usually the half of a connection that broke.
        """
        task = asyncio.current_task()
        assert task is not None
        mine = _Stream(task)
        turns = self._turns.setdefault((silo, update), _Turns())
        for other in turns.streams:
            other.supersede()
        turns.streams.append(mine)
        try:
            async with turns.file:
                yield
        except asyncio.CancelledError:
            if not mine.superseded:
                raise
            task.uncancel()
            raise Conflict(
                f"update {update[:80]} is being sent on a newer stream; ask for its status"
            ) from None
        finally:
            turns.streams.remove(mine)
            if not turns.streams:
                del self._turns[silo, update]

    async def SubmitEvaluation(self, request: pb.SubmitEvaluationRequest, peer: Peer) -> pb.SubmitReply:
        evaluate = self._intake.evaluation
        decided = await asyncio.to_thread(evaluate, peer.silo, peer.actor(), request.lease, request.envelope)
        return await self._reply(decided, request.seen)

    async def _reply(self, decided: Decided, seen: int) -> pb.SubmitReply:
        receipt = await continuing(self._log, decided.receipt, seen)
        return pb.SubmitReply(receipt=receipt, reason=decided.reason)
