"""The way to the server, hop by hop, with sockets and `ssl`: gRPC itself only says UNAVAILABLE.

Nothing secret is sent: a probe ends when the server has shown its certificate.
"""

import base64
import os
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from cryptography import x509

from anabranch.errors import Reason, Refused, Unavailable, plain, wording
from anabranch.wire.identity import parse_identity
from silo_agent.config import split_address

SECONDS = 5.0  # for each hop

# OpenSSL X509_V_ERR_*
_NOT_YET_VALID, _EXPIRED, _OTHER_HOST, _OTHER_ADDRESS = 9, 10, 62, 64
MEANING = 1000  # characters
_REPLY = 8192  # bytes of a proxy's answer


class HopFailed(Unavailable):
    """One hop of the way does not work."""

    def __init__(self, hop: str, meaning: str, remedy: str) -> None:
        meaning = plain(meaning, MEANING)  # it may quote whoever answered
        super().__init__(f"{hop}: {meaning}. {remedy}")
        self.hop, self.meaning, self.remedy = hop, meaning, remedy


@dataclass(frozen=True)
class Proxy:
    host: str
    port: int
    authorization: str | None  # of the Proxy-Authorization header

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def proxy_for(address: str, configured: str | None) -> Proxy | None:
    """The HTTP CONNECT proxy gRPC would use: the configured one, else the environment's, unless no_proxy rules it out."""
    host, _ = split_address(address)
    names = ("grpc_proxy", "https_proxy", "http_proxy")
    url = configured or next((os.environ[name] for name in names if os.environ.get(name)), None)
    exempt = next((os.environ[name] for name in ("no_grpc_proxy", "no_proxy") if os.environ.get(name)), "")
    if url is None or any(host.endswith(entry.strip()) for entry in exempt.split(",") if entry.strip()):
        return None
    parts = urlsplit(url)
    authorization = None
    if parts.username:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        authorization = "Basic " + base64.b64encode(login).decode()
    return Proxy(parts.hostname or "", parts.port or 80, authorization)


def resolve(address: str, proxy: Proxy | None) -> str:
    """What the name in front of us resolves to: the proxy's, if there is one. Raises HopFailed."""
    host = proxy.host if proxy else split_address(address)[0]
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        what = "proxy" if proxy else "server"
        raise HopFailed(
            "DNS",
            f"the {what}'s name {host!r} does not resolve ({wording(error)})",
            "Check the spelling in federation.json or agent.toml, and this machine's DNS; behind a proxy that "
            "resolves names, set proxy in agent.toml",
        ) from error
    return ", ".join(sorted({str(entry[4][0]) for entry in found}))


def connect(address: str, proxy: Proxy | None) -> socket.socket:
    """A TCP connection to the server, through the proxy if there is one. Raises HopFailed."""
    host, port = (proxy.host, proxy.port) if proxy else split_address(address)
    where = f"proxy {proxy}" if proxy else address
    try:
        connection = socket.create_connection((host, port), SECONDS)
    except ConnectionRefusedError as error:
        raise HopFailed(
            "TCP",
            f"{where} refuses the connection: nothing listens on this port, or a firewall rejects it",
            "Check host and port with the federation's administrator, and that the server runs",
        ) from error
    except OSError as error:
        raise HopFailed(
            "TCP",
            f"{where} does not answer ({wording(error)})",
            f"A firewall probably drops the packets: ask for outbound TCP to {where}; nothing inbound is needed",
        ) from error
    if proxy is not None:
        _tunnel(connection, address, proxy)
    return connection


def handshake(address: str, proxy: Proxy | None, ca_pem: bytes, federation: str) -> x509.Certificate:
    """The server's certificate, verified against the pinned CA and the host's name. Raises HopFailed."""
    host, _ = split_address(address)
    context = ssl.create_default_context(cadata=ca_pem.decode("ascii"))
    context.set_alpn_protocols(["h2"])
    try:
        with context.wrap_socket(connect(address, proxy), server_hostname=host) as secured:
            if secured.selected_alpn_protocol() != "h2":
                raise HopFailed(
                    "TLS",
                    f"{address} speaks TLS with the right certificate, but not HTTP/2",
                    "Something between here and the server ends the connection: pass TCP through to the server",
                )
            return x509.load_der_x509_certificate(secured.getpeercert(binary_form=True) or b"")
    except ssl.SSLCertVerificationError as error:
        raise _untrusted(error, address, proxy, federation) from error
    except (ssl.SSLError, OSError) as error:
        raise HopFailed(
            "TLS",
            f"{address} accepts connections but breaks off the TLS handshake ({wording(error)})",
            "Probably another service, or a proxy that allows no TLS: check the port",
        ) from error


def walk(address: str, configured_proxy: str | None, ca_pem: bytes, federation: str) -> None:
    """Every hop to the server. Raises HopFailed for the first that does not work."""
    proxy = proxy_for(address, configured_proxy)
    resolve(address, proxy)
    connect(address, proxy).close()
    handshake(address, proxy, ca_pem, federation)


def _tunnel(connection: socket.socket, address: str, proxy: Proxy) -> None:
    lines = [f"CONNECT {address} HTTP/1.1", f"Host: {address}"]
    if proxy.authorization:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    reply = b""
    try:
        connection.sendall("\r\n".join([*lines, "", ""]).encode("ascii"))
        while b"\r\n\r\n" not in reply and len(reply) < _REPLY:
            piece = connection.recv(_REPLY)
            if not piece:
                break
            reply += piece
    except OSError as error:
        raise HopFailed(
            "TCP", f"proxy {proxy} broke off ({wording(error)})", "Check proxy in agent.toml"
        ) from error
    status = reply.split(b"\r\n", 1)[0].decode("latin-1")
    if len(parts := status.split(" ", 2)) < 2 or not parts[0].startswith("HTTP/") or parts[1] != "200":
        connection.close()
        hint = (
            "It wants a login: write proxy as http://user:password@host:port"
            if " 407" in status
            else (f"Ask its administrator to allow CONNECT to {address}")
        )
        raise HopFailed(
            "TCP", f"proxy {proxy} does not connect to {address}: {status[:120] or 'no answer'}", hint
        )


def _untrusted(
    error: ssl.SSLCertVerificationError, address: str, proxy: Proxy | None, federation: str
) -> HopFailed:
    leaf = presented(address, proxy)
    explain: dict[int, Callable[[], HopFailed]] = {
        _EXPIRED: lambda: _dates(leaf, address),
        _NOT_YET_VALID: lambda: _dates(leaf, address),
        _OTHER_HOST: lambda: _wrong_host(leaf, address),
        _OTHER_ADDRESS: lambda: _wrong_host(leaf, address),
    }
    return explain.get(error.verify_code, lambda: _other_ca(leaf, address, federation, error))()


def presented(address: str, proxy: Proxy | None) -> x509.Certificate | None:
    """The certificate somebody shows at this address, whoever it is; nothing is trusted or sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with context.wrap_socket(connect(address, proxy), server_hostname=split_address(address)[0]) as shown:
            return readable(shown.getpeercert(binary_form=True) or b"")
    except (OSError, HopFailed):
        return None


def readable(der: bytes) -> x509.Certificate | None:
    """A certificate of anybody's making, None unless everything we may tell of it can be read."""
    try:
        leaf = x509.load_der_x509_certificate(der)
        # Parts are parsed only when asked for.
        _ = (
            leaf.issuer.rfc4514_string(),
            leaf.extensions,
            leaf.not_valid_before_utc,
            leaf.not_valid_after_utc,
        )
    except Exception:  # a parser fed by strangers: whatever it raises, the certificate is at fault
        return None
    return leaf


def _names(leaf: x509.Certificate) -> x509.SubjectAlternativeName:
    """Of a certificate that is `readable`; empty when it has none."""
    try:
        return leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return x509.SubjectAlternativeName([])


def _dates(leaf: x509.Certificate | None, address: str) -> HopFailed:
    valid = (
        ""
        if leaf is None
        else f" (valid {leaf.not_valid_before_utc:%F %T} to {leaf.not_valid_after_utc:%F %T} UTC)"
    )
    return HopFailed(
        "TLS",
        f"by this machine's clock the certificate of {address} has expired or is not valid yet{valid}",
        "Check this machine's clock first; if it is right, the server's certificate has lapsed: tell its administrator",
    )


def _wrong_host(leaf: x509.Certificate | None, address: str) -> HopFailed:
    names: list[str] = []
    if leaf is not None:
        alternatives = _names(leaf)
        names = [
            *alternatives.get_values_for_type(x509.DNSName),
            *map(str, alternatives.get_values_for_type(x509.IPAddress)),
        ]
    return HopFailed(
        "TLS",
        f"the server at {address} is of this federation, but its certificate is for {', '.join(names) or 'no host'}",
        "Dial one of these names (server in agent.toml), or have the administrator add this one to the server",
    )


def _other_ca(
    leaf: x509.Certificate | None, address: str, federation: str, error: ssl.SSLCertVerificationError
) -> HopFailed:
    found = _federation_of(leaf)
    if found is not None:
        whose = (
            "this federation's name, but under another CA" if found == federation else f"federation {found!r}"
        )
        return HopFailed(
            "TLS",
            f"{address} is a server of {whose}, not the CA pinned at enrolment",
            "Check the address; if the federation was set up anew, ask for a new bundle and enrol again",
        )
    issuer = "somebody unknown" if leaf is None else repr(leaf.issuer.rfc4514_string())
    return HopFailed(
        "TLS",
        f"the certificate at {address} was issued by {issuer}, not by the CA pinned at enrolment ({error.verify_message}): "
        "somebody between here and the server decrypts TLS (inspection proxy, antivirus), or it is another server",
        f"Have {address} exempted from TLS inspection; the agent never talks to a server it cannot authenticate",
    )


def _federation_of(leaf: x509.Certificate | None) -> str | None:
    """The trust domain, if the certificate is an Anabranch server's."""
    if leaf is None:
        return None
    try:
        who = parse_identity(_names(leaf).get_values_for_type(x509.UniformResourceIdentifier)[0])
    except (IndexError, Refused):
        return None
    return who.federation if who.role == "aggregator" else None


def as_refusal(fault: HopFailed) -> Exception:
    """A hop that will not heal by waiting is a refusal; one that may is unavailable."""
    return Refused(Reason.BAD_CERTIFICATE, str(fault)) if fault.hop == "TLS" else fault
