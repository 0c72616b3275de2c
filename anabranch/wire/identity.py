"""Who somebody is: SPIFFE URIs, the keys a silo makes for itself, and the one certificate profile we accept.

ECDSA P-256 for TLS, because gRPC cannot use an Ed25519 leaf; Ed25519 for signed artefacts. TLS alone accepts
leaves without an extended key usage, with several names or with foreign names, so every leaf passes
`verify_leaf` too.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from anabranch.errors import Reason, Refused
from anabranch.wire import canonical, limits

Role = Literal["aggregator", "silo", "admin", "reviver"]
PrivateKey = ec.EllipticCurvePrivateKey | Ed25519PrivateKey

LEAF_LIFETIME: Final = timedelta(days=31)  # longest accepted; 72 h is issued unless configured otherwise

_TRUST = r"[a-z0-9](?:[a-z0-9.-]{0,253}[a-z0-9])?"
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NUMBER = r"0|[1-9][0-9]{0,5}"
_URI = re.compile(
    rf"spiffe://(?P<federation>{_TRUST})/"
    rf"(?:aggregator/(?P<aggregator>{_NUMBER})|silo/(?P<silo>{_LABEL})/agent/(?P<agent>{_NUMBER})|admin/(?P<admin>{_LABEL})"
    rf"|reviver/(?P<reviver>{_LABEL}))"
)
_USAGE = {
    "aggregator": ExtendedKeyUsageOID.SERVER_AUTH,
    "silo": ExtendedKeyUsageOID.CLIENT_AUTH,
    "admin": ExtendedKeyUsageOID.CLIENT_AUTH,
    "reviver": ExtendedKeyUsageOID.CLIENT_AUTH,
}
_KEY_USAGE = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)
_EXTENSIONS = {
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    ExtensionOID.SUBJECT_KEY_IDENTIFIER,
}
_LEAF_POLICY = (
    ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, Criticality.CRITICAL, None)
    .require_present(x509.KeyUsage, Criticality.CRITICAL, None)
    .require_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, None)
    .require_present(x509.SubjectAlternativeName, Criticality.CRITICAL, None)  # the subject is empty
    .require_present(x509.AuthorityKeyIdentifier, Criticality.NON_CRITICAL, None)
    .require_present(x509.SubjectKeyIdentifier, Criticality.NON_CRITICAL, None)
)


@dataclass(frozen=True)
class Identity:
    federation: str  # SPIFFE trust domain
    role: Role
    name: str  # of the silo, the admin or the reviver; an aggregator's number
    agent: int | None = None  # of a silo's agents

    @property
    def uri(self) -> str:
        if self.role == "silo":
            return f"spiffe://{self.federation}/silo/{self.name}/agent/{self.agent}"
        return f"spiffe://{self.federation}/{self.role}/{self.name}"


def parse_identity(uri: str) -> Identity:
    """Inverse of `Identity.uri`. Raises Refused(MALFORMED)."""
    if found := _URI.fullmatch(uri):
        federation = found["federation"]
        if found["silo"]:
            return Identity(federation, "silo", found["silo"], int(found["agent"]))
        for role in ("admin", "reviver"):
            if found[role]:
                return Identity(federation, role, found[role])
        return Identity(federation, "aggregator", found["aggregator"])
    raise Refused(Reason.MALFORMED, f"{uri[:120]!r} is no identity of a federation")


def spki_pin(cert: x509.Certificate) -> str:
    """`sha256:<hex>` over the DER SubjectPublicKeyInfo (as kubeadm): survives renewal with the same key."""
    spki = cert.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return "sha256:" + canonical.sha256(spki)


def fingerprint(cert: x509.Certificate) -> str:
    """Hex SHA-256 of the DER certificate: what the allow-list and the log name it by."""
    return canonical.sha256(cert.public_bytes(serialization.Encoding.DER))


def new_tls_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def new_signing_key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


def private_pem(key: PrivateKey) -> bytes:
    """PKCS#8 PEM, unencrypted: write it with mode 0600."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_private(pem: bytes) -> PrivateKey:
    """Read what `private_pem` wrote. Raises Refused(MALFORMED), never showing the content."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except Exception:  # not all of what it raises for a bad key has a type of its own
        raise Refused(Reason.MALFORMED, "not an unencrypted PEM private key") from None
    if isinstance(key, Ed25519PrivateKey) or (
        isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1)
    ):
        return key
    raise Refused(Reason.MALFORMED, "the private key is neither ECDSA P-256 nor Ed25519")


def csr(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS#10 DER with an empty subject: the name comes from the token, never from the silo."""
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER)


def enrolment_proof_message(token_id: str, nonce: bytes, csr_der: bytes) -> bytes:
    """What each signing key signs at enrolment: binds it to the token, the TLS key and this attempt."""
    return (
        b"anabranch-enrol/v1\n" + token_id.encode() + b"\n" + nonce + bytes.fromhex(canonical.sha256(csr_der))
    )


def parse_chain(pem: bytes) -> tuple[x509.Certificate, ...]:
    """At least one PEM certificate, in the order written. Raises Refused(SIZE_LIMIT, BAD_CERTIFICATE)."""
    if len(pem) > limits.CERTIFICATE_CHAIN:
        raise Refused(
            Reason.SIZE_LIMIT, f"{len(pem)} bytes of certificates; at most {limits.CERTIFICATE_CHAIN}"
        )
    try:
        chain = tuple(x509.load_pem_x509_certificates(pem))
        for cert in chain:
            cert.public_key()  # parsed only when asked for
    except Exception as error:  # a parser fed by strangers: whatever it raises, the certificates are at fault
        raise _bad("not PEM certificates, or with a key of no known kind") from error
    return chain


def verify_leaf(
    cert: x509.Certificate,
    roots: Sequence[x509.Certificate],
    intermediates: Sequence[x509.Certificate],
    now: float,
    role: Role | None = None,
) -> Identity:
    """Who holds this certificate at `now` (unix seconds), by our profile of X.509; with `role`, who must be
    of that role.

    The trust domain is the one in the issuing CA's URI name, so a CA cannot name members of another
    federation. Raises Refused(BAD_CERTIFICATE). Revocation is not judged here: that is the allow-list's.
    """
    try:
        _check_dates(cert, datetime.fromtimestamp(now, UTC))
        chain = _path(cert, roots, intermediates, now)
        _check_keys(chain)
        _check_form(cert, chain[1])
        identity = _identity(cert)
        _check_usage(cert, identity)
        _check_trust(chain[1], identity)
    except (x509.ExtensionNotFound, x509.DuplicateExtension, UnsupportedAlgorithm, ValueError) as error:
        raise _bad(f"does not parse: {str(error)[:200]}") from error
    if role is not None and identity.role != role:
        raise _bad(f"belongs to {identity.uri}, not a member of role {role}")
    return identity


def _bad(what: str) -> Refused:
    return Refused(Reason.BAD_CERTIFICATE, f"certificate: {what}")


def _check_dates(cert: x509.Certificate, now: datetime) -> None:
    if now > cert.not_valid_after_utc:
        raise _bad(
            f"expired at {cert.not_valid_after_utc}; it is {now} here: renew or enrol again, or set the clock"
        )
    if now < cert.not_valid_before_utc:
        raise _bad(f"valid only from {cert.not_valid_before_utc}; it is {now} here: set the clock")
    if cert.not_valid_after_utc - cert.not_valid_before_utc > LEAF_LIFETIME:
        raise _bad(f"valid for more than {LEAF_LIFETIME.days} days")


def _path(
    cert: x509.Certificate,
    roots: Sequence[x509.Certificate],
    intermediates: Sequence[x509.Certificate],
    now: float,
) -> list[x509.Certificate]:
    """Leaf, issuing CA, up to a root; signatures, dates, CA constraints and criticality are good."""
    verifier = (
        PolicyBuilder()
        .store(Store(list(roots)))
        .time(datetime.fromtimestamp(now, UTC))
        .max_chain_depth(1)
        .extension_policies(ca_policy=ExtensionPolicy.webpki_defaults_ca(), ee_policy=_LEAF_POLICY)
        .build_client_verifier()
    )
    try:
        chain = verifier.verify(cert, list(intermediates)).chain
    except VerificationError as error:
        raise _bad(f"no valid path to this federation's root: {str(error)[:200]}") from error
    if len(chain) < 2:
        raise _bad("is a root itself")
    return chain


def _check_keys(chain: Sequence[x509.Certificate]) -> None:
    """ECDSA all the way: P-256 for the leaf, P-256 or P-384 for the CAs."""
    for depth, cert in enumerate(chain):
        key = cert.public_key()
        curves = (ec.SECP256R1,) if depth == 0 else (ec.SECP256R1, ec.SECP384R1)
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, curves):
            raise _bad(f"the key at depth {depth} is not ECDSA {' or '.join(curve.name for curve in curves)}")


def _check_form(cert: x509.Certificate, issuer: x509.Certificate) -> None:
    if len(cert.subject):
        raise _bad("the subject is not empty")
    if cert.serial_number < 2**32:
        raise _bad("the serial number is not random: below 2^32")
    if {extension.oid for extension in cert.extensions} != _EXTENSIONS:
        raise _bad("has an extension outside the profile")
    if cert.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
        raise _bad("is a CA")
    if cert.extensions.get_extension_for_class(x509.KeyUsage).value != _KEY_USAGE:
        raise _bad("key usage is not exactly digitalSignature")
    authority = cert.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    subject = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    if authority.key_identifier != subject.digest:
        raise _bad("the authority key identifier is not the issuer's")


def _identity(cert: x509.Certificate) -> Identity:
    names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise _bad(f"{len(uris)} URI names; exactly one is an identity")
    try:
        identity = parse_identity(uris[0])
    except Refused as error:
        raise _bad(str(error)) from error
    hosts = names.get_values_for_type(x509.DNSName) + names.get_values_for_type(x509.IPAddress)
    if len(hosts) + 1 != len(names):
        raise _bad("has a name that is neither URI, DNS name nor address")
    if bool(hosts) != (identity.role == "aggregator") or any("*" in str(host) for host in hosts):
        raise _bad("an aggregator has DNS names or addresses without wildcards, nobody else has any")
    return identity


def _check_usage(cert: x509.Certificate, identity: Identity) -> None:
    usages = list(cert.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    if usages != [_USAGE[identity.role]]:
        side = "serverAuth" if identity.role == "aggregator" else "clientAuth"
        raise _bad(f"extended key usage of a {identity.role} is exactly {side}")


def _check_trust(issuer: x509.Certificate, identity: Identity) -> None:
    names = issuer.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    if list(names) != [x509.UniformResourceIdentifier(f"spiffe://{identity.federation}")]:
        raise _bad(f"its issuing CA does not speak for spiffe://{identity.federation}")
