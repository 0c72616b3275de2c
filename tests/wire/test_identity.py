"""Identities, keys, and the certificate profile with each of its fields wrong in turn."""

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from anabranch.errors import Reason, Refused
from anabranch.wire import identity
from anabranch.wire.identity import Identity, parse_identity, verify_leaf
from tests.wire import pki
from tests.wire.pki import ADMIN, AGGREGATOR, CLIENT, SERVER, SILO

NOW = pki.NOW.timestamp()
SAN = x509.SubjectAlternativeName


@pytest.mark.parametrize(
    ("cert", "expected"),
    [
        ({}, Identity(pki.FEDERATION, "silo", "north", 0)),
        ({"uris": [ADMIN]}, Identity(pki.FEDERATION, "admin", "ada")),
        (
            {"uris": [AGGREGATOR], "hosts": ["localhost", "127.0.0.1"], "usages": [SERVER]},
            Identity(pki.FEDERATION, "aggregator", "0"),
        ),
        ({"life": timedelta(days=30)}, Identity(pki.FEDERATION, "silo", "north", 0)),
    ],
)
def test_a_good_leaf_is_its_identity(ca, cert, expected):
    found = verify_leaf(pki.leaf(ca, **cert), [ca.root], [ca.issuing], NOW, expected.role)
    assert found == expected
    assert verify_leaf(pki.leaf(ca, **cert), [ca.root], [ca.issuing], NOW) == expected


BAD = {
    "expired": ({"start": timedelta(days=-4)}, "expired"),
    "not yet valid": ({"start": timedelta(hours=1)}, "valid only from"),
    "valid for a year": ({"life": timedelta(days=365)}, "31 days"),
    "no usage": ({"usages": None}, "path"),
    "both usages": ({"usages": [CLIENT, SERVER]}, "exactly clientAuth"),
    "serverAuth for a silo": ({"usages": [SERVER]}, "exactly clientAuth"),
    "serverAuth for an admin": ({"uris": [ADMIN], "usages": [SERVER]}, "exactly clientAuth"),
    "any usage": ({"usages": [ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]}, "exactly clientAuth"),
    "code signing": ({"usages": [CLIENT, ExtendedKeyUsageOID.CODE_SIGNING]}, "exactly clientAuth"),
    "clientAuth for an aggregator": ({"uris": [AGGREGATOR], "hosts": ["localhost"]}, "exactly serverAuth"),
    "two identities": ({"uris": [SILO, ADMIN]}, "2 URI"),
    "same identity twice": ({"uris": [SILO, SILO]}, "2 URI"),
    "no identity": ({"uris": [], "hosts": ["north.example"]}, "0 URI"),
    "extra DNS name": ({"hosts": ["north.example"]}, "nobody else"),
    "extra address": ({"hosts": ["10.0.0.1"]}, "nobody else"),
    "extra mail address": ({"mails": ["a@north.example"]}, "neither URI"),
    "aggregator without a host": ({"uris": [AGGREGATOR], "usages": [SERVER]}, "aggregator"),
    "wildcard host": ({"uris": [AGGREGATOR], "hosts": ["*.example"], "usages": [SERVER]}, "wildcards"),
    "other federation": ({"uris": ["spiffe://other.example/silo/north/agent/0"]}, "does not speak for"),
    "federation in capitals": ({"uris": ["spiffe://DEMO.example/silo/north/agent/0"]}, "no identity"),
    "not SPIFFE": ({"uris": ["https://demo.example/silo/north/agent/0"]}, "no identity"),
    "unknown role": ({"uris": [f"spiffe://{pki.FEDERATION}/root/north"]}, "no identity"),
    "path too long": ({"uris": [SILO + "/x"]}, "no identity"),
    "query": ({"uris": [SILO + "?admin"]}, "no identity"),
    "agent 00": ({"uris": [SILO + "0"]}, "no identity"),
    "percent-encoded": ({"uris": [f"spiffe://{pki.FEDERATION}/silo/n%6Frth/agent/0"]}, "no identity"),
    "subject": ({"subject": pki.common_name("north")}, "subject"),
    "SAN not critical": ({"critical": [x509.BasicConstraints, x509.KeyUsage]}, "path"),
    "key usage not critical": ({"critical": [x509.BasicConstraints, SAN]}, "path"),
    "constraints not critical": ({"critical": [x509.KeyUsage, SAN]}, "path"),
    "no SAN": ({"drop": [SAN]}, "path"),
    "no key usage": ({"drop": [x509.KeyUsage]}, "path"),
    "no basic constraints": ({"drop": [x509.BasicConstraints]}, "path"),
    "no authority key": ({"drop": [x509.AuthorityKeyIdentifier]}, "path"),
    "no subject key": ({"drop": [x509.SubjectKeyIdentifier]}, "path"),
    "foreign authority key": ({"authority_key": pki.p256().public_key()}, "authority key"),
    "a CA": ({"is_ca": True}, "is a CA"),
    "key agreement too": ({"usage": pki.key_usage("digital_signature", "key_agreement")}, "key usage"),
    "key encipherment": ({"usage": pki.key_usage("key_encipherment")}, "key usage"),
    "signs certificates": ({"usage": pki.key_usage("digital_signature", "key_cert_sign")}, "key usage"),
    "counted serial": ({"serial": 42}, "serial"),
    "extra extension": ({"extra": x509.OCSPNoCheck()}, "outside the profile"),
    "unknown extension": (
        {"extra": x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")},
        "outside the profile",
    ),
    "P-384": ({"key": ec.generate_private_key(ec.SECP384R1())}, "not ECDSA secp256r1"),
    "RSA": ({"key": rsa.generate_private_key(65537, 2048)}, "not ECDSA"),
    "Ed25519": ({"key": ed25519.Ed25519PrivateKey.generate()}, "not ECDSA"),
}


@pytest.mark.parametrize("case", BAD)
def test_each_wrong_field_is_refused(ca, case):
    cert, words = BAD[case]
    with pytest.raises(Refused, match=words) as refused:
        verify_leaf(pki.leaf(ca, **cert), [ca.root], [ca.issuing], NOW)
    assert refused.value.code is Reason.BAD_CERTIFICATE


def _refused(cert, roots, intermediates, role=None):
    with pytest.raises(Refused) as refused:
        verify_leaf(cert, roots, intermediates, NOW, role)
    assert refused.value.code is Reason.BAD_CERTIFICATE
    return str(refused.value)


def test_the_path_ends_at_a_root_of_ours(ca):
    other = pki.authority()
    assert "path" in _refused(pki.leaf(other), [ca.root], [ca.issuing])
    assert "path" in _refused(pki.leaf(other), [ca.root], [other.issuing])
    assert "path" in _refused(pki.leaf(ca), [ca.root], [])
    assert _refused(pki.leaf(ca), [], [ca.issuing])
    member = pki.leaf(ca)
    assert "root itself" in _refused(member, [member], [ca.issuing])
    assert _refused(ca.issuing, [ca.root], [])


def test_an_issuing_ca_speaks_for_one_federation_only():
    for speaks_for in ("spiffe://other.example", "spiffe://demo.example/", None):
        ca = pki.authority(speaks_for=speaks_for)
        _refused(pki.leaf(ca), [ca.root], [ca.issuing])


def test_a_leaf_cannot_issue(ca):
    key = identity.new_tls_key()
    holder = pki.leaf(ca, key=key)
    forged = pki.leaf(pki.Authority(ca.root, holder, key), uris=[ADMIN])
    assert "path" in _refused(forged, [ca.root], [ca.issuing, holder])


def test_a_changed_byte_spoils_the_signature(ca):
    der = bytearray(pki.leaf(ca).public_bytes(serialization.Encoding.DER))
    position = der.index(b"north")
    der[position : position + 5] = b"south"
    assert "path" in _refused(x509.load_der_x509_certificate(bytes(der)), [ca.root], [ca.issuing])


def test_role_must_be_the_one_asked_for(ca):
    assert "role admin" in _refused(pki.leaf(ca), [ca.root], [ca.issuing], "admin")


label = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)


@given(label, label, st.integers(0, 999_999))
def test_uri_round_trip(federation, name, number):
    for who in (
        Identity(federation, "silo", name, number),
        Identity(federation, "admin", name),
        Identity(federation, "aggregator", str(number)),
    ):
        assert parse_identity(who.uri) == who


@given(st.text(max_size=60))
def test_other_uris_are_refused(text):
    for uri in (
        text,
        "spiffe://" + text,
        SILO + text if text else "",
        f"spiffe://{pki.FEDERATION}/silo/{text}/",
    ):
        try:
            found = parse_identity(uri).uri
        except Refused:
            continue
        assert found == uri


def test_keys_survive_their_files():
    for key in (identity.new_tls_key(), identity.new_signing_key()):
        again = identity.load_private(identity.private_pem(key))
        assert identity.private_pem(again) == identity.private_pem(key)


def test_other_private_keys_are_refused_without_showing_them():
    pkcs8 = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    plain, secret = serialization.NoEncryption(), serialization.BestAvailableEncryption(b"x")
    for pem in (
        rsa.generate_private_key(65537, 2048).private_bytes(*pkcs8, plain),
        ec.generate_private_key(ec.SECP384R1()).private_bytes(*pkcs8, plain),
        identity.new_tls_key().private_bytes(*pkcs8, secret),
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        b"",
    ):
        with pytest.raises(Refused) as refused:
            identity.load_private(pem)
        assert refused.value.code is Reason.MALFORMED
        assert "AAAA" not in str(refused.value)


def test_csr_proves_the_key_and_claims_no_name():
    key = identity.new_tls_key()
    request = x509.load_der_x509_csr(identity.csr(key))
    assert request.is_signature_valid
    assert request.public_key() == key.public_key()
    assert len(request.subject) == 0
    assert not list(request.extensions)


def test_enrolment_proof_is_the_documented_string():
    digest = bytes.fromhex("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")  # of "abc"
    message = identity.enrolment_proof_message("t1", b"\x01\x02", b"abc")
    assert message == b"anabranch-enrol/v1\nt1\n\x01\x02" + digest


def test_pin_and_fingerprint(ca):
    spki = ca.root.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    digest = hashes.Hash(hashes.SHA256())
    digest.update(spki)
    assert identity.spki_pin(ca.root) == "sha256:" + digest.finalize().hex()
    assert identity.fingerprint(ca.root) == ca.root.fingerprint(hashes.SHA256()).hex()


def test_chains_keep_their_order_and_bounds(ca):
    assert identity.parse_chain(pki.pem(ca.issuing, ca.root)) == (ca.issuing, ca.root)
    for data, code in ((b"nothing", Reason.BAD_CERTIFICATE), (ca.pem * 100, Reason.SIZE_LIMIT)):
        with pytest.raises(Refused) as refused:
            identity.parse_chain(data)
        assert refused.value.code is code
