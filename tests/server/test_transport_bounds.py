"""What the ports do not take, what nobody may take too much of, and what they say of themselves."""

import urllib.error
import urllib.request
from typing import Any

import grpc
import pytest

from anabranch.errors import Misuse, Reason, Refused, Unavailable
from anabranch.v1 import federation_pb2, update_pb2
from anabranch.wire import limits, tls
from server.config import Limits
from server.health import Health
from server.transport import interceptor
from tests.server.at_work import answer, entries_of, eventually, refusal
from tests.server.edge import Edge, Member, Talk
from tests.server.harness import Server

# --- hostile messages ----------------------------------------------------------------------------------------------


def raw(member: Member, method: str, data: bytes) -> Any:
    """Bytes where a message is expected."""
    return member.channel.unary_unary(f"/anabranch.v1.{method}")(data, timeout=10)


def test_messages_are_measured_before_they_are_parsed(edge: Edge) -> None:
    silo = edge.enrol("north")
    empty = b"\x0a\x00" * 100_000  # NextTaskRequest with 100,000 empty job ids
    assert refusal(lambda: raw(silo, "Federation/NextTask", empty)) is Reason.SIZE_LIMIT
    few = b"\x0a\x00" * (limits.JOBS + 1)
    assert refusal(lambda: raw(silo, "Federation/NextTask", few)) is Reason.SIZE_LIMIT
    long = federation_pb2.FetchArchiveRequest(job="x" * interceptor.CONTROL).SerializeToString()
    archive = silo.channel.unary_stream("/anabranch.v1.Federation/FetchArchive")
    assert refusal(lambda: list(archive(long, timeout=10))) is Reason.SIZE_LIMIT
    assert refusal(lambda: raw(silo, "Federation/NextTask", b"\xff\xff\xff")) is Reason.MALFORMED
    assert (
        refusal(lambda: raw(silo, "Federation/NextTask", b"x" * (limits.REQUEST_MESSAGE + 1)))
        is Reason.SIZE_LIMIT
    )


def test_what_an_agent_says_about_a_failed_task_fits_the_log_or_is_refused(edge: Edge) -> None:
    release = edge.enrol("north").federation.ReleaseLease
    for fields in (
        {"lease": "l1", "reason": "because"},
        {"lease": "l1", "reason": "task_failed", "exception": "Error: patient 4711"},
        {"lease": "l1", "reason": "task_failed", "code_line": "/home/alice/secret.py:1"},
        {"lease": "L 1", "reason": "task_failed"},
    ):
        request = federation_pb2.ReleaseLeaseRequest(**fields)
        assert refusal(lambda r=request: release(r, timeout=5)) is Reason.MALFORMED
    unknown = federation_pb2.ReleaseLeaseRequest(lease="l1", reason="task_failed", exception="ValueError")
    assert refusal(lambda: release(unknown, timeout=5)) is Reason.BAD_LEASE


def test_compressed_messages_are_not_taken(edge: Edge) -> None:
    silo = edge.enrol("north")
    address = f"127.0.0.1:{edge.ports.server_port}"
    ca = edge.membership.authority.ca_pem
    credentials = grpc.ssl_channel_credentials(ca, silo.key, silo.chain)
    with grpc.secure_channel(address, credentials, compression=grpc.Compression.Gzip) as channel:
        call = channel.unary_unary("/anabranch.v1.Federation/NextTask")
        with pytest.raises(grpc.RpcError) as error:
            call(b"\0" * 60_000_000, timeout=20)
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_an_unknown_method_is_unimplemented(edge: Edge) -> None:
    silo = edge.enrol("north")
    with pytest.raises(Misuse):
        answer(lambda: raw(silo, "Federation/Nonsense", b""))


def test_one_identity_cannot_take_everything(server: Server) -> None:
    edge = Edge(
        server, Limits(calls_per_second=1, calls_burst=6, calls_open=2, bytes_per_hour=1 << 20)
    ).start()
    try:
        north, south = edge.enrol("north"), edge.enrol("south")
        with Talk(north) as one, Talk(north) as two:
            one.hear()
            two.hear()
            assert (
                refusal(lambda: north.federation.ListJobs(federation_pb2.ListJobsRequest(), timeout=5))
                is Reason.QUOTA
            )
        eventually(lambda: not edge.calls._open, "both sessions ended")
        codes = set()
        for _ in range(8):
            try:
                answer(lambda: north.federation.ListJobs(federation_pb2.ListJobsRequest(), timeout=5))
            except Refused as error:
                codes.add(error.code)
        assert codes == {Reason.QUOTA}
        south.federation.ListJobs(federation_pb2.ListJobsRequest(), timeout=5)
        greedy = update_pb2.SubmitRequest(chunk=b"x" * limits.CHUNK)
        header = update_pb2.SubmitRequest(header=update_pb2.SubmitHeader(update="u"))
        assert refusal(lambda: south.updates.Submit(iter([greedy]), timeout=5)) is Reason.QUOTA
        assert refusal(lambda: south.updates.Submit(iter([header]), timeout=5)) is Reason.MALFORMED
    finally:
        edge.stop()


def test_failed_attempts_are_counted_and_logged_together(edge: Edge) -> None:
    admin = edge.admin()
    for _ in range(5):
        refusal(lambda: admin.federation.ListJobs(federation_pb2.ListJobsRequest(), timeout=5))
    edge.membership.revoke(edge.server.core.observer, edge.invite("north").silo)
    edge.failures.flush()
    edge.failures.flush()
    (failed,) = entries_of(edge.server, "auth.failed")
    assert (failed.code, failed.count, failed.method) == (Reason.WRONG_ROLE, 5, "Federation/ListJobs")


def test_a_bug_behind_the_transport_tells_nothing_about_the_inside(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_silo: str) -> None:
        raise KeyError("/var/lib/anabranch/secret")

    monkeypatch.setattr(type(edge.rooms.jobs), "offered", lambda _self, silo: broken(silo))
    silo = edge.enrol("north")
    with pytest.raises(Misuse) as error:
        answer(lambda: silo.federation.ListJobs(federation_pb2.ListJobsRequest(), timeout=5))
    assert "secret" not in str(error.value)


def test_two_servers_cannot_share_a_port(edge: Edge) -> None:
    taken = f"127.0.0.1:{edge.ports.server_port}"
    second = edge.on_loop(edge._make_ports())
    second._listen = second._listen.model_copy(update={"server": taken})
    with pytest.raises(Unavailable, match="cannot listen"):
        edge.on_loop(second.open())


# --- health --------------------------------------------------------------------------------------------------------


def test_health_says_what_is_wrong_and_metrics_are_prometheus() -> None:
    ailing, unready = [""], ["not serving yet"]
    health = Health("127.0.0.1:0", lambda: ailing[0], lambda: unready[0])
    health.start()

    def get(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{health.port}{path}", timeout=5) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    assert get("/healthz") == (200, "ok\n")
    assert get("/readyz") == (503, "not serving yet\n")
    ailing[0], unready[0] = "the writer stopped", ""
    assert get("/healthz") == (503, "the writer stopped\n")
    assert get("/readyz") == (200, "ok\n")
    code, text = get("/metrics")
    assert code == 200
    assert "anabranch_sessions" in text
    assert get("/etc/passwd")[0] == 404
    health.stop()


def test_the_options_of_both_ends_agree() -> None:
    client, server = dict(tls.CHANNEL_OPTIONS), dict(tls.SERVER_OPTIONS)
    pause = server["grpc.http2.min_recv_ping_interval_without_data_ms"]
    assert int(pause) <= int(client["grpc.keepalive_time_ms"])
