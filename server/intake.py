"""Intake: one update arrives and is admitted or refused.

    open → append … → finish → decision (one transaction: state, entry, receipt)

An update that is known by its id gets the decision it got first. Refusals before the bytes (lease, base, terms) spare
the silo the upload; everything is decided again inside the transaction, because the world moves during an upload.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import Connection, bindparam, insert, select, update

from anabranch.errors import Conflict, Reason, Refused
from anabranch.terms import JobTerms, parse_terms
from anabranch.tlog.entry import Actor, Target, parse_entry
from anabranch.tlog.receipt import Receipt
from anabranch.wire import canonical, dsse, statements
from anabranch.wire.values import Bytes
from server import metrics
from server.audit.log import Log
from server.audit.sealing import keep_sealed
from server.blobs.local import BlobStore
from server.core import admission
from server.gaps import Gap, Reached, nothing
from server.judging import judge_of
from server.spool import SpoolFile, synced_bytes
from server.state import records, tables
from server.state.database import Reader
from server.state.writer import Transaction, Writer
from server.tallies import tally

_UPDATE = select(tables.updates).where(tables.updates.c.id == bindparam("update"))
_INSERT, _EVALUATE = insert(tables.updates), insert(tables.evaluations)
_EVALUATED = select(tables.evaluations.c.entry).where(
    tables.evaluations.c.job == bindparam("job"),
    tables.evaluations.c.version == bindparam("version"),
    tables.evaluations.c.silo == bindparam("silo"),
    tables.evaluations.c.split == bindparam("split"),
)
_FULFIL = update(tables.leases).where(tables.leases.c.id == bindparam("lease")).values(status="fulfilled")

logger = structlog.get_logger("intake")


@dataclass(frozen=True)
class Decided:
    """`reason` is "" for an admitted update; the receipt proves update.received or update.refused."""

    receipt: Receipt
    reason: str


@dataclass(frozen=True)
class UploadStatus:
    synced: int  # bytes that are on stable storage
    decided: Decided | None


@dataclass(frozen=True)
class Claim:
    """A signed statement with what it takes to record it."""

    silo: str
    actor: Actor
    statement: statements.UpdateStatement
    envelope: dsse.Envelope


@dataclass(frozen=True)
class Intake:
    federation: str
    writer: Writer
    reader: Reader
    log: Log
    blobs: BlobStore
    entropy: Callable[[int], bytes]
    wake: Callable[[], None]  # tells aggregation that a buffer has grown
    reached: Reached = nothing

    def status(self, silo: str, update_id: str) -> UploadStatus:
        """How far an upload got. Syncs what has arrived, so that `synced` is true after power loss as well."""
        decided = self._known(silo, update_id)
        if decided is not None:
            return UploadStatus(0, decided)
        spool = next(iter(self.blobs.spooled(_digest(silo, update_id))), None)
        return UploadStatus(synced_bytes(spool) if spool else 0, None)

    def open(
        self, silo: str, actor: Actor, update_id: str, envelope: bytes, offset: int
    ) -> "Upload | Decided":
        """Begin or resume an upload. Raises Refused for a bad signature, Unavailable when the disk is full."""
        decided = self._known(silo, update_id)
        if decided is not None:
            return decided
        with self.reader.connect() as connection:
            claim = self._claim(connection, silo, actor, update_id, envelope)
        spool = self._spool(silo, update_id, claim.statement.lease)
        try:
            with self.reader.connect() as connection:
                _admit(connection, self.federation, claim)
                job = records.job_row(connection, claim.statement.job)
        except Refused as refusal:
            spool.unlink(missing_ok=True)
            return self.refuse(claim, refusal)
        self.blobs.reserve(claim.statement.bytes - offset)
        statement, terms = claim.statement, parse_terms(job.terms)
        packing = terms.file.upload(statement.base_version, silo)
        judge = judge_of(records.manifest_of(job.manifest), packing, statement.bytes)
        file = SpoolFile(spool, statement.bytes, statement.delta_sha256, judge, offset, self.reached)
        return Upload(self, claim, terms, file)

    def _spool(self, silo: str, update_id: str, lease: str) -> Path:
        """One resumable file per (silo, update), whose name also tells retention the lease behind it.

        The name is made of digests, so a wire value never becomes a path.
        """
        return self.blobs.spool(f"{_digest(silo, update_id)}-{_digest(lease)}")

    def _known(self, silo: str, update_id: str) -> Decided | None:
        with self.reader.connect() as connection:
            row = connection.execute(_UPDATE, {"update": update_id}).first()
        if row is None:
            return None
        if row.silo != silo:
            raise Refused(Reason.REPLAYED, f"update id {update_id} belongs to another silo")
        return Decided(self.log.receipt(row.entry), row.reason if row.status == "refused" else "")

    def _claim(self, connection: Connection, silo: str, actor: Actor, update_id: str, data: bytes) -> Claim:
        envelope = dsse.parse_envelope(data)
        payload = records.verify_silo_signature(connection, silo, "update", envelope)
        statement = statements.parse_update(payload)
        if statement.update != update_id:
            raise Refused(
                Reason.BAD_SIGNATURE,
                f"the signed statement is for update {statement.update}, not {update_id}",
            )
        return Claim(silo, actor, statement, envelope)

    def refuse(self, claim: Claim, refusal: Refused) -> Decided:
        """Record why an update does not enter, and prove it to the silo."""
        committed = self.writer.run(lambda tx: _record_refusal(tx, claim, refusal.code), "intake")
        _tell(claim, refusal.code, str(refusal))
        return Decided(committed.receipts[0], refusal.code)

    def decide(self, claim: Claim, norm: float) -> Decided:
        """The blob is safe; admit it or not, in one transaction."""
        with metrics.INTAKE_SECONDS.time():
            self.reached(Gap.STORED)
            committed = self.writer.run(lambda tx: _decide(tx, self.federation, claim, norm), "intake")
        if committed.value:
            _tell(claim, committed.value, "decided when all bytes had come")
        else:
            self.wake()
        return Decided(committed.receipts[0], committed.value)

    def evaluation(self, silo: str, actor: Actor, lease: str, data: bytes) -> Decided:
        """Record a silo's evaluation of a version. Metrics are sealed in the log; the job's owner sees them."""
        envelope = dsse.parse_envelope(data)
        with self.reader.connect() as connection:
            payload = records.verify_silo_signature(connection, silo, "update", envelope)
        statement = statements.parse_evaluation(payload)
        if (statement.lease, statement.federation) != (lease, self.federation):
            raise Refused(
                Reason.BAD_SIGNATURE,
                f"the signed statement is for lease {statement.lease} of federation {statement.federation}, "
                f"not {lease} of {self.federation}",
            )
        known = self._recorded(silo, statement, payload)
        if known is not None:
            return known
        committed = self.writer.run(
            lambda tx: _record_evaluation(tx, silo, actor, statement, envelope, self.entropy(32)),
            "evaluation",
        )
        self.wake()
        return Decided(committed.receipts[0], "")

    def _recorded(
        self, silo: str, statement: statements.EvaluationStatement, payload: bytes
    ) -> Decided | None:
        """The answer this very statement got before."""
        key = {"silo": silo} | statement.model_dump(include={"job", "version", "split"})
        with self.reader.connect() as connection:
            entry = connection.execute(_EVALUATED, key).scalar()
        if entry is None:
            return None
        receipt = self.log.receipt(entry)
        signed = parse_entry(receipt.entry).sigs or ()
        same = [one.payload_sha256 for one in signed] == [canonical.sha256(payload)]
        return Decided(receipt, "") if same else None


@dataclass(frozen=True)
class Upload:
    """One update on its way in. The transport calls it from one stream."""

    intake: Intake
    claim: Claim
    terms: JobTerms
    file: SpoolFile

    @property
    def complete(self) -> bool:
        return self.file.offset == self.file.size

    def append(self, chunk: Bytes) -> None:
        """The next bytes. Raises Refused for what cannot become this update (hand it to `refuse`), Unavailable."""
        self.file.append(chunk)

    def finish(self) -> Decided:
        """All bytes are here: check them, make them a blob, decide. A refusal is recorded and returned.

        Raises Refused(DIGEST_MISMATCH) when the silo shall send everything once more.
        """
        self.file.require_intact_prefix()
        try:
            norm = self.file.check()
            admission.check_norm(norm, self.terms.file.aggregation.max_update_norm)
            self.intake.blobs.adopt(self.file.path, self.file.digest)
        except Refused as refusal:
            return self.refuse(refusal)
        finally:
            self.file.close()
        return self.intake.decide(self.claim, norm)

    def refuse(self, refusal: Refused) -> Decided:
        """Record a refusal found while the bytes were arriving."""
        self.file.discard()
        return self.intake.refuse(self.claim, refusal)

    def suspend(self) -> None:
        """The stream broke: keep what arrived, so that the silo resumes behind it."""
        self.file.suspend()


def _digest(*words: str) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def leases_behind(leases: Iterable[str]) -> set[str]:
    """How the names of the uploads end that belong to these leases."""
    return {f"-{_digest(lease)}" for lease in leases}


def _tell(claim: Claim, reason: str, error: str) -> None:
    """The operator sees more than the code that the silo and the audit log get."""
    update_id = claim.statement.update
    logger.warning("update refused", silo=claim.silo, update=update_id, reason=reason, error=error[:300])


def _admit(connection: Connection, federation: str, claim: Claim) -> int:
    lease = records.lease_facts(connection, claim.statement.lease)
    job = records.job_facts(connection, claim.statement.job, claim.silo, claim.statement.base_version)
    return admission.admit(federation, claim.silo, claim.statement, lease, job)


def _decide(tx: Transaction, federation: str, claim: Claim, norm: float) -> str:
    """Inside the transaction: "" when admitted, else the reason code. Both leave a row and an entry."""
    try:
        staleness = _admit(tx.connection, federation, claim)
    except Refused as refusal:
        return _record_refusal(tx, claim, refusal.code)
    s = claim.statement
    _must_be_new(tx, claim)
    entry = tx.log(
        "update.received",
        actor=claim.actor,
        target=Target(kind="update", id=s.update, sha256=s.delta_sha256),
        job=s.job,
        detail={
            "update": s.update,
            "silo": claim.silo,
            "lease": s.lease,
            "sequence": s.sequence,
            "version": s.base_version,
            "staleness": staleness,
            "bytes": s.bytes,
            "delta_sha256": s.delta_sha256,
            "statement_sha256": canonical.sha256(claim.envelope.payload),
            "norm": canonical.hexfloat(norm),
        },
        signed=claim.envelope,
    )
    _insert(tx, claim, status="received", entry=entry, staleness=staleness)
    tx.connection.execute(_FULFIL, {"lease": s.lease})
    return ""


def _record_refusal(tx: Transaction, claim: Claim, code: Reason) -> str:
    s = claim.statement
    _must_be_new(tx, claim)
    lease = records.lease_facts(tx.connection, s.lease)
    known_job = (
        tx.connection.execute(select(tables.jobs.c.id).where(tables.jobs.c.id == s.job)).first() is not None
    )
    entry = tx.log(
        "update.refused",
        actor=claim.actor,
        target=Target(kind="update", id=s.update),
        job=s.job if known_job else None,
        status="denied",
        reason=code,
        detail={"update": s.update, "silo": claim.silo, "code": code, "delta_sha256": s.delta_sha256},
        signed=claim.envelope,
    )
    if known_job:
        _insert(tx, claim, status="refused", entry=entry, reason=code)
        tally(tx, s.job, claim.silo, "refused", code)
    if lease is not None and lease.silo == claim.silo and lease.status == "open":
        # This lease's work is spent: the silo asks for the next task instead of sending the same again.
        tx.connection.execute(
            update(tables.leases)
            .where(tables.leases.c.id == s.lease)
            .values(status="released", reason=code, released_at=tx.now)
        )
    return code


def _must_be_new(tx: Transaction, claim: Claim) -> None:
    """An update with this id may have been decided since its upload began.

    By this silo: raises Conflict, so that it asks again and gets the decision it got first. By another: Refused.
    """
    update_id = claim.statement.update
    known = tx.connection.execute(_UPDATE, {"update": update_id}).first()
    if known is None:
        return
    if known.silo == claim.silo:
        raise Conflict(f"update {update_id} was decided while it was sent again; ask for its status")
    raise Refused(Reason.REPLAYED, f"update {update_id} was decided already, for another silo")


def _insert(tx: Transaction, claim: Claim, **columns: Any) -> None:
    s = claim.statement
    row = {
        "id": s.update,
        "job": s.job,
        "silo": claim.silo,
        "lease": s.lease,
        "base": s.base_version,
        "delta": s.delta_sha256,
        "bytes": s.bytes,
        "examples": s.num_examples,
        "received_at": tx.now,
        **columns,
    }
    tx.connection.execute(_INSERT, row)


def _record_evaluation(
    tx: Transaction,
    silo: str,
    actor: Actor,
    statement: statements.EvaluationStatement,
    envelope: dsse.Envelope,
    salt: bytes,
) -> None:
    lease = tx.connection.execute(select(tables.leases).where(tables.leases.c.id == statement.lease)).first()
    if lease is None or (lease.silo, lease.kind, lease.job) != (silo, "evaluate", statement.job):
        raise Refused(Reason.BAD_LEASE, f"lease {statement.lease} is not an evaluation lease of silo {silo}")
    if lease.status != "open" or lease.nonce != statement.nonce or lease.version != statement.version:
        raise Refused(Reason.REPLAYED, f"lease {statement.lease} is not open for version {statement.version}")
    job = records.job_row(tx.connection, lease.job)
    version = records.version_row(tx.connection, lease.job, lease.version)
    digest = records.view_of(tx.connection, job, version, silo).digest
    if (statement.split, statement.view_sha256) != (lease.split, digest):
        raise Refused(
            Reason.BAD_LEASE, f"lease {lease.id} is for split {lease.split} and the model {digest[:12]}…"
        )
    facts = {"metrics": dict(statement.metrics), "num_examples": statement.num_examples}
    entry = tx.log(
        "model.evaluated",
        actor=actor,
        target=Target(kind="model", id=f"{statement.job}/{statement.version}", sha256=statement.view_sha256),
        job=statement.job,
        detail={"version": statement.version, "silo": silo, "split": statement.split},
        sealed=keep_sealed(tx.connection, silo, facts, salt),
        signed=envelope,
    )
    row = {
        "job": statement.job,
        "version": statement.version,
        "silo": silo,
        "split": statement.split,
        "metrics": json.dumps({k: canonical.from_hexfloat(v) for k, v in statement.metrics.items()}),
        "num_examples": statement.num_examples,
        "entry": entry,
    }
    tx.connection.execute(_EVALUATE, row)
    tx.connection.execute(_FULFIL, {"lease": statement.lease})
