"""The table, through a real gRPC server: what one end raises is what the other end catches."""

import errno
import socket
from concurrent import futures

import grpc
import pytest

from anabranch.errors import AnabranchError, Conflict, Corrupt, Misuse, Reason, Refused, Unavailable
from anabranch.wire import limits, status, tls


class Server:
    """Fails every call with `error`, or answers with what it got."""

    def __init__(self):
        self.error = None
        self.server = grpc.server(futures.ThreadPoolExecutor(2), options=tls.SERVER_OPTIONS)
        handlers = {"Call": grpc.unary_unary_rpc_method_handler(self.call)}
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def call(self, request, context):
        if self.error is not None:
            code, message, metadata = status.to_status(self.error)
            context.set_trailing_metadata(metadata)
            context.abort(code, message)
        return request


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.server.stop(None).wait()


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.port}", options=tls.CHANNEL_OPTIONS) as channel:
        yield channel


def caught(channel, request=b"", method="/test.Test/Call", **options):
    with pytest.raises(grpc.RpcError) as error:
        channel.unary_unary(method)(request, timeout=options.pop("timeout", 10), **options)
    return status.from_rpc_error(error.value), error.value


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_survives_the_wire(server, channel, reason):
    server.error = Refused(reason, f"{reason}: 3 examples of ünïcode, 50 % more")
    found, raw = caught(channel)
    assert type(found) is Refused
    assert (found.code, str(found)) == (reason, str(server.error))
    assert raw.code() is status.REFUSED[reason]


@pytest.mark.parametrize("kind", [Conflict, Unavailable, Corrupt, Misuse])
def test_every_other_kind_survives_the_wire(server, channel, kind):
    server.error = kind("/var/lib/anabranch/state.db is odd")
    found, _ = caught(channel)
    assert type(found) is kind
    assert ("/var/lib" in str(found)) is (kind in (Conflict, Unavailable))


def test_the_table_is_total():
    assert status.REFUSED.keys() == set(Reason)
    assert {cls for cls, _ in status.KINDS.values()} | {Refused} == set(AnabranchError.__subclasses__())


def test_an_unknown_exception_is_our_bug_and_tells_nothing(server, channel):
    server.error = KeyError("password=hunter2")
    found, raw = caught(channel)
    assert type(found) is Misuse
    assert "hunter2" not in str(found) + str(raw.details()) + str(raw.trailing_metadata())


def test_a_full_disk_asks_to_retry(server, channel):
    for number in (errno.ENOSPC, errno.EDQUOT):
        server.error = OSError(number, "No space left on device", "/var/lib/anabranch/blobs")
        found, _ = caught(channel)
        assert type(found) is Unavailable
        assert "/var/lib" not in str(found)
    server.error = OSError(errno.EIO, "Input/output error")
    assert type(caught(channel)[0]) is Misuse


def test_a_long_message_fits_its_header(server, channel):
    server.error = Refused(Reason.MALFORMED, "é" * 100_000)
    found, _ = caught(channel)
    assert found.code is Reason.MALFORMED
    assert len(str(found)) == limits.STATUS_MESSAGE


class NewerError(Refused):
    """What a newer release would send."""

    def __init__(self, code, reason):
        super().__init__(Reason.MALFORMED, "not today")
        self.status, self.reason = code, reason


def test_a_reason_of_a_newer_release_stays_a_refusal(server, channel, monkeypatch):
    def newer(error):
        return error.status, str(error), ((status.ERROR_KEY, "refused"), (status.REASON_KEY, error.reason))

    monkeypatch.setattr(status, "to_status", newer)
    for code, nearest in (
        (grpc.StatusCode.UNAUTHENTICATED, Reason.REVOKED_IDENTITY),
        (grpc.StatusCode.DATA_LOSS, Reason.MALFORMED),
    ):
        server.error = NewerError(code, "budget_spent")
        found, _ = caught(channel)
        assert type(found) is Refused
        assert found.code is nearest
        assert "budget_spent" in str(found)


def test_what_grpc_itself_reports(server, channel):
    server.error = None
    assert type(caught(channel, method="/test.Test/Unknown")[0]) is Misuse
    with socket.create_server(("127.0.0.1", 0)) as mute:
        with grpc.insecure_channel(f"127.0.0.1:{mute.getsockname()[1]}") as waiting:
            found, raw = caught(waiting, timeout=0.2)
            assert (type(found), raw.code()) == (Unavailable, grpc.StatusCode.DEADLINE_EXCEEDED)
    found, _ = caught(channel, bytes(limits.REQUEST_MESSAGE + 1))
    assert (type(found), found.code) == (Refused, Reason.SIZE_LIMIT)
    with grpc.insecure_channel("127.0.0.1:1") as closed:
        assert type(caught(closed)[0]) is Unavailable


def test_the_server_refuses_what_a_client_may_not_send(server):
    server.error = None
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as free:
        found, _ = caught(free, bytes(limits.REQUEST_MESSAGE + 1))
        assert (type(found), found.code) == (Refused, Reason.SIZE_LIMIT)
        _, raw = caught(free, bytes(2**20), compression=grpc.Compression.Gzip)
        assert raw.code() is grpc.StatusCode.UNIMPLEMENTED
        assert free.unary_unary("/test.Test/Call")(bytes(limits.CHUNK)) == bytes(limits.CHUNK)
