"""The authority: leaves that pass our own verifier, requests that do not fool it, files that survive a kill."""

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from anabranch.errors import Corrupt, Misuse, Reason, Refused, Unavailable
from anabranch.tlog.details import CertIssued
from anabranch.wire import identity
from server.ca.authority import ISSUING, ISSUING_KEY, ROOT_KEY, create_authority, open_authority, read_request

FED = "fed.test"
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp()
HOUR, DAY = 3600.0, 86400.0


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ca") / "keys"
    create_authority(directory, FED, NOW)
    return directory


def test_each_kind_of_leaf_keeps_the_profile_and_speaks_for_its_identity(directory: Path) -> None:
    authority = open_authority(directory, FED, NOW)
    key = identity.new_tls_key().public_key()
    issued = {
        f"spiffe://{FED}/silo/north/agent/3": authority.issue_silo(key, "north", 3, NOW, 72 * HOUR),
        f"spiffe://{FED}/admin/ada": authority.issue_admin(key, "ada", NOW, 12 * HOUR),
        f"spiffe://{FED}/aggregator/0": authority.issue_server(
            key, ["fl.test", "10.0.0.1", "::1"], NOW, HOUR
        ),
    }
    for uri, leaf in issued.items():
        chain = identity.parse_chain(leaf.chain)
        who = identity.verify_leaf(chain[0], [authority.root], chain[1:], NOW)
        assert who.uri == leaf.identity.uri == uri
        CertIssued.model_validate(leaf.detail())
    silo = issued[f"spiffe://{FED}/silo/north/agent/3"].certificate
    assert silo.not_valid_before_utc.timestamp() == NOW - 60
    assert silo.not_valid_after_utc.timestamp() == NOW + 72 * HOUR


def test_root_and_issuing_ca_are_what_the_profile_says(directory: Path) -> None:
    authority = open_authority(directory, FED, NOW)
    for certificate, depth in ((authority.root, 1), (authority.issuing, 0)):
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        assert constraints.critical
        assert (constraints.value.ca, constraints.value.path_length) == (True, depth)
        key = certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert isinstance(key.curve, ec.SECP384R1)
        assert isinstance(certificate.signature_hash_algorithm, hashes.SHA384)
    names = authority.issuing.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [f"spiffe://{FED}"]
    assert authority.pin == identity.spki_pin(authority.root)


def test_private_keys_are_for_the_owner_only_and_a_second_authority_is_refused(directory: Path) -> None:
    for name in (ROOT_KEY, ISSUING_KEY):
        assert stat.S_IMODE((directory / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    with pytest.raises(Misuse, match="already"):
        create_authority(directory, FED, NOW)


def test_a_leaf_never_outlives_its_issuer_and_an_expired_issuer_signs_nothing(directory: Path) -> None:
    authority = open_authority(directory, FED, NOW)
    key = identity.new_tls_key().public_key()
    end = authority.issuing.not_valid_after_utc
    late = end.timestamp() - HOUR
    assert authority.issue_silo(key, "north", 0, late, 72 * HOUR).certificate.not_valid_after_utc == end
    with pytest.raises(Unavailable, match=r"root\.key"):
        authority.issue_silo(key, "north", 0, end.timestamp() + 1, 72 * HOUR)


def test_the_issuing_certificate_renews_itself_with_the_same_key_while_the_root_key_is_here(
    tmp_path: Path,
) -> None:
    create_authority(tmp_path / "keys", FED, NOW)
    before = open_authority(tmp_path / "keys", FED, NOW)
    key = identity.new_tls_key().public_key()
    old_leaf = before.issue_silo(key, "north", 0, NOW + 182 * DAY, 72 * HOUR)
    later = NOW + 184 * DAY
    renewed = open_authority(tmp_path / "keys", FED, later)
    assert renewed.issuing != before.issuing
    assert renewed.issuing.public_key() == before.issuing.public_key()
    identity.verify_leaf(old_leaf.certificate, [renewed.root], [renewed.issuing], later)
    (tmp_path / "keys" / ROOT_KEY).unlink()
    assert open_authority(tmp_path / "keys", FED, later + 184 * DAY).issuing == renewed.issuing


def test_files_that_do_not_belong_together_are_corrupt_not_used(tmp_path: Path) -> None:
    create_authority(tmp_path / "a", FED, NOW)
    create_authority(tmp_path / "b", FED, NOW)
    (tmp_path / "a" / ISSUING_KEY).write_bytes((tmp_path / "b" / ISSUING_KEY).read_bytes())
    with pytest.raises(Corrupt, match="not the key"):
        open_authority(tmp_path / "a", FED, NOW)
    (tmp_path / "a" / ISSUING).write_bytes((tmp_path / "b" / ISSUING).read_bytes())
    with pytest.raises(Corrupt, match="not issued by"):
        open_authority(tmp_path / "a", FED, NOW)
    (tmp_path / "a" / ISSUING).write_bytes(b"")
    with pytest.raises(Corrupt, match="cannot be read"):
        open_authority(tmp_path / "a", FED, NOW)


def _request(key: object, subject: str = "") -> bytes:
    names = [x509.NameAttribute(NameOID.COMMON_NAME, subject)] if subject else []
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(names))
    signed = builder.sign(key, algorithm)  # type: ignore[arg-type]
    return signed.public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["p384", "ed25519", "rsa"],
)
def test_only_p256_keys_are_certified(key: object) -> None:
    with pytest.raises(Refused) as refused:
        read_request(_request(key))
    assert refused.value.code is Reason.BAD_CERTIFICATE


def test_names_in_a_request_are_ignored(directory: Path) -> None:
    key = identity.new_tls_key()
    public = read_request(_request(key, subject="spiffe://fed.test/admin/root"))
    leaf = open_authority(directory, FED, NOW).issue_silo(public, "north", 0, NOW, HOUR)
    assert leaf.identity.uri == f"spiffe://{FED}/silo/north/agent/0"
    assert len(leaf.certificate.subject) == 0


def test_a_request_signed_by_another_key_is_refused() -> None:
    mine, theirs = _request(identity.new_tls_key()), _request(identity.new_tls_key())
    # The subject key of one request in front of the signature of another.
    body, signature = x509.load_der_x509_csr(mine), x509.load_der_x509_csr(theirs).signature
    forged = mine.replace(body.signature, signature[: len(body.signature)].ljust(len(body.signature), b"\0"))
    with pytest.raises(Refused) as refused:
        read_request(forged)
    assert refused.value.code in (Reason.BAD_SIGNATURE, Reason.MALFORMED)


@given(st.binary(max_size=5000))
def test_garbage_is_refused_never_raised_through(data: bytes) -> None:
    with pytest.raises(Refused):
        read_request(data)


GOOD = _request(identity.new_tls_key())


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_a_request_with_one_byte_changed_never_yields_another_key(index: int, change: int) -> None:
    changed = GOOD[:index] + bytes([GOOD[index] ^ change]) + GOOD[index + 1 :]
    try:
        key = read_request(changed)
    except Refused:
        return
    assert key == read_request(GOOD)  # a byte that no signature covers


def test_lifetimes_and_backdating_survive_a_clock_that_is_a_little_off(directory: Path) -> None:
    leaf = open_authority(directory, FED, NOW).issue_silo(
        identity.new_tls_key().public_key(), "north", 0, NOW, HOUR
    )
    start = leaf.certificate.not_valid_before_utc
    assert start <= datetime.fromtimestamp(NOW, UTC) - timedelta(seconds=59)
