"""TLS of the server: a leaf in memory that renews itself, and nothing older than TLS 1.3."""

import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from anabranch.errors import Misuse
from anabranch.wire.identity import new_tls_key, private_pem
from server import metrics
from server.ca.authority import Authority
from server.membership import Membership

HANDSHAKE = 0x16  # TLS record type; an alert is 0x15
PROBE_SECONDS = 5.0


@dataclass(frozen=True)
class _Current:
    configuration: Any  # grpc.ServerCertificateConfiguration
    start: float  # of its life, unix seconds
    renew_at: float  # after a third of it


class ServerCertificate:
    """The server's leaf. Its key is born here, is never written, and is another one after each renewal."""

    def __init__(self, membership: Membership, authority: Authority, hosts: Sequence[str]) -> None:
        self._membership = membership
        self._authority = authority
        self._hosts = hosts
        self._current: _Current | None = None

    def renew_if_due(self, now: float) -> None:
        """Call often, in a thread. New connections get the new leaf; open ones keep theirs.

        A leaf from the future is due as well: it was issued by a clock that ran ahead and has been set right since, and
        nobody whose clock is right takes it.
        """
        if self._current is not None and self._current.start <= now < self._current.renew_at:
            return
        key = new_tls_key()
        issued = self._membership.issue_server(key.public_key(), self._hosts)
        configuration = grpc.ssl_server_certificate_configuration(
            [(private_pem(key), issued.chain)], root_certificates=self._authority.ca_pem
        )
        start = issued.certificate.not_valid_before_utc.timestamp()
        self._current = _Current(configuration, start, now + (issued.not_after - now) / 3)
        metrics.CERTIFICATE_END.labels("server").set(issued.not_after)
        ca_end = self._authority.issuing.not_valid_after_utc.timestamp()
        metrics.CERTIFICATE_END.labels("issuing").set(ca_end)

    def credentials(self, *, client_certificate: bool) -> Any:
        """For a port; `client_certificate`: whether a caller must present one that our root has signed."""
        given = self._configuration()

        def changed() -> Any:
            """None as long as nothing has. gRPC asks on every new connection, from threads of its own, and exchanges what
            it has for whatever it gets, without a lock: under connections that come and go a double free, by which any
            stranger could end this process. Once a day it is exchanged, and when the clock was set back.
            """
            nonlocal given
            current = self._configuration()
            if current is given:
                return None
            given = current
            return current

        return grpc.dynamic_ssl_server_credentials(
            given, changed, require_client_authentication=client_certificate
        )

    def _configuration(self) -> Any:
        if self._current is None:
            raise Misuse("the server's certificate is used before it was issued")
        return self._current.configuration


def require_tls13_only(host: str, port: int) -> None:
    """Dial our own port with TLS 1.2 and with 1.3. Raises Misuse unless it refuses the one and takes the other.

    gRPC has no setting for it. It reads `GRPC_SSL_CIPHER_SUITES` when it is first imported (see `server`), so an
    import in the wrong order would silently bring TLS 1.2 back; therefore the port itself is asked.
    """
    if _answers(host, port, ssl.TLSVersion.TLSv1_2):
        raise Misuse(
            f"port {port} accepts TLS 1.2: grpc was imported before the package `server` could switch it off"
        )
    if not _answers(host, port, ssl.TLSVersion.TLSv1_3):
        raise Misuse(f"port {port} does not answer a TLS 1.3 handshake on {host}")


def _answers(host: str, port: int, version: ssl.TLSVersion) -> bool:
    """Whether the server goes on with a handshake of this version, rather than answering with an alert or the end."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = (
        False,
        ssl.CERT_NONE,
    )  # the question is the version, not the peer
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        context.wrap_bio(incoming, outgoing).do_handshake()
    except ssl.SSLWantReadError:
        hello = outgoing.read()
    with socket.create_connection((host, port), PROBE_SECONDS) as connection:
        connection.sendall(hello)
        try:
            return connection.recv(1)[:1] == bytes([HANDSHAKE])
        except ConnectionError:
            return False
