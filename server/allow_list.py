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

OVERLAP = 600.0  # seconds a replaced certificate stays valid while its successor is unused


@dataclass(frozen=True)
class Allowed:
    """One certificate; times are unix seconds."""

    identity: str  # SPIFFE URI
    silo: str | None
    not_after: float
    status: Literal["active", "replaced", "revoked"] = "active"
    until: float = float("inf")  # of a replaced one

    def replaced_at(self, now: float) -> "Allowed":
        return replace(self, status="replaced", until=min(self.until, now + OVERLAP))


class AllowList:
    """Thread-safe. `check` runs on the event loop: it holds a lock for a moment and waits for no I/O."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._allowed: dict[str, Allowed] = {}  # by fingerprint

    def load(self, reader: Reader, now: float) -> None:
        """Take over what the table says. Call once, before serving."""
        query = select(certificates).where(certificates.c.not_after > now)
        with reader.connect() as connection:
            rows = connection.execute(query).all()
        for row in rows:
            until = float("inf") if row.replaced_at is None else row.replaced_at + OVERLAP
            allowed = Allowed(row.identity, row.silo, row.not_after, row.status, until)
            self._allowed[row.fingerprint] = allowed

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
            if allowed.status == "active":
                self._end_predecessors(who)
            return who

    def add(self, fingerprint: str, identity: str, silo: str | None, not_after: float, now: float) -> None:
        """A certificate was issued; others of its identity stay for `OVERLAP`, or until this one is used."""
        with self._lock:
            for known, allowed in list(self._allowed.items()):
                if allowed.not_after < now:
                    del self._allowed[known]
                elif allowed.identity == identity and allowed.status == "active":
                    self._allowed[known] = allowed.replaced_at(now)
            self._allowed[fingerprint] = Allowed(identity, silo, not_after)

    def revoke(self, silo: str) -> None:
        """No certificate of `silo` opens anything from the moment this returns."""
        with self._lock:
            for known, allowed in self._allowed.items():
                if allowed.silo == silo:
                    self._allowed[known] = replace(allowed, status="revoked")

    def _end_predecessors(self, identity: str) -> None:
        for known, allowed in self._allowed.items():
            if allowed.identity == identity and allowed.status == "replaced":
                self._allowed[known] = replace(allowed, until=0.0)
