"""Channels over real TLS on loopback, directly and through a real HTTP CONNECT proxy."""

import contextlib
import socket
import threading
from concurrent import futures
from datetime import UTC, datetime

import grpc
import pytest

from anabranch.errors import Misuse, Unavailable
from anabranch.wire import identity, status, tls
from tests.wire import pki


def _member(ca, **fields):
    key = identity.new_tls_key()
    now = datetime.now(UTC)
    return identity.private_pem(key), pki.pem(pki.leaf(ca, key=key, now=now, **fields), ca.issuing)


@pytest.fixture(scope="module")
def live():
    """The clock of a handshake is the real one."""
    shift = datetime.now(UTC) - pki.NOW
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pki, "NOW", pki.NOW + shift)
        return pki.authority()


@pytest.fixture(scope="module")
def client(live):
    return _member(live)


@pytest.fixture(scope="module")
def port(live):
    """A server that requires client certificates and answers with the names it sees."""
    key, cert = _member(live, uris=[pki.AGGREGATOR], hosts=["localhost"], usages=[pki.SERVER])

    def whoami(_, context):
        return b",".join(context.auth_context().get("peer_spiffe_id", [b"nobody"]))

    server = grpc.server(futures.ThreadPoolExecutor(2), options=tls.SERVER_OPTIONS)
    handlers = {"WhoAmI": grpc.unary_unary_rpc_method_handler(whoami)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, cert)], live.pem, True))
    server.start()
    yield port
    server.stop(None).wait()


class ConnectProxy:
    """RFC 9110, section 9.3.6: CONNECT only; resolves every name to loopback and remembers whom it was asked
    for.
    """

    def __init__(self):
        self.requests = []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(4096)
        self.requests.append(head.decode())
        target = head.split()[1].decode()
        upstream = socket.create_connection(("127.0.0.1", int(target.rpartition(":")[2])))
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        threading.Thread(target=_pump, args=(upstream, client), daemon=True).start()
        _pump(client, upstream)


def _pump(source, target):
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture
def proxy():
    proxy = ConnectProxy()
    yield proxy
    proxy.socket.close()


@pytest.fixture(autouse=True)
def no_proxy_around(monkeypatch):
    for name in ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def ask(channel):
    with channel:
        return channel.unary_unary("/test.Test/WhoAmI")(b"", timeout=10)


def refused(channel):
    with pytest.raises(grpc.RpcError) as error:
        ask(channel)
    return status.from_rpc_error(error.value)


def test_the_server_sees_the_silo(port, live, client):
    assert ask(tls.channel(f"localhost:{port}", live.pem, *client)) == pki.SILO.encode()


def test_without_a_certificate_nobody_gets_in(port, live):
    assert type(refused(tls.channel(f"localhost:{port}", live.pem, None, None))) is Unavailable


def test_a_server_of_another_ca_is_not_talked_to(port, ca, client):
    assert type(refused(tls.channel(f"localhost:{port}", ca.pem, *client))) is Unavailable


def test_a_server_under_another_name_is_not_talked_to(port, live, client):
    assert type(refused(tls.channel(f"127.0.0.1:{port}", live.pem, *client))) is Unavailable


def test_key_and_certificate_come_together(live, client):
    key, cert = client
    for pair in ((key, None), (None, cert)):
        with pytest.raises(Misuse):
            tls.channel("localhost:1", live.pem, *pair)


def test_through_a_connect_proxy(port, live, client, proxy):
    assert ask(tls.channel(f"localhost:{port}", live.pem, *client, proxy.url)) == pki.SILO.encode()
    (request,) = proxy.requests
    assert request.startswith(f"CONNECT localhost:{port} HTTP/1.")


def test_the_proxy_may_ask_for_a_password(port, live, client, proxy):
    url = proxy.url.replace("http://", "http://north:secret@")
    assert ask(tls.channel(f"localhost:{port}", live.pem, *client, url)) == pki.SILO.encode()
    assert "Proxy-Authorization: Basic bm9ydGg6c2VjcmV0" in proxy.requests[0]


def test_the_environment_may_name_the_proxy_and_the_exceptions(port, live, client, proxy, monkeypatch):
    monkeypatch.setenv("https_proxy", proxy.url)
    assert ask(tls.channel(f"localhost:{port}", live.pem, *client)) == pki.SILO.encode()
    assert len(proxy.requests) == 1
    monkeypatch.setenv("no_proxy", "localhost")
    assert ask(tls.channel(f"localhost:{port}", live.pem, *client)) == pki.SILO.encode()
    assert len(proxy.requests) == 1


def test_tls_is_end_to_end_through_the_proxy(port, ca, client, proxy):
    """A proxy that leads to somebody else's server is found out."""
    assert type(refused(tls.channel(f"localhost:{port}", ca.pem, *client, proxy.url))) is Unavailable
    assert proxy.requests
