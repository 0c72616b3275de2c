"""Signatures: what a silo is said to have said, it signed, with a key it registered and that was not revoked.

The server cannot make these: it never holds a silo's keys. So whoever controls the log still cannot put an approval, an
update or an evaluation into a silo's mouth.
"""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from anabranch.errors import Refused
from anabranch.tlog.details import (
    JobDecision,
    ModelEvaluated,
    PublicKey,
    SiloEnrolled,
    SiloRevoked,
    UpdateReceived,
    UpdateRefused,
)
from anabranch.tlog.entry import Entry, Sig
from anabranch.wire import dsse, statements
from anabranch.wire.identity import parse_identity
from anabranch.wire.statements import DecisionStatement, EvaluationStatement, UpdateStatement
from auditor.parsing import parse_update, revive_model

Statement = UpdateStatement | DecisionStatement | EvaluationStatement
STATEMENTS: dict[str, type[Statement]] = {
    kind.__name__: kind for kind in (UpdateStatement, DecisionStatement, EvaluationStatement)
}
Prepared = tuple[str, dict[str, Any]]  # a statement as plain values: which of STATEMENTS, its fields
DECISIONS = {"job.approved": "approve", "job.denied": "deny", "job.withdrawn": "withdraw"}


@dataclass
class _Key:
    silo: str
    purpose: str  # update | approver
    public: bytes
    revoked: bool = False


class Signatures:
    """Reads the log in order. `fetch` gives the payload of a digest, or None; `find` takes what is wrong."""

    def __init__(self, fetch: Callable[[str], bytes | None], find: Callable[[int, Entry, str], None]) -> None:
        self.good = 0
        self.withheld = 0  # evaluations whose statement the export leaves out
        self.views: list[
            tuple[int, str, int, str]
        ] = []  # entry and its type; the tree head its silo had seen, size and root
        self._fetch = fetch
        self._find = find
        self._keys: dict[str, _Key] = {}  # by keyid

    def see(self, index: int, entry: Entry, prepared: Prepared | None = None) -> Statement | None:
        """Keep the registry of keys, check the signature an entry carries; returns what was signed if it is good.

        `prepared`: what `prepare` made of this entry, if that was done already.
        """
        match entry.detail:
            case SiloEnrolled(silo=silo, keys=keys):
                for key in keys:
                    self._register(index, entry, silo, key)
            case SiloRevoked(silo=silo):
                for registered in self._keys.values():
                    registered.revoked |= registered.silo == silo
            case UpdateReceived() | UpdateRefused() | JobDecision() | ModelEvaluated():
                return self._check(index, entry, prepared)
        return None

    def _register(self, index: int, entry: Entry, silo: str, key: PublicKey) -> None:
        """A key has one silo and one purpose for ever, and does not come back once its silo was revoked."""
        fresh = _Key(silo, key.purpose, bytes.fromhex(key.public))
        known = self._keys.setdefault(dsse.keyid(fresh.public), fresh)
        if known != fresh:
            fate = ", which was revoked" if known.revoked else ""
            self._find(
                index,
                entry,
                f"registers the {known.purpose} key of silo {known.silo}{fate}, as {key.purpose} key of silo {silo}",
            )

    def _check(self, index: int, entry: Entry, prepared: Prepared | None) -> Statement | None:
        signatures = entry.sigs or ()
        if not signatures and isinstance(entry.detail, UpdateRefused):
            return None  # refused for its very signature, or before it had one
        if len(signatures) != 1:
            self._find(index, entry, f"carries {len(signatures)} signatures; expected that of the silo")
            return None
        try:
            statement = self._open(entry, signatures[0], prepared)
        except (Refused, Doubt) as doubt:
            self._find(index, entry, str(doubt))
            return None
        if statement is None:
            self.withheld += 1
            return None
        self.good += 1
        if isinstance(statement, UpdateStatement):
            self.views.append((index, entry.type, statement.checkpoint.size, statement.checkpoint.root))
        return statement

    def _open(self, entry: Entry, sig: Sig, prepared: Prepared | None) -> Statement | None:
        """The statement behind a good signature, None when it is an evaluation that was left out."""
        detail: Any = entry.detail
        purpose = "approver" if isinstance(detail, JobDecision) else "update"
        key = self._keys.get(sig.keyid)
        if key is None or (key.silo, key.purpose) != (detail.silo, purpose):
            raise Doubt(
                f"is signed by {sig.keyid[:16]}…, no {purpose} key that silo {detail.silo} registered"
            )
        if key.revoked and not isinstance(detail, UpdateRefused):  # an open upload ends in a refusal
            raise Doubt(f"is signed with a key of silo {detail.silo} after the silo was revoked")
        actor = parse_identity(entry.actor.id)
        if (actor.role, actor.name) != ("silo", detail.silo):
            raise Doubt(f"is said to come from {entry.actor.id}, but is signed by silo {detail.silo}")
        if prepared is None:
            prepared = prepare(entry, sig, key.public, self._fetch)
        return None if prepared is None else revived(prepared)


class Doubt(Exception):
    """Why a signature does not prove its entry."""


def prepare(entry: Entry, sig: Sig, public: bytes, fetch: Callable[[str], bytes | None]) -> Prepared | None:
    """What `public` signed for an entry, if the signature is good and the entry says the same.

    None when it is an evaluation that was left out. Whether it is the right key, `Signatures` judges. Raises Doubt,
    Refused.
    """
    payload = fetch(sig.payload_sha256)
    if payload is None and isinstance(entry.detail, ModelEvaluated):
        return None
    if payload is None:
        raise Doubt(f"its signed statement objects/{sig.payload_sha256} is missing: nothing proves it")
    if sig.payloadType != statements.PAYLOAD_TYPE:
        raise Doubt(f"is signed as {sig.payloadType}, expected {statements.PAYLOAD_TYPE}")
    dsse.verify_signature(base64.b64decode(sig.sig), public, sig.payloadType, payload)
    statement = _parse(entry, payload)
    _agree(entry, sig, statement)
    return type(statement).__name__, statement.model_dump()


def revived(prepared: Prepared) -> Statement:
    kind, fields = prepared
    statement: Statement = revive_model(STATEMENTS[kind], fields)
    return statement


def _parse(entry: Entry, payload: bytes) -> Statement:
    if isinstance(entry.detail, JobDecision):
        return statements.parse_decision(payload)
    if isinstance(entry.detail, ModelEvaluated):
        return statements.parse_evaluation(payload)
    return parse_update(payload)


def _agree(entry: Entry, sig: Sig, statement: Statement) -> None:
    """The entry says what was signed. What a lease or a job says is compared in `lifecycle`."""
    detail: Any = entry.detail
    logged: dict[str, Any] = {"federation": entry.fed, "job": entry.job}
    match detail:
        case JobDecision():
            logged |= {
                "decision": DECISIONS[entry.type],
                "silo": detail.silo,
                "terms_sha256": detail.terms_sha256,
                "revival": detail.revival,
            }
        case ModelEvaluated():
            logged |= {"version": detail.version, "split": detail.split}
        case UpdateRefused():  # refused, perhaps because it speaks of another federation or job
            said = {"update": detail.update, "lease": detail.lease, "delta_sha256": detail.delta_sha256}
            logged = {name: value for name, value in said.items() if value is not None}
        case UpdateReceived():
            same = ("update", "lease", "sequence", "bytes", "delta_sha256", "privacy")
            logged |= {name: getattr(detail, name) for name in same} | {"base_version": detail.version}
            if detail.statement_sha256 != sig.payload_sha256:
                raise Doubt(
                    f"names the statement {detail.statement_sha256[:16]}…, but another one was signed"
                )
    for name, value in logged.items():
        if getattr(statement, name) != value:
            raise Doubt(f"logs {name} = {value}, but the silo signed {name} = {getattr(statement, name)}")
