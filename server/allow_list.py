"""The allow-list: which certificates open something right now.

A view in memory of the `certificates` table, because every call asks it. It is filled at start and
changed only after the commit that changes the table, so it never allows more than the table does. A
restart forgets one thing: that a renewed certificate was used already; the one before it then comes
back for the rest of its ten minutes. A certificate that is not on the list opens nothing.
"""

import threading
from dataclasses import dataclass, replace
from typing import Literal

from sqlalchemy import select

from anabranch.errors import Reason, Refused
from server.state.database import Reader
from server.state.tables import certificates

FORGOTTEN = 30 * 86400.0  # seconds after its end; set right, a clock that is ahead makes it good again
OVERLAP = 600.0  # seconds a replaced certificate stays valid while its successor is unused


@dataclass(frozen=True)
class Allowed:
    """One certificate; times are unix seconds."""

    identity: str  # SPIFFE URI
    silo: str | None
    not_after: float
    entry: int  # log index of its issue
    status: Literal["active", "replaced", "revoked"] = "active"
    until: float = float("inf")  # of a replaced one


class AllowList:
    """Thread-safe. `check` runs on the event loop: it holds a lock for a moment and waits for no I/O.

    Changes name the log entry they come from, because threads may bring them in another order than the commits:
    a certificate issued before its silo was revoked stays shut, whoever comes first.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._allowed: dict[str, Allowed] = {}  # by fingerprint
        self._unused: set[str] = set()  # fingerprints issued here that nobody has shown yet
        self._revoked: dict[str, int] = {}  # silo → log index of its newest revocation

    def load(self, reader: Reader, now: float) -> None:
        """Take over what the table says. Call once, before serving."""
        query = select(certificates).where(certificates.c.not_after > now - FORGOTTEN)
        with reader.connect() as connection:
            rows = connection.execute(query).all()
        for row in rows:
            until = float("inf") if row.replaced_at is None else row.replaced_at + OVERLAP
            self._allowed[row.fingerprint] = Allowed(
                row.identity, row.silo, row.not_after, -1, row.status, until
            )

    def check(self, fingerprint: str, now: float) -> str:
        """The identity URI this certificate speaks for; using a renewed one ends its predecessors.

        Raises Refused: REVOKED_IDENTITY, or BAD_CERTIFICATE for one that was never issued here, has
        expired, or has been replaced.
        """
        with self._lock:
            allowed = self._allowed.get(fingerprint)
            if allowed is None:
                raise Refused(
                    Reason.BAD_CERTIFICATE, "this certificate is not on the allow-list; enrol again"
                )
            who = allowed.identity
            if allowed.status == "revoked":
                raise Refused(Reason.REVOKED_IDENTITY, f"{who} was revoked by an administrator")
            if now > allowed.not_after:
                raise Refused(Reason.BAD_CERTIFICATE, f"this certificate of {who} expired; enrol again")
            if now > allowed.until:
                raise Refused(Reason.BAD_CERTIFICATE, f"{who} has renewed this certificate; use the new one")
            if fingerprint in self._unused:
                self._unused.remove(fingerprint)
                self._replace(who, allowed.entry, until=0.0)
            return who

    def add(
        self, fingerprint: str, identity: str, silo: str | None, not_after: float, entry: int, now: float
    ) -> None:
        """A certificate was issued; older ones of its identity stay for `OVERLAP`, or until this one is used."""
        with self._lock:
            for known, allowed in list(self._allowed.items()):
                if allowed.not_after < now - FORGOTTEN:
                    del self._allowed[known]
                    self._unused.discard(known)
            issued = Allowed(identity, silo, not_after, entry)
            if silo is not None and entry < self._revoked.get(silo, -1):
                issued = replace(issued, status="revoked")
            elif any(a.identity == identity and a.entry > entry for a in self._allowed.values()):
                issued = replace(issued, status="replaced", until=now + OVERLAP)
            self._allowed[fingerprint] = issued
            self._unused.add(fingerprint)
            self._replace(identity, entry, until=now + OVERLAP)

    def revoke(self, silo: str, entry: int) -> None:
        """No certificate of `silo` issued before log entry `entry` opens anything once this returns."""
        with self._lock:
            self._revoked[silo] = max(entry, self._revoked.get(silo, -1))
            for known, allowed in self._allowed.items():
                if allowed.silo == silo and allowed.entry < entry:
                    self._allowed[known] = replace(allowed, status="revoked")

    def _replace(self, identity: str, entry: int, until: float) -> None:
        """Those of `identity` issued before `entry` end at `until`, if they do not end earlier."""
        for known, allowed in self._allowed.items():
            if allowed.identity == identity and allowed.entry < entry and allowed.status != "revoked":
                end = min(allowed.until, until)
                self._allowed[known] = replace(allowed, status="replaced", until=end)
