"""Who is let in, decided for every call on its own: a certificate that was good when its connection was made may
have expired or been revoked since, and TLS itself never looks again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from anabranch.errors import Reason, Refused
from anabranch.wire.identity import Role
from server.allow_list import AllowList
from server.transport.calls import Call, Calls
from server.transport.peer import Leaf, Leaves

# Which roles may call a service. A service that is not here is open to nobody.
ROLES: Mapping[str, frozenset[Role]] = {
    "Federation": frozenset({"silo"}),
    "Updates": frozenset({"silo"}),
    "Audit": frozenset({"silo", "admin", "reviver"}),
    "Admin": frozenset({"admin"}),
    "Revival": frozenset({"reviver"}),
}
FAREWELL = frozenset({"Federation/Session"})  # says why before it ends


@dataclass(frozen=True)
class PeerEntrance:
    """The mTLS port: silos, administrators and revivers."""

    federation: str
    leaves: Leaves
    allow_list: AllowList
    calls: Calls
    clock: Callable[[], float]  # unix seconds

    async def admit(self, method: str, context: Any) -> Call:
        """Let the caller in or raise Refused. The order is fixed: each step trusts those before it.

        1. TLS 1.3. The port offers nothing older; this holds even if that setting did not take effect.
        2. The leaf keeps our X.509 profile and its path ends at our root (verified once, then remembered).
        3. It is valid now: a live connection outlasts its certificate.
        4. The allow-list holds it: not revoked, not replaced, issued by this server.
        5. Its role may call this service.
        6. Nobody speaks for another: no message names its sender, so rooms take the silo from the peer alone.
        7. Its rate and number of open calls are within limits. Sizes are judged per message, before parsing.

        Nothing is awaited after step 4, so that a revocation finds either no call or one it can end.
        """
        security = context.auth_context()
        require_tls13(security)  # 1
        leaf = await self._leaf(security)  # 2
        now = self.clock()
        if not leaf.not_before <= now <= leaf.not_after:  # 3
            raise Refused(
                Reason.BAD_CERTIFICATE,
                "your certificate is not valid at this server's time: renew it, enrol again, or set the clock",
            )
        self.allow_list.check(leaf.peer.fingerprint, now)  # 4
        identity, service = leaf.peer.identity, method.partition("/")[0]
        if identity.role not in ROLES.get(service, ()):  # 5 (6 has nothing to compare)
            raise Refused(Reason.WRONG_ROLE, f"{identity.uri} may not call {method}")
        who = f"silo {identity.name}" if identity.role == "silo" else identity.uri
        return self.calls.enter(who, leaf.peer, method in FAREWELL)  # 7

    async def _leaf(self, security: Mapping[str, Any]) -> Leaf:
        shown = security.get("x509_pem_cert")
        if not shown:
            raise Refused(Reason.BAD_CERTIFICATE, "no client certificate; use the one made at enrolment")
        leaf = await self.leaves.verified(shown[0], self.clock())
        if leaf.peer.identity.federation != self.federation:
            raise Refused(Reason.BAD_CERTIFICATE, f"{leaf.peer.identity.uri} is not of {self.federation}")
        return leaf


@dataclass(frozen=True)
class TokenEntrance:
    """The enrolment port: whoever has a token. The room behind it judges the token."""

    calls: Calls

    async def admit(self, method: str, context: Any) -> Call:
        """TLS 1.3, then the rate of the caller's address. Raises Refused."""
        require_tls13(context.auth_context())
        address = context.peer().rpartition(":")[0]
        return self.calls.enter(address, None, False)


def require_tls13(security: Mapping[str, Any]) -> None:
    """Raises Refused(BAD_CERTIFICATE) for a connection with an older TLS."""
    if security.get("ssl_tls_version") != [b"TLSv1.3"]:
        raise Refused(
            Reason.BAD_CERTIFICATE, "this server speaks TLS 1.3 only; update the agent's TLS library"
        )
