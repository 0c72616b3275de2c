"""What silo agents ask: decode, call the room in a thread, encode."""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace

import structlog

import anabranch
from anabranch.errors import Reason, Refused
from anabranch.tlog.fields import CODE_LINE, EXCEPTION, ID
from anabranch.v1 import audit_pb2
from anabranch.v1 import federation_pb2 as pb
from anabranch.wire import codec, limits
from anabranch.wire.squeeze import squeeze
from server import metrics
from server.jobs import OfferedJob
from server.scheduling import Lease
from server.sessions import AbortLease, Drain, JobChanged, LeaseProgress, Mailbox, Push, Revoked
from server.state.records import View
from server.transport.audit import continuing
from server.transport.files import ended_short, in_thread, read_chunks, settled
from server.transport.peer import Peer
from server.transport.rooms import Rooms

logger = structlog.get_logger("transport")

PROTOCOL = 1
PLAIN = "safetensors"  # encoding of a version that travels as it is stored
HEARTBEAT_SECONDS = 3
RELEASE = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+-]{0,39}")
LISTED = limits.REPLY_MESSAGE - limits.MIB  # bytes of jobs in one reply


class Federation:
    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    async def Session(
        self, messages: AsyncIterator[pb.AgentMessage], peer: Peer
    ) -> AsyncGenerator[pb.ServerMessage, None]:
        """Hello → Welcome; then heartbeats in, news out, until either side leaves."""
        sessions = self._rooms.sessions
        hello = await _hello(messages)
        mailbox = sessions.open(peer.silo, peer.identity.uri, hello.release)
        metrics.SESSIONS.set(sessions.count())
        hearing = asyncio.create_task(self._hear(messages, mailbox))
        hearing.add_done_callback(lambda _: mailbox.hang_up())
        try:
            yield self._welcome()
            while (push := await mailbox.next()) is not None:
                yield _pushed(push)
                if isinstance(push, Drain):
                    return
                if isinstance(push, Revoked):
                    raise Refused(Reason.REVOKED_IDENTITY, f"silo {peer.silo} was revoked: {push.reason}")
            await hearing
            await ended_short()  # cut off by gRPC, it looks as if the agent had left
        finally:
            hearing.cancel()
            await asyncio.wait({hearing})
            self._close(mailbox)

    def _welcome(self) -> pb.ServerMessage:
        welcome = pb.Welcome(
            protocol=PROTOCOL,
            release=anabranch.__version__,
            heartbeat_seconds=HEARTBEAT_SECONDS,
            server_time=int(self._rooms.membership.clock()),
        )
        return pb.ServerMessage(welcome=welcome)

    def _close(self, mailbox: Mailbox) -> None:
        self._rooms.sessions.close(mailbox)
        metrics.SESSIONS.set(self._rooms.sessions.count())

    async def _hear(self, messages: AsyncIterator[pb.AgentMessage], mailbox: Mailbox) -> None:
        async for message in messages:
            if message.WhichOneof("body") != "heartbeat":
                raise Refused(Reason.MALFORMED, "after its hello a session carries heartbeats only")
            progress = codec.capped(message.heartbeat.progress, limits.PROGRESS, "leases")
            if self._rooms.sessions.heard(mailbox, {one.lease: _progress(one) for one in progress}):
                raise Refused(
                    Reason.DUPLICATE_IDENTITY,
                    f"another agent talks as {mailbox.agent} too: was this agent's folder copied? Stop one of the two, and "
                    f"enrol it with a bundle of its own (anabranch silo invite {mailbox.silo}). If nobody here made a copy, "
                    "its keys are stolen: have the silo revoked",
                )

    async def ListJobs(self, request: pb.ListJobsRequest, peer: Peer) -> pb.ListJobsReply:
        offered = await asyncio.to_thread(self._offered, peer.silo, request.seen)
        reply, size = pb.ListJobsReply(), 0
        for job in offered:
            message = _job(job)
            size += message.ByteSize()
            if size > LISTED:
                logger.warning("a silo is told its newest jobs only", silo=peer.silo, jobs=len(reply.jobs))
                break
            reply.jobs.append(message)
        return reply

    def _offered(self, silo: str, seen: int) -> list[OfferedJob]:
        continuing = self._rooms.log.continuing
        return [replace(job, receipt=continuing(job.receipt, seen)) for job in self._rooms.jobs.offered(silo)]

    async def FetchArchive(
        self, request: pb.FetchArchiveRequest, _peer: Peer
    ) -> AsyncGenerator[pb.Chunk, None]:
        path = await asyncio.to_thread(self._rooms.jobs.archive, request.job)
        async with aclosing(read_chunks(path, 0)) as chunks:
            async for chunk in chunks:
                yield pb.Chunk(data=bytes(chunk))

    async def Decide(self, request: pb.DecideRequest, peer: Peer) -> pb.DecideReply:
        receipt = await asyncio.to_thread(
            self._rooms.jobs.decide, peer.silo, peer.actor(), request.job, request.envelope
        )
        return pb.DecideReply(receipt=await continuing(self._rooms.log, receipt, request.seen))

    async def NextTask(self, request: pb.NextTaskRequest, peer: Peer) -> pb.NextTaskReply:
        jobs = list(codec.capped(request.jobs, limits.JOBS, "jobs"))
        task = await asyncio.to_thread(self._rooms.scheduling.next_task, peer.silo, jobs)
        if isinstance(task, Lease):
            issued = await continuing(self._rooms.log, task.receipt, request.seen)
            return pb.NextTaskReply(lease=_lease(task, issued))
        return pb.NextTaskReply(wait=pb.Wait(seconds=task.seconds, reason=task.reason))

    async def FetchModel(
        self, request: pb.FetchModelRequest, peer: Peer
    ) -> AsyncGenerator[pb.FetchModelReply | bytes, None]:
        """The header, then the view's bytes from the offset the silo has reached, as `codec.chunk_message` writes them."""
        file = await asyncio.to_thread(self._rooms.jobs.model, peer.silo, request.job, request.digest)
        receipts = [await continuing(self._rooms.log, receipt, request.seen) for receipt in file.receipts]
        plain = file.view.packing is None
        yield pb.FetchModelReply(header=pb.ModelHeader(view=_view(file.view), receipts=receipts))
        async with aclosing(read_chunks(file.path, request.offset)) as chunks:
            async for chunk in chunks:
                if plain:
                    yield codec.chunk_message(chunk)
                else:
                    yield pb.FetchModelReply(zstd=await settled(in_thread(squeeze, chunk)))

    async def ReleaseLease(self, request: pb.ReleaseLeaseRequest, peer: Peer) -> pb.ReleaseLeaseReply:
        for what, text, pattern in (
            ("lease", request.lease, ID),
            ("exception", request.exception, f"(?:{EXCEPTION})?"),
            ("code_line", request.code_line, f"(?:{CODE_LINE})?"),
        ):
            if not re.fullmatch(pattern, text):
                raise Refused(
                    Reason.MALFORMED, f"{what} {text[:80]!r} does not fit the log: it must match {pattern}"
                )
        if request.reason not in set(Reason):
            raise Refused(Reason.MALFORMED, f"{request.reason[:40]!r} is no reason code")
        receipt = await asyncio.to_thread(
            self._rooms.scheduling.release,
            peer.silo,
            peer.actor(),
            request.lease,
            request.reason,
            request.exception,
            request.code_line,
        )
        return pb.ReleaseLeaseReply(receipt=await continuing(self._rooms.log, receipt, request.seen))

    async def Renew(self, request: pb.RenewRequest, peer: Peer) -> pb.RenewReply:
        renew = self._rooms.membership.renew
        chain, receipt = await asyncio.to_thread(renew, peer.identity, request.csr, peer.fingerprint)
        logged = await continuing(self._rooms.log, receipt, request.seen)
        return pb.RenewReply(certificate_chain=chain, receipt=logged)


async def _hello(messages: AsyncIterator[pb.AgentMessage]) -> pb.Hello:
    """The first message. Raises Refused(MALFORMED), also when there is no protocol both sides speak."""
    first = await anext(messages, None)
    if first is None or first.WhichOneof("body") != "hello":
        raise Refused(Reason.MALFORMED, "a session begins with a hello")
    hello = first.hello
    if not hello.protocol_min <= PROTOCOL <= hello.protocol_max:
        older = "the server" if hello.protocol_min > PROTOCOL else "the agent"
        raise Refused(
            Reason.MALFORMED,
            f"this server ({anabranch.__version__}) speaks protocol {PROTOCOL}, the agent {hello.protocol_min} to "
            f"{hello.protocol_max}: update {older}",
        )
    if not RELEASE.fullmatch(hello.release):
        raise Refused(Reason.MALFORMED, f"{hello.release[:60]!r} is no release number")
    return hello


def _progress(told: pb.LeaseProgress) -> LeaseProgress:
    for speed in (told.samples_per_second, told.tokens_per_second):
        if not 0 <= speed <= limits.PER_SECOND:  # which NaN is not either
            raise Refused(
                Reason.MALFORMED,
                f"a heartbeat says {speed} per second; at most {limits.PER_SECOND:g}, at least 0",
            )
    return LeaseProgress(told.step, told.steps, told.samples_per_second, told.tokens_per_second)


def _pushed(push: Push) -> pb.ServerMessage:
    match push:
        case JobChanged(job, status):
            return pb.ServerMessage(job_changed=pb.JobChanged(job=job, status=status))
        case AbortLease(lease, reason):
            return pb.ServerMessage(abort=pb.AbortLease(lease=lease, reason=reason))
        case Revoked(reason):
            return pb.ServerMessage(revoked=pb.Revoked(reason=reason))
        case Drain():
            return pb.ServerMessage(drain=pb.Drain())


def _job(job: OfferedJob) -> pb.Job:
    return pb.Job(
        id=job.id,
        terms=job.terms,
        status=job.status,
        decision=job.decision,
        head=job.head,
        submitted=codec.receipt_to_proto(job.receipt),
        manifest=job.manifest,
        revival=job.revival,
    )


def _view(view: View) -> pb.View:
    packing = view.packing
    density, encoding = (packing.density, packing.values) if packing else (1.0, PLAIN)
    return pb.View(
        version=view.version, density=density, encoding=encoding, digest=view.digest, bytes=view.bytes
    )


def _lease(lease: Lease, issued: audit_pb2.Receipt) -> pb.Lease:
    return pb.Lease(
        id=lease.id,
        job=lease.job,
        kind=codec.task_kind_to_proto(lease.kind),
        view=_view(lease.view),
        nonce=lease.nonce,
        deadline=int(lease.deadline),
        split=lease.split,
        local_steps=lease.local_steps,
        issued=issued,
    )
