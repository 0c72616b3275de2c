"""What administrators ask: decode, call the room in a thread, encode."""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing

from anabranch.errors import Reason, Refused
from anabranch.tlog.fields import OPERATOR_REASON
from anabranch.v1 import admin_pb2 as pb
from anabranch.wire import codec, limits
from server.lifecycle import ENDED
from server.membership import SiloRow
from server.status import Evaluated, JobStatus, RevivalStatus, SiloStatus
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
from server.transport.submission import Submission, check_sizes
from server.vitals import ServerStatus

TOLD = limits.REPLY_MESSAGE - limits.MIB  # bytes of jobs in one message
FASTEST, SLOWEST = 0.2, 60.0  # seconds between two states of a watched job


class Admin:
    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    async def SubmitJob(self, messages: AsyncIterator[Bulk], peer: Peer) -> pb.SubmitJobReply:
        """Sizes are judged from the header; then the archive is taken into memory, the initial model onto disk."""
        jobs = self._rooms.jobs
        header: pb.SubmitJobHeader = await header_of(messages)
        await asyncio.to_thread(check_sizes, header)
        submission = await settled(in_thread(Submission, header, jobs.spool()))
        try:
            await pour(chunks_of(messages), submission.take)
            if submission.missing:
                await ended_short()
            job, receipt = await settled(in_thread(submission.hand_over, jobs.submit, peer.actor()))
        finally:
            await settled(in_thread(submission.discard))
        return pb.SubmitJobReply(job=job, receipt=codec.receipt_to_proto(receipt))

    async def ListJobStatus(self, _request: pb.ListJobStatusRequest, _peer: Peer) -> pb.ListJobStatusReply:
        statuses = await asyncio.to_thread(self._rooms.jobs.status, None)
        server = await asyncio.to_thread(self._rooms.vitals.look)
        jobs = [_status(status) for status in statuses[: limits.JOBS]]
        return pb.ListJobStatusReply(jobs=jobs, server=_server(server))

    async def Watch(self, request: pb.WatchRequest, _peer: Peer) -> AsyncGenerator[pb.Overview, None]:
        """One job, or all that have not ended, now and again; a last time when none of them goes on."""
        pause = between_looks(request.interval_seconds)
        jobs, seen = self._rooms.jobs, set[str]()
        while True:
            if request.job:
                statuses = await asyncio.to_thread(jobs.status, request.job)
            else:
                statuses = await asyncio.to_thread(jobs.going_on, frozenset(seen))
            seen.update(status.job for status in statuses)
            server = await asyncio.to_thread(self._rooms.vitals.look)
            yield _overview(statuses, server, int(self._rooms.membership.clock()))
            if all(status.status in ENDED for status in statuses):
                return
            await asyncio.sleep(pause)

    async def ChangeJob(self, request: pb.ChangeJobRequest, peer: Peer) -> pb.ChangeJobReply:
        jobs = self._rooms.jobs
        if not re.fullmatch(OPERATOR_REASON, request.reason):
            raise Refused(
                Reason.MALFORMED,
                f"reason {request.reason[:90]!r} goes into the log: up to 80 lowercase letters, digits, - and _",
            )
        change = in_thread(jobs.change, peer.actor(), request.job, request.action, request.reason)
        receipt = await settled(change)
        return pb.ChangeJobReply(receipt=codec.receipt_to_proto(receipt))

    async def ExportModel(
        self, request: pb.ExportModelRequest, peer: Peer
    ) -> AsyncGenerator[pb.ExportModelReply | bytes, None]:
        model = await asyncio.to_thread(self._rooms.jobs.export, peer.actor(), request.job, request.version)
        header = pb.ExportModelHeader(
            version=model.version,
            digest=model.digest,
            bytes=model.bytes,
            card=model.card,
            receipt=codec.receipt_to_proto(model.receipt),
            terms=model.terms,
        )
        yield pb.ExportModelReply(header=header)
        async with aclosing(read_chunks(model.path, 0)) as chunks:
            async for chunk in chunks:
                yield codec.chunk_message(chunk)

    async def InviteSilo(self, request: pb.InviteSiloRequest, peer: Peer) -> pb.InviteSiloReply:
        invite = self._rooms.membership.invite
        bundle, receipt = await asyncio.to_thread(invite, peer.actor(), request.silo, request.ttl_seconds)
        return pb.InviteSiloReply(bundle=bundle, receipt=codec.receipt_to_proto(receipt))

    async def ListSilos(self, _request: pb.ListSilosRequest, _peer: Peer) -> pb.ListSilosReply:
        rows = await asyncio.to_thread(self._rooms.membership.silos)
        return pb.ListSilosReply(silos=[_silo(row) for row in rows])

    async def RevokeSilo(self, request: pb.RevokeSiloRequest, peer: Peer) -> pb.RevokeSiloReply:
        """Not cut short when the caller leaves: a revocation that began is carried through."""
        revoking = in_thread(self._rooms.membership.revoke, peer.actor(), request.silo, request.reason)
        receipt, retired = await settled(revoking)
        return pb.RevokeSiloReply(receipt=codec.receipt_to_proto(receipt), retired_updates=retired)


def between_looks(seconds: float) -> float:
    """Seconds from one look at a job to the next; as fast as we allow for what is no number."""
    return min(max(FASTEST, seconds), SLOWEST)  # in this order: whatever is compared with NaN comes first


def _silo(row: SiloRow) -> pb.Silo:
    return pb.Silo(
        name=row.name,
        status=row.status,
        certificate_not_after=int(row.certificate_not_after),
        connected=row.connected,
        last_seen=int(row.last_seen),
        release=row.release,
    )


def _overview(statuses: Sequence[JobStatus], server: ServerStatus, now: int) -> pb.Overview:
    """As many jobs as fit one message, the newest first."""
    overview = pb.Overview(server=_server(server), server_time=now)
    size = 0
    for status in statuses:
        message = _status(status)
        size += message.ByteSize()
        if size > TOLD and overview.jobs:
            break
        overview.jobs.append(message)
    return overview


def _server(server: ServerStatus) -> pb.ServerStatus:
    return pb.ServerStatus(**vars(server))


def _status(status: JobStatus) -> pb.JobStatus:
    return pb.JobStatus(
        job=status.job,
        name=status.name,
        status=status.status,
        reason=status.reason,
        head=status.head,
        versions=status.versions,
        best=status.best,
        buffered=status.buffered,
        buffer=status.buffer,
        buffer_age_seconds=status.buffer_age_seconds,
        versions_per_hour=status.versions_per_hour,
        updates_per_minute=status.updates_per_minute,
        eta_seconds=status.eta_seconds,
        silos=[_silo_status(silo) for silo in status.silos],
        evaluations=[_evaluation(evaluated) for evaluated in status.evaluations],
        server_time=int(status.server_time),
        share=pb.Share(**vars(status.share)) if status.share else None,
        revival=None if status.revival is None else _revival(status.revival),
        terms_sha256=status.terms_sha256,
        head_sha256=status.head_sha256,
    )


def _revival(revival: RevivalStatus) -> pb.RevivalStatus:
    tallies = [pb.Tally(**vars(tally)) for tally in revival.tallies]
    return pb.RevivalStatus(**vars(revival) | {"tallies": tallies})


def _silo_status(silo: SiloStatus) -> pb.SiloStatus:
    return pb.SiloStatus(
        silo=silo.silo,
        decision=silo.decision,
        connected=silo.connected,
        last_seen=int(silo.last_seen),
        base=silo.base,
        training=silo.training,
        step=silo.step,
        steps=silo.steps,
        received=silo.received,
        merged=silo.merged,
        refused=silo.refused,
        retired=silo.retired,
        mean_staleness=silo.mean_staleness,
        bytes=silo.bytes,
        last_reason=silo.last_reason,
        state=silo.state,
        lease=silo.lease,
        leased_seconds=silo.leased_seconds,
        late_seconds=silo.late_seconds,
        elsewhere=silo.elsewhere,
        tallies=[pb.Tally(**vars(tally)) for tally in silo.tallies],
        failures=silo.failures,
        retry_seconds=silo.retry_seconds,
        samples_per_second=silo.samples_per_second,
        tokens_per_second=silo.tokens_per_second,
        whole_bytes=silo.whole_bytes,
    )


def _evaluation(evaluated: Evaluated) -> pb.Evaluation:
    return pb.Evaluation(
        version=evaluated.version,
        silo=evaluated.silo,
        split=evaluated.split,
        metrics=evaluated.metrics,
    )
