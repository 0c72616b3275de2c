"""The silo's keys and certificate on this disk.

Three keys, all made here: TLS (ECDSA P-256), update signing and approving (Ed25519). Renewal replaces the TLS pair in
two renames, so a reader may find it between them: `load` completes what a killed renewal left, in any process.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from anabranch import durable
from anabranch.errors import Corrupt, Reason, Refused, wording
from anabranch.wire import identity
from anabranch.wire.bundle import FederationInfo, parse_federation

TLS_KEY, TLS_CHAIN = "tls.key", "tls.pem"
NEXT_KEY, NEXT_CHAIN = "next.key", "next.pem"  # a renewal under way
UPDATE_KEY, APPROVER_KEY = "update.key", "approver.key"
CA, FEDERATION = "ca.pem", "federation.json"


@dataclass(frozen=True)
class TlsIdentity:
    """Who somebody is on the wire."""

    federation: FederationInfo
    who: identity.Identity
    key: bytes  # PEM
    chain: bytes  # PEM: leaf, then issuing CA
    ca: bytes  # PEM: pinned roots

    @property
    def leaf(self) -> x509.Certificate:
        return identity.parse_chain(self.chain)[0]


@dataclass(frozen=True)
class SiloIdentity:
    """An enrolled silo. The keys never leave this process or its 0600 files."""

    federation: FederationInfo
    silo: str
    uri: str
    key: bytes  # PEM
    chain: bytes  # PEM: leaf, then issuing CA
    ca: bytes  # PEM: pinned roots
    update_key: Ed25519PrivateKey
    approver_key: Ed25519PrivateKey

    @property
    def leaf(self) -> x509.Certificate:
        return identity.parse_chain(self.chain)[0]


def load(directory: Path) -> SiloIdentity:
    """Raises Refused(NOT_FOUND) when this directory was never enrolled, Corrupt when a part is damaged or missing."""
    if not (directory / TLS_CHAIN).exists():
        raise Refused(
            Reason.NOT_FOUND,
            f"{directory.parent} is the directory of a server: name the agent's with --dir"
            if (directory.parent / "server.toml").exists()
            else f"{directory} holds no certificate: name the agent's directory with --dir, or enrol it with the bundle "
            "your federation gave you",
        )
    with _readable(directory, "enrol anew with --again"):
        found = _tls(directory)
        return SiloIdentity(
            federation=found.federation,
            silo=found.who.name,
            uri=found.who.uri,
            key=found.key,
            chain=found.chain,
            ca=found.ca,
            update_key=signing_key(directory / UPDATE_KEY),
            approver_key=signing_key(directory / APPROVER_KEY),
        )


def load_tls(directory: Path) -> TlsIdentity:
    """Without the keys that only silos have. Raises Corrupt when a part is damaged or missing."""
    with _readable(directory, "make it anew"):
        return _tls(directory)


def _tls(directory: Path) -> TlsIdentity:
    federation = parse_federation((directory / FEDERATION).read_bytes())
    key, chain = _pair(directory)
    leaf = identity.parse_chain(chain)[0]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    who = identity.parse_identity(names.get_values_for_type(x509.UniformResourceIdentifier)[0])
    return TlsIdentity(federation, who, key, chain, (directory / CA).read_bytes())


@contextlib.contextmanager
def _readable(directory: Path, otherwise: str) -> Iterator[None]:
    try:
        yield
    except (
        OSError,
        Refused,
        x509.ExtensionNotFound,
        x509.DuplicateExtension,
        ValueError,
        IndexError,
    ) as error:
        raise Corrupt(
            f"the identity in {directory} cannot be read: {wording(error)}; restore it, or {otherwise}"
        ) from error


def signing_key(path: Path) -> Ed25519PrivateKey:
    """Raises Refused(MALFORMED) for another kind of key."""
    key = identity.load_private(path.read_bytes())
    if not isinstance(key, Ed25519PrivateKey):
        raise Refused(Reason.MALFORMED, f"{path} is not an Ed25519 key")
    return key


def tls_key(path: Path) -> EllipticCurvePrivateKey:
    """Raises Refused(MALFORMED) for another kind of key."""
    key = identity.load_private(path.read_bytes())
    if not isinstance(key, EllipticCurvePrivateKey):
        raise Refused(Reason.MALFORMED, f"{path} is not an ECDSA key")
    return key


def born(path: Path, pem: bytes) -> None:
    """Write a key that was just made, readable by the agent's user only, and only once."""
    durable.write(path, pem, 0o600)


def install_next(directory: Path) -> None:
    """Put the renewed pair into place. Repeating it is harmless; `load` does what a killed run left undone."""
    with contextlib.suppress(FileNotFoundError):  # another process was faster
        if _fits(directory / NEXT_KEY, directory / NEXT_CHAIN):
            # Killed here: the old pair still stands, and the renewed one is complete beside it.
            durable.rename(directory / NEXT_KEY, directory / TLS_KEY)
    with contextlib.suppress(FileNotFoundError):
        # Killed here: tls.key fits next.pem, and the next reader moves that too.
        if _fits(directory / TLS_KEY, directory / NEXT_CHAIN):
            durable.rename(directory / NEXT_CHAIN, directory / TLS_CHAIN)


def _pair(directory: Path) -> tuple[bytes, bytes]:
    """Key and chain that belong together, the newest complete pair."""
    for _ in range(3):  # another process may be between its two renames
        install_next(directory)
        key, chain = (directory / TLS_KEY).read_bytes(), (directory / TLS_CHAIN).read_bytes()
        if _belongs(key, chain):
            return key, chain
    raise Refused(Reason.BAD_CERTIFICATE, f"{TLS_KEY} is not the key of the certificate in {TLS_CHAIN}")


def _fits(key: Path, chain: Path) -> bool:
    try:
        return _belongs(key.read_bytes(), chain.read_bytes())
    except FileNotFoundError:
        return False


def _belongs(key: bytes, chain: bytes) -> bool:
    public = identity.load_private(key).public_key()
    leaf = identity.parse_chain(chain)[0].public_key()
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    return public.public_bytes(*form) == leaf.public_bytes(*form)


def exposed(directory: Path) -> list[Path]:
    """Key files that other users of this machine can read."""
    return [p for p in directory.glob("*.key") if os.stat(p).st_mode & 0o077]
