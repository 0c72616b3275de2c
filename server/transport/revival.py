"""What revivers ask: decode, call the room in a thread, encode."""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from anabranch.errors import Reason, Refused
from anabranch.terms import DIGEST
from anabranch.tlog.fields import EXCEPTION
from anabranch.v1 import federation_pb2
from anabranch.v1 import revival_pb2 as pb
from anabranch.wire import codec, limits
from server.core.revival import parse_ending, parse_report
from server.reviving import Ended, RevivalTask
from server.scheduling import Wait
from server.transport.audit import continuing
from server.transport.files import (
    Bulk,
    chunks_of,
    ended_short,
    header_of,
    in_thread,
    pour,
    read_chunks,
    settled,
)
from server.transport.peer import Peer
from server.transport.rooms import Rooms


class Revival:
    def __init__(self, rooms: Rooms) -> None:
        self._reviving, self._membership, self._log = rooms.reviving, rooms.membership, rooms.log

    async def Claim(self, request: pb.ClaimRequest, peer: Peer) -> pb.ClaimReply:
        holding = list(codec.capped(request.holding, limits.JOBS, "jobs"))
        resting = list(codec.capped(request.resting, limits.JOBS, "jobs"))
        turn = await asyncio.to_thread(self._reviving.claim, peer.reviver, resting)
        allowed = await asyncio.to_thread(self._reviving.allowed, holding)
        reply = pb.ClaimReply(permitted=[pb.Permission(job=job, silos=allowed[job]) for job in allowed])
        if isinstance(turn, Wait):
            reply.wait.CopyFrom(federation_pb2.Wait(seconds=turn.seconds, reason=turn.reason))
        else:
            reply.task.CopyFrom(_task(turn, self._membership.clock()))
        return reply

    async def FetchFile(
        self, request: pb.FetchFileRequest, peer: Peer
    ) -> AsyncGenerator[pb.FetchFileReply | bytes, None]:
        """The bytes from the offset the reviver has reached, as `codec.chunk_message` writes them."""
        path = await asyncio.to_thread(self._reviving.file, peer.reviver, request.task, request.sha256)
        async with aclosing(read_chunks(path, request.offset)) as chunks:
            async for chunk in chunks:
                yield codec.chunk_message(chunk)

    async def Submit(self, messages: AsyncIterator[Bulk], peer: Peer) -> pb.TaskEnded:
        header: pb.SubmitResultHeader = await header_of(messages)
        if not re.fullmatch(DIGEST, header.sha256):
            raise Refused(Reason.MALFORMED, f"{header.sha256[:80]!r} is no SHA-256 in lowercase hex")
        report = parse_report(header.report)
        opening = in_thread(self._reviving.receive, peer.reviver, header.task, header.sha256)
        try:
            result = await settled(opening)
            await pour(chunks_of(messages), result.append)
            if result.offset < result.size:
                await ended_short()
        except BaseException:
            if opening.exception() is None:
                await settled(in_thread(opening.result().discard))
            raise
        submit = self._reviving.submit
        ending = in_thread(submit, peer.reviver, peer.actor(), header.task, result, report)
        return _ended(await settled(ending))

    async def Skip(self, request: pb.SkipRequest, peer: Peer) -> pb.TaskEnded:
        reason = parse_ending(request.reason)
        if not re.fullmatch(f"(?:{EXCEPTION})?", request.why):
            raise Refused(Reason.MALFORMED, f"why {request.why[:80]!r} does not fit the log: {EXCEPTION}")
        skip, why = self._reviving.skip, request.why or None
        ended = await asyncio.to_thread(skip, peer.reviver, peer.actor(), request.task, reason, why)
        return _ended(ended)

    async def Renew(self, request: federation_pb2.RenewRequest, peer: Peer) -> federation_pb2.RenewReply:
        renew = self._membership.renew
        chain, receipt = await asyncio.to_thread(renew, peer.identity, request.csr, peer.fingerprint)
        logged = await continuing(self._log, receipt, request.seen)
        return federation_pb2.RenewReply(certificate_chain=chain, receipt=logged)


def _task(task: RevivalTask, now: float) -> pb.RevivalTask:
    return pb.RevivalTask(
        id=task.id,
        job=task.job,
        terms_sha256=task.terms_sha256,
        version=task.version,
        head_sha256=task.head_sha256,
        seconds_left=max(0.0, task.deadline - now),
        task_seconds=task.task_seconds,
        teachers=[
            pb.TaughtBy(
                silo=one.silo,
                update=one.update,
                base_sha256=one.base_sha256,
                delta_sha256=one.delta_sha256,
                base=one.base,
            )
            for one in task.teachers
        ],
    )


def _ended(ended: Ended) -> pb.TaskEnded:
    return pb.TaskEnded(receipt=codec.receipt_to_proto(ended.receipt), reason=ended.reason)
