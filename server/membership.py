"""Membership: who belongs to the federation, and with which certificate.

    invite → begin → enrol → renew … → revoke

A token is redeemed by ONE conditional UPDATE, so of any number of racing requests exactly one wins. The
request that won may be repeated until the token expires, because its answer may have been lost.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from sqlalchemy import Connection, func, insert, select, update

from anabranch.errors import Reason, Refused
from anabranch.terms import NAME
from anabranch.tlog.entry import Actor, Target
from anabranch.tlog.fields import REASON
from anabranch.tlog.receipt import Receipt
from anabranch.wire import canonical
from anabranch.wire.bundle import FederationInfo, JoinBundle
from anabranch.wire.identity import Identity
from server import lifecycle
from server.allow_list import OVERLAP, AllowList
from server.ca.authority import Authority, Issued, Key, read_request
from server.enrolment import TOKEN_BYTES, Claim, Nonces, SigningKey, read_claim
from server.sessions import Revoked, Sessions
from server.state.database import Reader
from server.state.tables import certificates, keys, silos, tokens
from server.state.writer import Transaction, Writer

IssuedHere = Literal["admin", "reviver"]  # by whoever can write to the server's directory
TTL, LONGEST_TTL = 3600, 86400  # seconds a token is good: unless said otherwise, and at most
FAILURES = 5  # wrong tokens under one id; then the id is void
RENEWALS = 5  # of one identity within OVERLAP
LISTED = (
    250  # digests and ids a revocation's entry names, so that it always fits; every update has its own entry
)


class Streams(Protocol):
    """The calls in flight."""

    def end(self, silo: str, reason: str) -> None:
        """End every call of `silo`; returns when they have ended, after a second at the latest."""


@dataclass(frozen=True)
class Lifetimes:
    """Of leaves, in seconds."""

    silo: float = 72 * 3600.0
    server: float = 72 * 3600.0
    admin: float = 12 * 3600.0
    reviver: float = 72 * 3600.0


@dataclass(frozen=True)
class SiloRow:
    name: str
    status: str  # invited | active | revoked
    certificate_not_after: float  # unix seconds; 0.0: none
    connected: bool
    last_seen: float  # unix seconds; 0.0: never
    release: str


@dataclass(frozen=True)
class Membership:
    writer: Writer
    reader: Reader
    authority: Authority
    allow_list: AllowList
    sessions: Sessions
    streams: Streams
    directions: FederationInfo  # what every bundle tells
    observer: Actor  # this server
    nonces: Nonces
    lifetimes: Lifetimes
    clock: Callable[[], float]
    entropy: Callable[[int], bytes]
    wake: Callable[[], None]  # aggregation: a buffer may have shrunk, a round may wait for one silo less

    # --- administrators and revivers ---------------------------------------------------------------------------------

    def invite(self, admin: Actor, silo: str, ttl_seconds: int = 0) -> tuple[bytes, Receipt]:
        """A join bundle with a fresh token for one agent of `silo`; 0 means an hour, a day is the most.

        The token is in the bundle and nowhere else. A revoked silo may be invited again; its old
        certificates and keys stay dead. Raises Refused(MALFORMED, SIZE_LIMIT).
        """
        if not re.fullmatch(NAME, silo):
            raise Refused(
                Reason.MALFORMED, f"silo {silo[:80]!r}: a name is lowercase letters, digits and dashes"
            )
        if ttl_seconds > LONGEST_TTL:
            raise Refused(
                Reason.SIZE_LIMIT, f"a token lives {ttl_seconds} s; at most {LONGEST_TTL} (one day)"
            )
        token, token_id = self.entropy(TOKEN_BYTES), self.entropy(8).hex()
        token_hash = hashlib.sha256(token).hexdigest()

        def decide(tx: Transaction) -> float:
            expires = tx.now + (ttl_seconds or TTL)
            _invited(tx, silo)
            row = {"id": token_id, "hash": token_hash, "silo": silo, "expires_at": expires, "failures": 0}
            tx.connection.execute(insert(tokens).values(row))
            detail = {"silo": silo, "token_id": token_id, "expires": canonical.utc(expires)}
            tx.log("silo.invited", actor=admin, target=Target(kind="silo", id=silo), detail=detail)
            return expires

        committed = self.writer.run(decide, "invite")
        told = self.directions.model_dump() | {"silo": silo, "token_id": token_id, "token": token.hex()}
        bundle = JoinBundle(**told, expires=canonical.utc(committed.value))
        return bundle.encode(), committed.receipts[0]

    def silos(self) -> list[SiloRow]:
        """All silos that were ever invited, by name."""
        newest = (
            select(certificates.c.silo, func.max(certificates.c.not_after).label("not_after"))
            .where(certificates.c.status == "active")
            .group_by(certificates.c.silo)
            .subquery()
        )
        query = select(silos, newest.c.not_after).outerjoin(newest, newest.c.silo == silos.c.name)
        with self.reader.connect() as connection:
            rows = connection.execute(query.order_by(silos.c.name)).all()
        return [self._describe(row) for row in rows]

    def _describe(self, row: Any) -> SiloRow:
        seen = self.sessions.presence(row.name)
        return SiloRow(
            row.name, row.status, row.not_after or 0.0, seen.sessions > 0, seen.last_seen, seen.release
        )

    def revoke(self, admin: Actor, silo: str, reason: str = "") -> tuple[Receipt, int]:
        """Shut `silo` out; the receipt, and how many of its updates were retired.

        In this order: commit, allow-list, open streams, answer. Killed after the commit: the restart loads the
        allow-list from it. Repeating it is harmless. Raises Refused(NOT_FOUND, MALFORMED).
        """
        why = reason or "unspecified"
        if not re.fullmatch(REASON, why):
            raise Refused(
                Reason.MALFORMED,
                f"reason {why[:80]!r} goes into the log: at most six words of lowercase letters, digits, - and _",
            )
        committed = self.writer.run(lambda tx: self._revoke(tx, admin, silo, why), "revoke")
        self.allow_list.revoke(silo, committed.receipts[-1].index)
        self.sessions.push(silo, Revoked(why))
        self.streams.end(silo, f"silo {silo} was revoked: {why}")
        self.wake()
        return committed.receipts[-1], committed.value

    def _revoke(self, tx: Transaction, admin: Actor, silo: str, reason: str) -> int:
        connection, c = tx.connection, certificates.c
        if connection.execute(select(silos.c.name).where(silos.c.name == silo)).first() is None:
            raise Refused(
                Reason.NOT_FOUND, f"there is no silo {silo[:80]!r}; list the silos to see their names"
            )
        opens = (c.status == "active") | ((c.status == "replaced") & (c.replaced_at > tx.now - OVERLAP))
        mine = select(c.fingerprint).where(c.silo == silo, c.not_after > tx.now, opens)
        dead = connection.execute(mine.order_by(c.not_after.desc())).scalars().all()
        connection.execute(update(silos).where(silos.c.name == silo).values(status="revoked"))
        connection.execute(update(certificates).where(c.silo == silo).values(status="revoked"))
        connection.execute(
            update(keys).where(keys.c.silo == silo, keys.c.retired_at.is_(None)).values(retired_at=tx.now)
        )
        connection.execute(
            update(tokens)
            .where(tokens.c.silo == silo, tokens.c.expires_at > tx.now)
            .values(expires_at=tx.now)
        )
        retired = lifecycle.withdraw(tx, admin, silo)
        detail = {
            "silo": silo,
            "reason": reason,
            "certificates": dead[:LISTED],
            "updates": retired[:LISTED],
        }
        tx.log("silo.revoked", actor=admin, target=Target(kind="silo", id=silo), detail=detail)
        return len(retired)

    def issue_here(self, role: IssuedHere, name: str, csr: bytes) -> tuple[bytes, Receipt]:
        """A certificate for an administrator under a pseudonym, or for a reviver, asked for on this machine; PEM chain."""
        key = read_request(csr)
        if not re.fullmatch(NAME, name):
            raise Refused(Reason.MALFORMED, f"{role} {name[:80]!r}: lowercase letters, digits and dashes")

        def decide(tx: Transaction) -> Issued:
            issued = self._issue(Identity(self.directions.federation, role, name), key, tx.now)
            _admit(tx, issued, self.observer)
            return issued

        committed = self.writer.run(decide, "issue_here")
        self._allow(committed.value, committed.receipts[0])
        return committed.value.chain, committed.receipts[0]

    def _issue(self, who: Identity, key: Key, now: float) -> Issued:
        if who.role == "silo":
            assert who.agent is not None  # a silo's identity has one
            return self.authority.issue_silo(key, who.name, who.agent, now, self.lifetimes.silo)
        if who.role == "reviver":
            return self.authority.issue_reviver(key, who.name, now, self.lifetimes.reviver)
        return self.authority.issue_admin(key, who.name, now, self.lifetimes.admin)

    def issue_server(self, key: Key, hosts: Sequence[str]) -> Issued:
        """This server's own leaf. It opens nothing, so it is logged and not on the allow-list."""

        def decide(tx: Transaction) -> Issued:
            issued = self.authority.issue_server(key, hosts, tx.now, self.lifetimes.server)
            _log_issued(tx, issued, self.observer)
            return issued

        return self.writer.run(decide, "issue_server").value

    # --- silos ------------------------------------------------------------------------------------------

    def begin(self, token_id: str) -> bytes:
        """The nonce an enrolment under `token_id` signs. Says nothing about whether the token exists."""
        return self.nonces.current(token_id, self.clock())

    def enrol(
        self, token_id: str, token: bytes, csr: bytes, signing_keys: Sequence[SigningKey]
    ) -> tuple[bytes, tuple[Receipt, ...]]:
        """Redeem a token: PEM chain, and the receipts of silo.enrolled and cert.issued.

        Raises Refused: BAD_TOKEN for a token that is unknown, used by another request, expired, void after five
        failures or of a silo revoked since; else as `read_claim`, and MALFORMED for a key that is not new.
        """
        claim = read_claim(token_id, token, csr, signing_keys, self.nonces.recent(token_id, self.clock()))
        committed = self.writer.run(lambda tx: self._enrol(tx, claim), "enrol")
        if committed.value is None:
            raise Refused(
                Reason.BAD_TOKEN, "the token is unknown, used, expired, or void after five wrong attempts"
            )
        self._allow(committed.value, committed.receipts[-1])
        return committed.value.chain, committed.receipts

    def _enrol(self, tx: Transaction, claim: Claim) -> Issued | None:
        """None when the token is not good: returned, not raised, so that the failure is counted."""
        redeemed = _redeem(tx, claim)
        if redeemed is None:
            return None
        silo, agent = redeemed
        issued = self._issue(Identity(self.directions.federation, "silo", silo, agent), claim.tls_key, tx.now)
        actor = Actor(id=issued.identity.uri, auth="token")
        for key in claim.keys:
            _register(tx, silo, key)
        detail = {
            "silo": silo,
            "agent": agent,
            "token_id": claim.token_id,
            "csr_sha256": claim.request,
            "keys": [{"purpose": key.purpose, "public": key.public.hex()} for key in claim.keys],
        }
        tx.log("silo.enrolled", actor=actor, target=Target(kind="silo", id=silo), detail=detail)
        _admit(tx, issued, actor)
        return issued

    def renew(self, who: Identity, csr: bytes, fingerprint: str) -> tuple[bytes, Receipt]:
        """A new certificate for a silo or a reviver that has the one named; PEM chain.

        The old one stays good for ten minutes or until the new one is used. Raises Refused: BAD_CERTIFICATE when
        the old one is somebody else's, REVOKED_IDENTITY, QUOTA, or as `read_request`.
        """
        key = read_request(csr)
        committed = self.writer.run(lambda tx: self._renew(tx, who, key, fingerprint), "renew")
        self._allow(committed.value, committed.receipts[0])
        return committed.value.chain, committed.receipts[0]

    def _renew(self, tx: Transaction, who: Identity, key: Key, fingerprint: str) -> Issued:
        c = certificates.c
        old = tx.connection.execute(select(certificates).where(c.fingerprint == fingerprint)).first()
        if old is None or old.identity != who.uri:
            raise Refused(Reason.BAD_CERTIFICATE, f"this certificate is not one of {who.uri}")
        if old.status == "revoked":
            raise Refused(Reason.REVOKED_IDENTITY, f"{old.identity} was revoked by an administrator")
        recent = select(func.count()).where(c.identity == old.identity, c.replaced_at > tx.now - OVERLAP)
        if tx.connection.execute(recent).scalar_one() >= RENEWALS:
            raise Refused(Reason.QUOTA, f"{old.identity} was renewed {RENEWALS} times in ten minutes; wait")
        issued = self._issue(who, key, tx.now)
        _insert(tx.connection, issued, tx.now)
        actor = Actor(id=old.identity, auth="mtls", cert_sha256=fingerprint)
        target = Target(kind="certificate", id=issued.serial, sha256=issued.fingerprint)
        detail = issued.detail() | {"previous_cert_sha256": fingerprint}
        tx.log("cert.renewed", actor=actor, target=target, detail=detail)
        return issued

    def _allow(self, issued: Issued, receipt: Receipt) -> None:
        """After the commit. Killed before: the restart loads it from the table."""
        who = issued.identity
        silo = who.name if who.role == "silo" else None
        now = self.clock()
        self.allow_list.add(issued.fingerprint, who.uri, silo, issued.not_after, receipt.index, now)


def _invited(tx: Transaction, silo: str) -> None:
    status = tx.connection.execute(select(silos.c.status).where(silos.c.name == silo)).scalar()
    if status is None:
        row = {"name": silo, "status": "invited", "agents": 0, "invited_at": tx.now}
        tx.connection.execute(insert(silos).values(row))
    elif status == "revoked":
        again = {"status": "invited", "invited_at": tx.now}
        tx.connection.execute(update(silos).where(silos.c.name == silo).values(again))


def _redeem(tx: Transaction, claim: Claim) -> tuple[str, int] | None:
    """(silo, agent number) of the one request that wins, also when it is repeated; None for any other."""
    connection, c = tx.connection, tokens.c
    fits = (c.id == claim.token_id, c.hash == claim.token_hash, c.expires_at > tx.now)
    winning = (*fits, c.used_at.is_(None), c.failures < FAILURES)
    values = {"used_at": tx.now, "request": claim.request}
    if connection.execute(update(tokens).where(*winning).values(values)).rowcount == 1:
        silo = connection.execute(select(c.silo).where(c.id == claim.token_id)).scalar_one()
        agent = connection.execute(select(silos.c.agents).where(silos.c.name == silo)).scalar_one()
        connection.execute(update(tokens).where(c.id == claim.token_id).values(agent=agent))
        grown = {"status": "active", "agents": agent + 1}
        connection.execute(update(silos).where(silos.c.name == silo).values(grown))
        return str(silo), int(agent)
    repeated = select(c.silo, c.agent).where(*fits, c.request == claim.request)
    row = connection.execute(repeated).first()
    if row is not None:
        return row.silo, row.agent
    wrong = (c.id == claim.token_id, c.hash != claim.token_hash)
    connection.execute(update(tokens).where(*wrong).values(failures=c.failures + 1))
    return None


def _register(tx: Transaction, silo: str, key: SigningKey) -> None:
    """A key belongs to one silo and purpose for ever, and once retired never comes back."""
    known = tx.connection.execute(select(keys).where(keys.c.keyid == key.keyid)).first()
    if known is None:
        row = {"keyid": key.keyid, "silo": silo, "purpose": key.purpose, "public": key.public}
        tx.connection.execute(insert(keys).values(row))
    elif (known.silo, known.purpose) != (silo, key.purpose) or known.retired_at is not None:
        raise Refused(
            Reason.MALFORMED,
            f"the {key.purpose} key was registered before and is retired or another's; make new keys",
        )


def _admit(tx: Transaction, issued: Issued, actor: Actor) -> None:
    _insert(tx.connection, issued, tx.now)
    _log_issued(tx, issued, actor)


def _insert(connection: Connection, issued: Issued, now: float) -> None:
    """The newest certificate of an identity is its active one."""
    c, who = certificates.c, issued.identity
    before = update(certificates).where(c.identity == who.uri, c.status == "active")
    connection.execute(before.values(status="replaced", replaced_at=now))
    row = {
        "fingerprint": issued.fingerprint,
        "identity": who.uri,
        "silo": who.name if who.role == "silo" else None,
        "serial": issued.serial,
        "not_after": issued.not_after,
        "status": "active",
    }
    connection.execute(insert(certificates).values(row))


def _log_issued(tx: Transaction, issued: Issued, actor: Actor) -> None:
    target = Target(kind="certificate", id=issued.serial, sha256=issued.fingerprint)
    tx.log("cert.issued", actor=actor, target=target, detail=issued.detail())
