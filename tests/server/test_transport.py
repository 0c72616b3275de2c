"""What crosses the wire, and what happens when it stops crossing: real gRPC, real certificates, the real rooms."""

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from anabranch.errors import Conflict, Reason, Refused, Unavailable
from anabranch.tlog.note import NoteVerifier
from anabranch.tlog.receipt import verify_receipt
from anabranch.v1 import admin_pb2, audit_pb2, federation_pb2, update_pb2
from anabranch.wire import codec, limits
from server.sessions import UNREAD, AbortLease, JobChanged, LeaseProgress
from server.transport import interceptor
from tests.server.at_work import (
    LARGE,
    AtWork,
    Sending,
    answer,
    at_work,
    entries_of,
    eventually,
    leased,
    refusal,
    synced,
)
from tests.server.edge import Edge, Talk, candidate
from tests.server.harness import ORIGIN, Server

# --- sessions ------------------------------------------------------------------------------------------------------


def test_a_session_is_welcomed_reports_progress_and_hears_news(edge: Edge) -> None:
    with Talk(edge.enrol("north")) as talk:
        welcome = talk.hear().welcome
        assert (welcome.protocol, welcome.heartbeat_seconds) == (1, 3)
        assert abs(welcome.server_time - edge.server.clock()) < 2
        talk.beat(lease="l1", step=3, steps=20)
        eventually(lambda: edge.sessions.progress("l1") == LeaseProgress(3, 20), "progress arrived")
        assert edge.sessions.connected("north")
        edge.sessions.push("north", JobChanged("digits-1", "paused"))
        edge.sessions.push("north", AbortLease("l1", "job_ended"))
        edge.sessions.push("south", AbortLease("l2", "job_ended"))
        assert talk.hear().job_changed.status == "paused"
        assert talk.hear().abort.lease == "l1"
        (row,) = edge.membership.silos()
        assert (row.connected, row.release) == (True, "0.1.0")
    eventually(lambda: not edge.sessions.connected("north"), "the server noticed that the agent left")
    assert edge.sessions.last_seen("north") > 0


@pytest.mark.parametrize(("lowest", "highest", "who"), [(2, 3, "the server"), (0, 0, "the agent")])
def test_without_a_common_protocol_the_answer_says_who_must_update(
    edge: Edge, lowest: int, highest: int, who: str
) -> None:
    hello = federation_pb2.Hello(protocol_min=lowest, protocol_max=highest, release="9.0")
    with Talk(edge.enrol("north"), hello) as talk, pytest.raises(Refused, match=f"update {who}"):
        answer(talk.hear)


def test_a_session_that_does_not_begin_with_hello_is_refused(edge: Edge) -> None:
    beat = federation_pb2.AgentMessage(heartbeat=federation_pb2.Heartbeat(sequence=1))
    call = edge.enrol("north").federation.Session(iter([beat]), timeout=10)
    assert refusal(lambda: next(call)) is Reason.MALFORMED


def test_an_agent_that_does_not_listen_is_told_to_look_again(edge: Edge) -> None:
    async def overflow() -> tuple[int, object]:
        mailbox = edge.sessions.open("north", "spiffe://fed.test/silo/north/agent/0", "0.1.0")
        for number in range(UNREAD + 1):
            mailbox._put(JobChanged(f"job-{number}", "running"))
        left = mailbox._queue.qsize(), await mailbox.next()
        edge.sessions.close(mailbox)
        return left

    size, message = edge.on_loop(overflow())
    assert (size, type(message).__name__) == (1, "Drain")


def test_draining_sends_agents_away_and_lets_a_running_call_finish(server: Server) -> None:
    edge = Edge(server).start()
    silo = at_work(edge)
    sending = leased(edge, silo)
    half_way, go_on = threading.Event(), threading.Event()

    def slowly() -> Iterator[update_pb2.SubmitRequest]:
        messages = sending.whole()
        yield next(messages)
        yield next(messages)
        half_way.set()
        go_on.wait(10)
        yield from messages

    upload = silo.member.updates.Submit.future(slowly(), timeout=20)
    with Talk(silo.member) as talk:
        talk.hear()
        half_way.wait(10)
        draining = threading.Thread(target=lambda: edge.on_loop(edge.ports.drain(10)))
        draining.start()
        assert talk.hear().WhichOneof("body") == "drain"
        with pytest.raises(StopIteration):
            talk.hear()
    assert not edge.ports.accepting
    go_on.set()
    assert upload.result(10).reason == ""
    draining.join(10)
    edge.stop()


# --- revocation ----------------------------------------------------------------------------------------------------


def test_revoking_ends_open_streams_and_everything_else_at_once(edge: Edge) -> None:
    silo, admin = at_work(edge), edge.admin()
    sending = leased(edge, silo)
    stall = threading.Event()

    def stalled() -> Iterator[update_pb2.SubmitRequest]:
        messages = sending.whole()
        yield next(messages)
        yield next(messages)
        stall.wait(20)

    upload = silo.member.updates.Submit.future(stalled(), timeout=30)
    with Talk(silo.member) as talk:
        talk.hear()
        eventually(lambda: len(edge.calls._open) == 2, "session and upload are open")
        reply = admin.admin.RevokeSilo(
            admin_pb2.RevokeSiloRequest(silo="north", reason="key_compromise"), timeout=10
        )
        # From here on nothing of this silo is accepted.
        assert not [call for call in edge.calls._open if call.peer and call.peer.identity.role == "silo"]
        assert refusal(
            lambda: silo.member.audit.GetCheckpoint(audit_pb2.GetCheckpointRequest(), timeout=5)
        ) is (Reason.REVOKED_IDENTITY)
        assert talk.hear().revoked.reason == "key_compromise"
        assert refusal(talk.hear) is Reason.REVOKED_IDENTITY
    assert refusal(lambda: upload.result(5)) is Reason.REVOKED_IDENTITY
    stall.set()
    receipt = codec.receipt_from_proto(reply.receipt)
    entry, _ = verify_receipt(receipt, NoteVerifier.from_vkey(edge.server.signer.vkey), ORIGIN)
    assert entry.type == "silo.revoked"
    assert not entries_of(edge.server, "update.received")


def test_revoking_one_silo_leaves_the_others_alone(edge: Edge) -> None:
    north, south = edge.enrol("north"), edge.enrol("south")
    with Talk(south) as talk:
        talk.hear()
        edge.membership.revoke(edge.server.core.observer, "north")
        edge.sessions.push("south", JobChanged("digits-1", "paused"))
        assert talk.hear().job_changed.job == "digits-1"
    assert south.audit.GetCheckpoint(audit_pb2.GetCheckpointRequest(), timeout=5).checkpoint
    assert refusal(lambda: north.federation.ListJobs(federation_pb2.ListJobsRequest(), timeout=5)) is (
        Reason.REVOKED_IDENTITY
    )


def test_a_renewed_certificate_takes_over_without_a_failed_call(edge: Edge) -> None:
    old, fresh = edge.enrol("north"), candidate()
    reply = old.federation.Renew(federation_pb2.RenewRequest(csr=fresh.csr), timeout=5)
    old.federation.ListJobs(federation_pb2.ListJobsRequest(), timeout=5)
    new = edge.member(fresh.tls_key, reply.certificate_chain)
    new.federation.ListJobs(federation_pb2.ListJobsRequest(), timeout=5)
    assert refusal(lambda: old.federation.ListJobs(federation_pb2.ListJobsRequest(), timeout=5)) is (
        Reason.BAD_CERTIFICATE
    )


# --- uploads -------------------------------------------------------------------------------------------------------


def test_a_whole_cycle_over_the_wire(edge: Edge) -> None:
    silo = at_work(edge)
    (job,) = silo.member.federation.ListJobs(federation_pb2.ListJobsRequest(), timeout=5).jobs
    assert (job.id, job.decision, job.status) == (silo.job, "approved", "running")
    archive = silo.member.federation.FetchArchive(federation_pb2.FetchArchiveRequest(job=silo.job), timeout=5)
    assert b"".join(chunk.data for chunk in archive) == b"archive"
    sending = leased(edge, silo)
    reply = silo.member.updates.Submit(sending.whole(), timeout=20)
    receipt = codec.receipt_from_proto(reply.receipt)
    entry, _ = verify_receipt(receipt, NoteVerifier.from_vkey(edge.server.signer.vkey), ORIGIN)
    assert (entry.type, reply.reason, entry.actor.cert_sha256) == (
        "update.received",
        "",
        silo.member.fingerprint,
    )
    again = silo.member.updates.Submit(sending.whole(), timeout=20)
    assert codec.receipt_from_proto(again.receipt).entry == receipt.entry
    known = silo.member.updates.UploadStatus(update_pb2.UploadStatusRequest(update=sending.id), timeout=5)
    assert codec.receipt_from_proto(known.reply.receipt).entry == receipt.entry


def test_a_model_is_fetched_from_any_offset(edge: Edge) -> None:
    silo = at_work(edge)
    lease = edge.server.lease(silo.signer, silo.job)
    whole = edge.server.core.blobs.path(lease.view.digest).read_bytes()
    for offset in (0, 1, limits.CHUNK, len(whole) - 1, len(whole)):
        request = federation_pb2.FetchModelRequest(job=silo.job, digest=lease.view.digest, offset=offset)
        header, *chunks = silo.member.federation.FetchModel(request, timeout=10)
        assert (header.header.view.bytes, len(header.header.receipts)) == (len(whole), 1)
        assert b"".join(chunk.chunk for chunk in chunks) == whole[offset:]
    beyond = federation_pb2.FetchModelRequest(job=silo.job, digest=lease.view.digest, offset=len(whole) + 1)
    assert refusal(lambda: list(silo.member.federation.FetchModel(beyond, timeout=5))) is Reason.SIZE_LIMIT


def _break_after(silo: AtWork, sending: Sending, bytes_sent: int) -> None:
    """Send so much, then vanish without ending the stream."""
    half_way, never = threading.Event(), threading.Event()

    def partly() -> Iterator[update_pb2.SubmitRequest]:
        yield sending.header()
        yield from sending.chunks(0, bytes_sent)
        half_way.set()
        never.wait(10)

    call = silo.member.updates.Submit.future(partly(), timeout=30)
    half_way.wait(10)
    eventually(lambda: synced(silo, sending.id) == bytes_sent, "the bytes arrived")
    call.cancel()
    never.set()


def test_a_broken_upload_is_kept_and_resumed_and_not_mistaken_for_a_short_one(edge: Edge) -> None:
    silo = at_work(edge)
    sending = leased(edge, silo)
    _break_after(silo, sending, limits.CHUNK + 17)
    eventually(lambda: not edge.calls._open, "the server let go of the broken stream")
    assert not entries_of(edge.server, "update.refused")
    offset = synced(silo, sending.id)
    assert offset == limits.CHUNK + 17
    rest = iter([sending.header(offset), *sending.chunks(offset)])
    assert silo.member.updates.Submit(rest, timeout=20).reason == ""


def test_an_upload_that_ends_too_early_on_purpose_is_refused_and_logged(edge: Edge) -> None:
    silo = at_work(edge)
    sending = leased(edge, silo)
    short = iter([sending.header(), *sending.chunks(0, 1000)])
    assert silo.member.updates.Submit(short, timeout=20).reason == Reason.SIZE_LIMIT
    (refused,) = entries_of(edge.server, "update.refused")
    assert refused.code == Reason.SIZE_LIMIT


def test_a_newer_stream_of_the_same_update_takes_over_from_one_that_hangs(edge: Edge) -> None:
    silo = at_work(edge)
    sending = leased(edge, silo)
    half_way, hang = threading.Event(), threading.Event()

    def hanging() -> Iterator[update_pb2.SubmitRequest]:
        yield sending.header()
        yield from sending.chunks(0, 100)
        half_way.set()
        hang.wait(20)
        yield from sending.chunks(100)

    first = silo.member.updates.Submit.future(hanging(), timeout=30)
    half_way.wait(10)
    eventually(lambda: synced(silo, sending.id) == 100, "the first stream's bytes arrived")
    assert silo.member.updates.Submit(sending.whole(), timeout=20).reason == ""
    with pytest.raises(Conflict):
        answer(lambda: first.result(10))
    hang.set()
    blob = edge.server.core.blobs.path(hashlib.sha256(sending.data).hexdigest())
    assert blob.read_bytes() == sending.data


def test_a_silent_stream_is_given_up_and_what_arrived_is_kept(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interceptor, "SILENCE", 0.2)
    silo = at_work(edge)
    sending = leased(edge, silo)
    never = threading.Event()

    def silent() -> Iterator[update_pb2.SubmitRequest]:
        yield sending.header()
        yield from sending.chunks(0, 100)
        never.wait(10)

    with pytest.raises(Unavailable, match="no message"):
        answer(lambda: silo.member.updates.Submit(silent(), timeout=20))
    never.set()
    assert synced(silo, sending.id) == 100


def test_a_wrong_header_is_refused_before_the_rest_is_taken(edge: Edge) -> None:
    silo = at_work(edge)
    sending = leased(edge, silo)
    data = (1 << 60).to_bytes(8, "little") + sending.data[8:]
    forged = Sending(sending.id, sending.envelope, data)
    reply = silo.member.updates.Submit(forged.whole(), timeout=20)
    assert reply.reason in (Reason.SIZE_LIMIT, Reason.MALFORMED)
    assert synced(silo, "another") == 0


# --- administrators ------------------------------------------------------------------------------------------------


def _submission(edge: Edge, tmp_path: Path, **changes: Any) -> list[admin_pb2.SubmitJobRequest]:
    """The parts of a job the harness has submitted before, under another seed."""
    _, terms = edge.server.submit("seed = 7\n", manifest=LARGE)
    initial = edge.server.core.blobs.path(terms.initial_sha256).read_bytes()
    fields = {
        "terms": terms.encode(),
        "manifest": LARGE.encode(),
        "archive_bytes": len(b"archive"),
        "initial_bytes": len(initial),
    }
    header = admin_pb2.SubmitJobHeader(**(fields | changes))
    chunks = [admin_pb2.SubmitJobRequest(chunk=chunk) for chunk in codec.chunks(b"archive" + initial)]
    return [admin_pb2.SubmitJobRequest(header=header), *chunks]


def test_a_job_is_submitted_watched_paused_and_exported(edge: Edge, tmp_path: Path) -> None:
    admin = edge.admin().admin
    reply = admin.SubmitJob(iter(_submission(edge, tmp_path)), timeout=20)
    admin.ChangeJob(
        admin_pb2.ChangeJobRequest(job=reply.job, action="pause", reason="nights only"), timeout=5
    )
    statuses = {job.job: job for job in admin.ListJobStatus(admin_pb2.ListJobStatusRequest(), timeout=5).jobs}
    assert statuses[reply.job].status == "paused"
    header, *chunks = admin.ExportModel(
        admin_pb2.ExportModelRequest(job=reply.job, version="head"), timeout=10
    )
    exported = b"".join(chunk.chunk for chunk in chunks)
    assert hashlib.sha256(exported).hexdigest() == header.header.digest
    one = admin.Watch(admin_pb2.WatchRequest(job=reply.job, interval_seconds=0.2), timeout=20)
    every = admin.Watch(admin_pb2.WatchRequest(interval_seconds=0.2), timeout=20)
    for watch in (one, every):
        first = next(watch)
        assert {job.job: job.status for job in first.jobs}[reply.job] == "paused"
        assert first.server.memory_bytes > 10_000_000
        assert 0 < first.server.disk_free_bytes < first.server.disk_bytes
    admin.ChangeJob(admin_pb2.ChangeJobRequest(job=reply.job, action="abort"), timeout=5)
    assert [job.status for job in list(one)[-1].jobs] == ["aborted"]
    for look in every:  # goes on with the other job, and with how this one ended
        if {job.job: job.status for job in look.jobs}[reply.job] == "aborted":
            break
    else:
        raise AssertionError("the end of a job was not told to who watches all of them")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"archive_bytes": 1 << 40}, Reason.SIZE_LIMIT),
        ({"archive_bytes": 0}, Reason.SIZE_LIMIT),
        ({"initial_bytes": 1 << 40}, Reason.SIZE_LIMIT),
        ({"initial_bytes": 100}, Reason.SIZE_LIMIT),
        ({"terms": b"x" * (limits.TERMS + 1)}, Reason.SIZE_LIMIT),
        ({"manifest": b"[]"}, Reason.SIZE_LIMIT),
        ({"archive_bytes": 6}, Reason.SIZE_LIMIT),
        ({"archive_bytes": 8}, Reason.SIZE_LIMIT),
        ({"terms": b"{}"}, Reason.MALFORMED),
    ],
)
def test_a_submission_that_is_not_what_it_announces_is_refused(
    edge: Edge, tmp_path: Path, changes: dict[str, Any], code: Reason
) -> None:
    admin = edge.admin().admin
    parts = _submission(edge, tmp_path, **changes)
    assert refusal(lambda: admin.SubmitJob(iter(parts), timeout=20)) is code
    eventually(lambda: not list(edge.server.core.blobs.spooled()), "nothing is left in the spool")
