"""Certificates with one thing wrong, each tried on every method of both kinds of member: none opens anything."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from anabranch.errors import Reason
from anabranch.v1 import admin_pb2, audit_pb2, federation_pb2, revival_pb2, update_pb2
from anabranch.wire import identity
from server.ca.authority import create_authority, open_authority
from tests.hostility.target import met
from tests.server.at_work import entries_of
from tests.server.edge import Edge, Member
from tests.server.harness import FEDERATION, Server
from tests.server.test_tls import (
    ADMIN_CALLS,
    ADMIN_STREAMS,
    REVIVER_CALLS,
    REVIVER_STREAMS,
    SILO_CALLS,
    SILO_STREAMS,
)
from tests.wire import pki

SILO = f"spiffe://{FEDERATION}/silo/north/agent/0"
NO_CONNECTION = "unavailable"  # the handshake fails: no method is ever reached
CALLS = [
    *((*call, False) for call in (*SILO_CALLS, *ADMIN_CALLS, *REVIVER_CALLS)),
    *((*call, True) for call in (*SILO_STREAMS, *ADMIN_STREAMS, *REVIVER_STREAMS)),
    ("audit", "GetCheckpoint", audit_pb2.GetCheckpointRequest(), False),
    ("audit", "GetConsistency", audit_pb2.GetConsistencyRequest(), False),
]


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    server = Server(tmp_path_factory.mktemp("certificates") / "server")
    running = Edge(server).start()
    yield running
    running.stop()
    server.core.close()


@dataclass(frozen=True)
class Forger:
    """Holds the issuing key, which is more than any thief of a silo's key does."""

    edge: Edge
    directory: Any

    def signing(self) -> pki.Authority:
        authority = self.edge.membership.authority
        return pki.Authority(authority.root, authority.issuing, authority._key)

    def leaf(self, listed: bool = True, **changes: Any) -> Member:
        """A silo's leaf with `changes`, on the allow-list unless said otherwise."""
        fields: dict[str, Any] = {"uris": (SILO,), "key": identity.new_tls_key(), "now": datetime.now(UTC)}
        return self.show(pki.leaf(self.signing(), **(fields | changes)), (fields | changes)["key"], listed)

    def show(
        self, leaf: x509.Certificate, key: Any, listed: bool, *chain: x509.Certificate, silo: str = "north"
    ) -> Member:
        allowed, now = self.edge.allow_list, time.time()
        if listed:
            allowed.add(identity.fingerprint(leaf), SILO, silo, now + 3600, 10**9, now)
        return self.edge.member(key, pki.pem(leaf, *(chain or (self.signing().issuing,))))

    def foreign(self) -> pki.Authority:
        where = self.directory / f"ca-{time.time_ns()}"
        create_authority(where, FEDERATION, time.time())
        other = open_authority(where, FEDERATION, time.time())
        return pki.Authority(other.root, other.issuing, other._key)


def _other_ca(forger: Forger) -> Member:
    other, key = forger.foreign(), identity.new_tls_key()
    leaf = pki.leaf(other, uris=(SILO,), key=key, now=datetime.now(UTC))
    return forger.show(leaf, key, True, other.issuing)


def _other_ca_same_name(forger: Forger) -> Member:
    """Signed by another key, sent with the true issuing certificate."""
    other, key = forger.foreign(), identity.new_tls_key()
    return forger.show(pki.leaf(other, uris=(SILO,), key=key, now=datetime.now(UTC)), key, True)


def _self_signed(forger: Forger) -> Member:
    key = identity.new_tls_key()
    itself = pki.Authority(forger.signing().root, forger.signing().issuing, key)
    leaf = pki.leaf(itself, uris=(SILO,), key=key, now=datetime.now(UTC))
    return forger.show(leaf, key, True, leaf)


def _below_a_leaf(forger: Forger) -> Member:
    """A chain that is one too long: a silo signs for another silo."""
    upper, key = identity.new_tls_key(), identity.new_tls_key()
    middle = pki.leaf(forger.signing(), uris=(SILO,), key=upper, now=datetime.now(UTC))
    below = pki.leaf(
        pki.Authority(forger.signing().root, middle, upper), uris=(SILO,), key=key, now=datetime.now(UTC)
    )
    return forger.show(below, key, True, middle, forger.signing().issuing)


def _below_a_ca_leaf(forger: Forger) -> Member:
    """The same under a leaf that says it is a CA."""
    upper, key = identity.new_tls_key(), identity.new_tls_key()
    fields = {"is_ca": True, "usage": pki.key_usage("digital_signature", "key_cert_sign")}
    middle = pki.leaf(forger.signing(), uris=(SILO,), key=upper, now=datetime.now(UTC), **fields)
    below = pki.leaf(
        pki.Authority(forger.signing().root, middle, upper), uris=(SILO,), key=key, now=datetime.now(UTC)
    )
    return forger.show(below, key, True, middle, forger.signing().issuing)


def _revoked(forger: Forger) -> Member:
    member = forger.edge.enrol("gone")
    forger.edge.membership.revoke(forger.edge.server.core.observer, "gone")
    return member


def _of_the_server(forger: Forger) -> Member:
    key = identity.new_tls_key()
    issued = forger.edge.membership.issue_server(key.public_key(), ["127.0.0.1"])
    return forger.edge.member(key, issued.chain)


def _replaced(forger: Forger) -> Member:
    """Renewed, and the new one was used."""
    member = forger.edge.enrol("renewed")
    allowed = forger.edge.allow_list
    uri, later = f"spiffe://{FEDERATION}/silo/renewed/agent/0", time.time() + 3600
    allowed.add("f" * 64, uri, "renewed", later, 10**9, time.time())
    allowed.check("f" * 64, time.time())
    return member


def _uri(*uris: str) -> Callable[[Forger], Member]:
    return lambda forger: forger.leaf(uris=uris)


def _field(**changes: Any) -> Callable[[Forger], Member]:
    return lambda forger: forger.leaf(**changes)


BOTH = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH)
BAD, REVOKED = Reason.BAD_CERTIFICATE.value, Reason.REVOKED_IDENTITY.value
CERTIFICATES: dict[str, tuple[Callable[[Forger], Member], str]] = {
    "expired": (_field(start=timedelta(days=-3), life=timedelta(days=2)), NO_CONNECTION),
    "not yet valid": (_field(start=timedelta(hours=1)), NO_CONNECTION),
    "another CA": (_other_ca, NO_CONNECTION),
    "another CA of the same name": (_other_ca_same_name, NO_CONNECTION),
    "self-signed": (_self_signed, NO_CONNECTION),
    "signed by a silo": (_below_a_leaf, NO_CONNECTION),
    "signed by a leaf that says it is a CA": (_below_a_ca_leaf, "either"),
    "RSA 2048": (lambda f: f.leaf(key=rsa.generate_private_key(65537, 2048)), "either"),
    "RSA 1024": (lambda f: f.leaf(key=rsa.generate_private_key(65537, 1024)), "either"),
    "P-384": (lambda f: f.leaf(key=ec.generate_private_key(ec.SECP384R1())), "either"),
    "Ed25519": (lambda f: f.leaf(key=ed25519.Ed25519PrivateKey.generate()), "either"),
    "serverAuth": (_field(usages=(ExtendedKeyUsageOID.SERVER_AUTH,)), "either"),
    "both usages": (_field(usages=BOTH), BAD),
    "any usage": (_field(usages=(ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,)), "either"),
    "code signing": (_field(usages=(ExtendedKeyUsageOID.CODE_SIGNING,)), "either"),
    "no usage": (_field(usages=None), BAD),
    "a CA": (_field(is_ca=True), "either"),
    "key usage for signing certificates": (
        _field(usage=pki.key_usage("digital_signature", "key_cert_sign")), "either"),
    "no basic constraints": (_field(drop=(x509.BasicConstraints,)), BAD),
    "no names": (_field(drop=(x509.SubjectAlternativeName,)), BAD),
    "a host instead of a URI": (_field(uris=(), hosts=("silo.test",)), BAD),
    "two URIs": (_uri(SILO, f"spiffe://{FEDERATION}/silo/south/agent/0"), BAD),
    "the same URI twice": (_uri(SILO, SILO), BAD),
    "a host beside the URI": (_field(hosts=("silo.test",)), BAD),
    "a mail address beside the URI": (_field(mails=("a@silo.test",)), BAD),
    "a common name": (_field(subject=pki.common_name("north")), BAD),
    "another trust domain": (_uri("spiffe://else.test/silo/north/agent/0"), BAD),
    "a subdomain of ours": (_uri(f"spiffe://evil.{FEDERATION}/silo/north/agent/0"), BAD),
    "a user in the authority": (_uri(f"spiffe://{FEDERATION}@evil.test/silo/north/agent/0"), BAD),
    "an unknown role": (_uri(f"spiffe://{FEDERATION}/root"), BAD),
    "the server's role with a client's usage": (_uri(f"spiffe://{FEDERATION}/aggregator/0"), BAD),
    "a wildcard": (_uri(f"spiffe://{FEDERATION}/silo/*/agent/0"), BAD),
    "a NUL inside the name": (_uri(f"spiffe://{FEDERATION}/silo/north\0/agent/0"), BAD),
    "a NUL behind the name": (_uri(SILO + "\0.evil.test"), BAD),
    "a line break behind the name": (_uri(SILO + "\n"), BAD),
    "capital letters": (_uri(f"spiffe://{FEDERATION}/silo/NORTH/agent/0"), BAD),
    "percent signs": (_uri(f"spiffe://{FEDERATION}/silo/n%6Frth/agent/0"), BAD),
    "dots in the path": (_uri(f"spiffe://{FEDERATION}/admin/../silo/north/agent/0"), BAD),
    "a query": (_uri(SILO + "?admin"), BAD),
    "another scheme": (_uri(SILO.replace("spiffe", "https")), BAD),
    "a name of 60,000 characters": (_uri(f"spiffe://{FEDERATION}/silo/{'n' * 60_000}/agent/0"), "either"),
    "an unknown critical extension": (
        _field(extra=x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0"),
               critical=(x509.UnrecognizedExtension, x509.SubjectAlternativeName, x509.KeyUsage,
                         x509.BasicConstraints)), "either"),
    "an unknown extension": (
        _field(extra=x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0")), BAD),
    "a small serial number": (_field(serial=7), BAD),
    "valid for a quarter": (_field(life=timedelta(days=90)), BAD),
    "never admitted": (lambda f: f.leaf(listed=False), BAD),
    "revoked": (_revoked, REVOKED),
    "replaced": (_replaced, BAD),
    "the server's own": (_of_the_server, "either"),
}  # fmt: skip


def test_there_are_thirty_at_least_and_every_method_is_tried() -> None:
    assert len(CERTIFICATES) >= 30
    files = (admin_pb2, audit_pb2, federation_pb2, revival_pb2, update_pb2)
    services = [service for file in files for service in file.DESCRIPTOR.services_by_name.values()]
    methods = {(service.name.lower(), method.name) for service in services for method in service.methods}
    assert {(service, method) for service, method, _, _ in CALLS} == methods


@pytest.mark.parametrize("fault", CERTIFICATES)
def test_no_method_answers(edge: Edge, fault: str, tmp_path: Any) -> None:
    make, expected = CERTIFICATES[fault]
    member = make(Forger(edge, tmp_path))
    outcomes = {_try(member, *call) for call in CALLS}
    if expected == "either":
        assert len(outcomes) == 1
        assert outcomes <= {NO_CONNECTION, BAD}
    else:
        assert outcomes == {expected}


def test_what_these_are_made_of_is_good_and_the_others_stand_in_the_log(edge: Edge, tmp_path: Any) -> None:
    good = Forger(edge, tmp_path).leaf()
    assert _try(good, *CALLS[0]) == "ok"
    bad = Forger(edge, tmp_path).leaf(serial=7)
    edge.failures.flush()
    before = sum(failed.count for failed in entries_of(edge.server, "auth.failed"))
    outcomes = [_try(bad, *call) for call in CALLS]
    edge.failures.flush()
    failed = entries_of(edge.server, "auth.failed")
    assert sum(one.count for one in failed) == before + len(outcomes)
    assert failed[-1].code == BAD


def _try(member: Member, service: str, method: str, request: Any, stream: bool) -> str:
    stub = getattr(getattr(member, service), method)

    def call() -> None:
        reply = stub(iter([request]) if stream else request, timeout=20)
        if hasattr(reply, "__next__"):
            next(reply)

    return met(call)
