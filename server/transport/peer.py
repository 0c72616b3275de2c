"""Who is at the other end of a call, from its TLS certificate and nothing else."""

import asyncio
import hashlib
import ssl
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from anabranch.errors import Misuse
from anabranch.tlog.entry import Actor
from anabranch.wire.identity import Identity, Role, fingerprint, parse_chain, verify_leaf
from server.ca.authority import Authority

REMEMBERED = 1024  # verified certificates


@dataclass(frozen=True)
class Peer:
    identity: Identity
    fingerprint: str  # of its certificate

    @property
    def silo(self) -> str:
        """The silo that calls. Raises Misuse for anybody else: the role table lets none get here."""
        return self._named("silo")

    @property
    def reviver(self) -> str:
        """The reviver that calls. Raises Misuse as `silo` does."""
        return self._named("reviver")

    def _named(self, role: Role) -> str:
        if self.identity.role != role:
            raise Misuse(f"{self.identity.uri} is not a {role}")
        return self.identity.name

    def actor(self) -> Actor:
        """How the log names it."""
        return Actor(id=self.identity.uri, auth="mtls", cert_sha256=self.fingerprint)


@dataclass(frozen=True)
class Leaf:
    """A certificate whose profile and path were verified once; its dates are checked on every call."""

    peer: Peer
    not_before: float  # unix seconds
    not_after: float


def certificate(context: Any) -> str:
    """What a caller showed, for the server's own log, by its digest as in the audit log; "none" without one.

    Not by what stands in it: that is its holder's choice, also in one that is turned away.
    """
    shown = context.auth_context().get("x509_pem_cert")
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(shown[0].decode())).hexdigest() if shown else "none"


class Leaves:
    """Verified certificates by their PEM text, the least recently used forgotten first. Event loop only.

    gRPC shows the leaf without its chain; the issuing CA is ours, so we add it.
    """

    def __init__(self, authority: Authority) -> None:
        self._authority = authority
        self._known: OrderedDict[bytes, Leaf] = OrderedDict()

    async def verified(self, pem: bytes, now: float) -> Leaf:
        """Raises Refused(BAD_CERTIFICATE) for a certificate outside the profile."""
        leaf = self._known.get(pem)
        if leaf is None:
            leaf = await asyncio.to_thread(self._verify, pem, now)
            self._known[pem] = leaf
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(pem)
        return leaf

    def _verify(self, pem: bytes, now: float) -> Leaf:
        certificate = parse_chain(pem)[0]
        identity = verify_leaf(certificate, [self._authority.root], [self._authority.issuing], now)
        dates = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        return Leaf(Peer(identity, fingerprint(certificate)), *(date.timestamp() for date in dates))
