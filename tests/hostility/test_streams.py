"""Those who take a place and leave it empty: connections without a call, calls without a message, one byte now and then."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from anabranch.errors import Reason
from anabranch.v1 import federation_pb2, update_pb2
from server.transport import interceptor
from tests.hostility.target import FEW, MIB, Target, extra_memory, met, until
from tests.server.at_work import LARGE, at_work, leased
from tests.server.edge import Edge
from tests.server.harness import Server
from tests.server.test_tls import ADMIN_CALLS, ADMIN_STREAMS, SILO_CALLS, SILO_STREAMS

KINDS = {"Session": "stream_stream", "Submit": "stream_unary", "SubmitJob": "stream_unary"}


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    server = Server(tmp_path / "server")
    running = Edge(server).start()
    yield running
    running.stop()
    server.core.close()


def test_a_call_that_never_sends_its_message_is_given_up(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC itself would wait for the message of a unary call for ever, and before anybody was asked whose call it is."""
    monkeypatch.setattr(interceptor, "SILENCE", 0.2)
    silo, admin, never = edge.enrol("north"), edge.admin(), threading.Event()
    stranger = edge.dial(None, None, edge.ports.enrolment_port)

    def silence() -> Iterator[bytes]:
        never.wait(20)
        return
        yield b""

    calls = [
        *((silo.channel, f"{service}/{name}") for service, name, _ in (*SILO_CALLS, *SILO_STREAMS)),
        *((admin.channel, f"{service}/{name}") for service, name, _ in (*ADMIN_CALLS, *ADMIN_STREAMS)),
        (stranger, "enrolment/Begin"),
        (stranger, "enrolment/Enrol"),
    ]
    try:
        open_calls = [
            (name, channel.stream_stream(f"/anabranch.v1.{name[0].upper()}{name[1:]}")(silence(), timeout=20))
            for channel, name in calls
        ]
        for name, call in open_calls:
            assert met(lambda call=call: list(call)) == "unavailable", name
            assert "no message" in (call.details() or ""), name
    finally:
        never.set()
    until(lambda: not edge.calls._open, "no call is left open")


def test_one_byte_now_and_then_disturbs_nobody(edge: Edge) -> None:
    """A silo takes every place it has with uploads that crawl: its own next call is refused, others are served."""
    north, south = at_work(edge, "north", LARGE), at_work(edge, "south", LARGE)
    crawling, going = leased(edge, north), leased(edge, south)
    stop = threading.Event()

    def crawl(number: int) -> Iterator[update_pb2.SubmitRequest]:
        header = crawling.header()
        yield header
        for at in range(len(crawling.data)):
            if stop.wait(0.2):
                return
            yield update_pb2.SubmitRequest(chunk=crawling.data[at : at + 1])

    most = edge.calls._limits.calls_open
    with ExitStack() as streams:
        streams.callback(stop.set)
        # Of one update only the newest stream lives, so every place is taken by another method's silence.
        first = north.member.updates.Submit.future(crawl(0), timeout=60)
        streams.callback(first.cancel)
        for _ in range(most - 1):
            call = north.member.federation.Session(_nothing(stop), timeout=60)
            streams.callback(call.cancel)
        until(
            lambda: sum(c.allowance.open for c in list(edge.calls._open)[:1]) >= most, "its places are taken"
        )
        request = federation_pb2.ListJobsRequest()
        assert met(lambda: north.member.federation.ListJobs(request, timeout=10)) == Reason.QUOTA
        assert south.member.updates.Submit(going.whole(), timeout=60).reason == ""
        until(lambda: _arrived(edge) > 2, "the slow bytes are taken, too")
    until(lambda: not edge.calls._open, "the slow streams are gone")
    resumed = crawling.whole()
    assert met(lambda: north.member.updates.Submit(resumed, timeout=60)) == "ok"


def _arrived(edge: Edge) -> int:
    return max((path.stat().st_size for path in edge.server.core.blobs.spooled()), default=0)


def _nothing(stop: threading.Event) -> Iterator[federation_pb2.AgentMessage]:
    yield federation_pb2.AgentMessage(
        hello=federation_pb2.Hello(protocol_min=1, protocol_max=1, release="0.1.0")
    )
    stop.wait(60)


def test_connections_without_a_call_do_not_take_the_servers_files(target: Target) -> None:
    """Strangers with nothing but a socket: more of them than files the server process was started with."""
    with extra_memory(target.pid) as memory, ExitStack() as strangers:
        for port in target.federation.ports[:2]:
            for _ in range(FEW):
                strangers.enter_context(socket.create_connection(("localhost", port), 5))
        target.honest_call()
        target.lease("honest")  # writes: database, blob store and checkpoint register each open files
        fresh = target.member(target.members["honest"].key, target.members["honest"].chain)
        request = federation_pb2.ListJobsRequest()
        assert met(lambda: fresh.federation.ListJobs(request, timeout=30)) == "ok"
        fresh.channel.close()
    assert memory.extra <= 64 * MIB


def test_strangers_who_connect_and_leave_do_not_end_the_server(target: Target) -> None:
    """Nothing but TCP, a hundred times over: gRPC freed twice what it serves connections with, and the process died."""
    for _ in range(8):
        with ExitStack() as strangers:
            for port in target.federation.ports[:2]:
                for _ in range(FEW):
                    strangers.enter_context(socket.create_connection(("localhost", port), 5))
            target.honest_call()
    assert target.federation.processes["server"].poll() is None


@pytest.mark.soak
def test_connections_that_say_nothing_are_closed(target: Target) -> None:
    """Half a handshake ends after ten seconds; a finished one without a call after a minute."""
    half = socket.create_connection(("localhost", target.federation.ports[1]), 5)
    half.settimeout(20)
    assert half.recv(1) == b""
    credentials = grpc.ssl_channel_credentials(target.ca)
    options = (("grpc.max_reconnect_backoff_ms", 60_000),)
    with grpc.secure_channel(target.address(enrolment=True), credentials, options=options) as channel:
        states: list[grpc.ChannelConnectivity] = []
        channel.subscribe(states.append, try_to_connect=True)
        until(lambda: grpc.ChannelConnectivity.READY in states, "a stranger connects")
        until(lambda: states[-1] is not grpc.ChannelConnectivity.READY, "and is sent away", 90)
