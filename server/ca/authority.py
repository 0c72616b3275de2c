"""Root, issuing CA and leaves, each in the one X.509 profile of this federation.

ECDSA throughout (P-384 for authorities, P-256 for leaves): gRPC cannot use an Ed25519 leaf, and path
validation refuses an Ed25519 issuer. Leaves have an empty subject; who they are stands in exactly one
critical URI name. There is no CRL and no OCSP: a leaf opens something only while the allow-list holds it.

The root key signs the issuing CA and nothing else, so it may be kept elsewhere but for one start in six
months.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID as Usage
from cryptography.x509.oid import NameOID

from anabranch import durable
from anabranch.errors import Corrupt, Misuse, Reason, Refused, Unavailable, wording
from anabranch.wire import canonical, limits
from anabranch.wire.identity import Identity, fingerprint, private_pem, spki_pin

ROOT_LIFE = timedelta(days=3650)
ISSUING_LIFE = timedelta(days=365)
BACKDATE = timedelta(seconds=60)  # so that a peer whose clock is a little behind accepts a fresh leaf
ROOT_KEY, ROOT, ISSUING_KEY, ISSUING = "root.key", "root.pem", "issuing.key", "issuing.pem"

Key = ec.EllipticCurvePublicKey


@dataclass(frozen=True)
class Issued:
    """A leaf that was signed. It opens nothing until the allow-list holds its fingerprint."""

    identity: Identity
    certificate: x509.Certificate
    chain: bytes  # PEM: leaf, then issuing CA

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.certificate)

    @property
    def not_after(self) -> float:
        """Unix seconds."""
        return self.certificate.not_valid_after_utc.timestamp()

    @property
    def serial(self) -> str:
        return f"{self.certificate.serial_number:x}"

    def detail(self) -> dict[str, str]:
        """What the log says of it: the detail of `cert.issued`."""
        return {
            "identity": self.identity.uri,
            "cert_sha256": self.fingerprint,
            "spki_sha256": spki_pin(self.certificate).removeprefix("sha256:"),
            "serial": self.serial,
            "not_before": canonical.utc(self.certificate.not_valid_before_utc.timestamp()),
            "not_after": canonical.utc(self.not_after),
        }


@dataclass(frozen=True)
class Authority:
    """The online half: signs leaves, and never one that outlives it."""

    federation: str
    root: x509.Certificate
    issuing: x509.Certificate
    _key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def ca_pem(self) -> bytes:
        """The root, PEM: what peers trust."""
        return self.root.public_bytes(Encoding.PEM)

    @property
    def pin(self) -> str:
        """`sha256:<hex>` over the root's SubjectPublicKeyInfo."""
        return spki_pin(self.root)

    def issue_silo(self, key: Key, silo: str, agent: int, now: float, lifetime: float) -> Issued:
        """A client leaf for agent number `agent` of `silo`; `now` is unix time, `lifetime` in seconds."""
        identity = Identity(self.federation, "silo", silo, agent)
        return self._issue(identity, key, Usage.CLIENT_AUTH, now, lifetime)

    def issue_admin(self, key: Key, name: str, now: float, lifetime: float) -> Issued:
        """A client leaf for an administrator, under a pseudonym."""
        return self._issue(Identity(self.federation, "admin", name), key, Usage.CLIENT_AUTH, now, lifetime)

    def issue_reviver(self, key: Key, name: str, now: float, lifetime: float) -> Issued:
        """A client leaf for a reviver."""
        return self._issue(Identity(self.federation, "reviver", name), key, Usage.CLIENT_AUTH, now, lifetime)

    def issue_server(self, key: Key, hosts: Sequence[str], now: float, lifetime: float) -> Issued:
        """The server's own leaf; `hosts` are the DNS names and IP addresses that clients dial."""
        identity = Identity(self.federation, "aggregator", "0")
        return self._issue(identity, key, Usage.SERVER_AUTH, now, lifetime, hosts)

    def _issue(
        self,
        identity: Identity,
        key: Key,
        usage: x509.ObjectIdentifier,
        now: float,
        lifetime: float,
        hosts: Sequence[str] = (),
    ) -> Issued:
        _require_p256(key)
        end = min(_time(now) + timedelta(seconds=lifetime), self.issuing.not_valid_after_utc)
        if end <= _time(now):
            raise Unavailable(
                f"the issuing CA ended at {self.issuing.not_valid_after_utc} and signs nothing any more; "
                f"put {ROOT_KEY} back beside it and start the server again"
            )
        names = [x509.UniformResourceIdentifier(identity.uri), *map(_host_name, hosts)]
        certificate = (
            _builder(x509.Name([]), self.issuing.subject, key, _time(now) - BACKDATE, end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=True)
            .add_extension(_authority_key_id(self.issuing), critical=False)
            .sign(self._key, hashes.SHA384())
        )
        chain = certificate.public_bytes(Encoding.PEM) + self.issuing.public_bytes(Encoding.PEM)
        return Issued(identity, certificate, chain)


def read_request(der: bytes) -> Key:
    """The public key of a PKCS#10 request, proven by its own signature. Every name in it is ignored.

    Raises Refused: SIZE_LIMIT, MALFORMED, BAD_SIGNATURE, or BAD_CERTIFICATE for a key that is not P-256.
    """
    if len(der) > limits.CSR:
        raise Refused(Reason.SIZE_LIMIT, f"certificate request of {len(der)} bytes; at most {limits.CSR}")
    try:
        request = x509.load_der_x509_csr(der)
        key, proven = request.public_key(), request.is_signature_valid
    except Exception as error:  # a parser fed by strangers: whatever it raises, the request is at fault
        raise Refused(Reason.MALFORMED, "the certificate request is not PKCS#10 in DER") from error
    if not proven:
        raise Refused(Reason.BAD_SIGNATURE, "the certificate request is not signed by its own key")
    if not isinstance(key, Key):
        raise Refused(Reason.BAD_CERTIFICATE, "the certificate request has no ECDSA key; make a P-256 key")
    _require_p256(key)
    return key


def create_authority(directory: Path, federation: str, now: float) -> None:
    """Make root and issuing CA in `directory` (keys 0600). Raises Misuse when there is a root already.

    The root is written last: killed before, a repeated call starts over; after, the authority is complete.
    """
    if (directory / ROOT).exists():
        raise Misuse(f"{directory / ROOT} exists: this federation already has its authority")
    root_key = ec.generate_private_key(ec.SECP384R1())
    issuing_key = ec.generate_private_key(ec.SECP384R1())
    name, start = _name(f"{federation} root"), _time(now) - BACKDATE
    root = (
        _builder(name, name, root_key.public_key(), start, start + ROOT_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False
        )
        .sign(root_key, hashes.SHA384())
    )
    issuing = _issuing(federation, root, root_key, issuing_key.public_key(), now)
    durable.make_dir(directory, 0o700)
    durable.write(directory / ROOT_KEY, private_pem(root_key), 0o600)
    durable.write(directory / ISSUING_KEY, private_pem(issuing_key), 0o600)
    durable.write(directory / ISSUING, issuing.public_bytes(Encoding.PEM))
    durable.write(directory / ROOT, root.public_bytes(Encoding.PEM))


def open_authority(directory: Path, federation: str, now: float) -> Authority:
    """The authority of `directory`. Raises Corrupt when its keys and certificates do not fit.

    In the second half of its life the issuing certificate is renewed with the same key, so that leaves signed
    before stay valid; that needs the root key, and is put off while the root key is elsewhere.
    """
    root, issuing = _load_certificate(directory / ROOT), _load_certificate(directory / ISSUING)
    try:
        issuing.verify_directly_issued_by(root)
    except Exception as error:
        raise Corrupt(
            f"{directory / ISSUING} was not issued by {ROOT}; restore both from one backup"
        ) from error
    key = _load_key(directory / ISSUING_KEY, issuing)
    due = issuing.not_valid_before_utc + ISSUING_LIFE / 2
    if _time(now) > due and (directory / ROOT_KEY).exists():
        root_key = _load_key(directory / ROOT_KEY, root)
        issuing = _issuing(federation, root, root_key, key.public_key(), now)
        durable.write(directory / ISSUING, issuing.public_bytes(Encoding.PEM))
    return Authority(federation, root, issuing, key)


def _issuing(
    federation: str, root: x509.Certificate, root_key: ec.EllipticCurvePrivateKey, key: Key, now: float
) -> x509.Certificate:
    start = _time(now) - BACKDATE
    end = min(start + ISSUING_LIFE, root.not_valid_after_utc)
    domain = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{federation}")])
    return (
        _builder(_name(f"{federation} issuing"), root.subject, key, start, end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(domain, critical=False)
        .add_extension(_authority_key_id(root), critical=False)
        .sign(root_key, hashes.SHA384())
    )


def _load_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError, x509.InvalidVersion) as error:
        raise Corrupt(
            f"{path} cannot be read as a PEM certificate: {wording(error)}; restore it from a backup"
        ) from error


def _load_key(path: Path, certificate: x509.Certificate) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except Exception as error:  # not all of what it raises for a bad key has a type of its own
        raise Corrupt(
            f"{path} cannot be read as an unencrypted private key ({type(error).__name__})"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise Corrupt(f"{path} is not the key of its certificate; restore both from one backup")
    return key


def _require_p256(key: Key) -> None:
    if not isinstance(key.curve, ec.SECP256R1):
        raise Refused(Reason.BAD_CERTIFICATE, f"the key is on curve {key.curve.name}; make a P-256 key")


def _builder(
    subject: x509.Name, issuer: x509.Name, key: Key, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _authority_key_id(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    subject_key_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(subject_key_id)


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
