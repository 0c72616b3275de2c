"""A small certificate authority whose every profile field can be made wrong."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import ip_address
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
FEDERATION = "demo.example"
SILO = f"spiffe://{FEDERATION}/silo/north/agent/0"
AGGREGATOR = f"spiffe://{FEDERATION}/aggregator/0"
ADMIN = f"spiffe://{FEDERATION}/admin/ada"
CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH
SERVER = ExtendedKeyUsageOID.SERVER_AUTH
_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


@dataclass(frozen=True)
class Authority:
    root: x509.Certificate
    issuing: x509.Certificate
    key: Any  # of the issuing CA

    @property
    def pem(self) -> bytes:
        return pem(self.root)


def key_usage(*names: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{name: name in names for name in _USAGES})


def common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def pem(*certs: x509.Certificate) -> bytes:
    return b"".join(cert.public_bytes(serialization.Encoding.PEM) for cert in certs)


@cache
def p256() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _base(subject: x509.Name, issuer: x509.Name, key: Any, signer: Any) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )


def _ca(builder: x509.CertificateBuilder, depth: int) -> x509.CertificateBuilder:
    return (
        builder.serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=30))
        .not_valid_after(NOW + timedelta(days=300))
        .add_extension(x509.BasicConstraints(ca=True, path_length=depth), critical=True)
        .add_extension(key_usage("key_cert_sign", "crl_sign"), critical=True)
    )


def authority(federation: str = FEDERATION, speaks_for: str | None = "") -> Authority:
    """`speaks_for`: the issuing CA's URI name; None leaves it out."""
    root_key, key = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    root_name, name = common_name(f"{federation} root"), common_name(f"{federation} issuing")
    root = _ca(_base(root_name, root_name, root_key, root_key), 1).sign(root_key, hashes.SHA384())
    builder = _ca(_base(name, root_name, key, root_key), 0)
    if speaks_for is not None:
        uri = x509.UniformResourceIdentifier(speaks_for or f"spiffe://{federation}")
        builder = builder.add_extension(x509.SubjectAlternativeName([uri]), critical=False)
    return Authority(root, builder.sign(root_key, hashes.SHA384()), key)


def leaf(
    ca: Authority,
    *,
    uris: Sequence[str] = (SILO,),
    hosts: Sequence[str] = (),
    mails: Sequence[str] = (),
    usages: Sequence[x509.ObjectIdentifier] | None = (CLIENT,),
    usage: x509.KeyUsage | None = None,
    drop: Sequence[type[x509.ExtensionType]] = (),
    extra: x509.ExtensionType | None = None,
    is_ca: bool = False,
    critical: Sequence[type[x509.ExtensionType]] = (
        x509.BasicConstraints,
        x509.KeyUsage,
        x509.SubjectAlternativeName,
    ),
    key: Any = None,
    subject: x509.Name | None = None,
    start: timedelta = timedelta(minutes=-1),
    life: timedelta = timedelta(days=3),
    serial: int | None = None,
    now: datetime = NOW,
    authority_key: Any = None,
) -> x509.Certificate:
    """By default a good silo certificate."""
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
    names += [x509.IPAddress(ip_address(h)) if h[:1].isdigit() else x509.DNSName(h) for h in hosts]
    names += [x509.RFC822Name(mail) for mail in mails]
    extensions: list[x509.ExtensionType] = [
        x509.BasicConstraints(ca=is_ca, path_length=None),
        usage or key_usage("digital_signature"),
        x509.SubjectAlternativeName(names),
    ]
    if usages is not None:
        extensions.append(x509.ExtendedKeyUsage(usages))
    key = key or p256()
    authority_key = authority_key or ca.key.public_key()
    extensions.append(x509.SubjectKeyIdentifier.from_public_key(key.public_key()))
    extensions.append(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key))
    if extra is not None:
        extensions.append(extra)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]) if subject is None else subject)
        .issuer_name(ca.issuing.subject)
        .public_key(key.public_key())
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(now + start)
        .not_valid_after(now + start + life)
    )
    for extension in extensions:
        if not isinstance(extension, tuple(drop)):
            builder = builder.add_extension(extension, critical=isinstance(extension, tuple(critical)))
    return builder.sign(ca.key, hashes.SHA384())
