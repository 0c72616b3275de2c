"""Jobs as their owners and the silos see them: submit, offer, decide, change, hand out, export."""

import hashlib
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, and_, bindparam, delete, func, insert, select, update

from anabranch.errors import Reason, Refused
from anabranch.rules.step import optimizer_manifest
from anabranch.terms import parse_terms
from anabranch.tlog.entry import Actor, Target
from anabranch.tlog.receipt import Receipt
from anabranch.wire import canonical, dsse, limits, statements
from anabranch.wire.tensors import check_file, check_values, parse_manifest
from server import card, lifecycle
from server.audit.log import Log
from server.blobs.local import BlobStore
from server.publishing import publish_initial
from server.sharing import Sharing
from server.state import records
from server.state.database import Reader
from server.state.tables import decisions, jobs, leases, versions, views
from server.state.writer import Transaction, Writer
from server.status import JobStatus, Presence, going_on, job_statuses
from server.views import Encoded, encode

SILOS = 150  # that take part in one job: the log entry of a version names each, and its length is limited
PRUNED = (
    "is not kept any more: the job's terms say how long, under [retention]; its head and best version are"
)
WATCHED = 64  # jobs in one look: their statuses fit one message
DECIDED = {"approve": "approved", "deny": "denied", "withdraw": "withdrawn"}

_CALLED = (
    select(versions)
    .outerjoin(
        views,
        and_(
            views.c.job == versions.c.job,
            views.c.version == versions.c.number,
            views.c.tier == bindparam("tier"),
        ),
    )
    .where(
        versions.c.job == bindparam("job"),
        func.coalesce(views.c.digest, versions.c.parameters) == bindparam("digest"),
    )
    .order_by(versions.c.number)
)
_LEASED = select(leases.c.version).where(
    leases.c.job == bindparam("job"), leases.c.silo == bindparam("silo"), leases.c.status == "open"
)


@dataclass(frozen=True)
class OfferedJob:
    id: str
    terms: bytes
    manifest: bytes
    status: str
    decision: str  # of the silo that asks
    revival: bool  # its word: its models may teach
    head: int
    receipt: Receipt


@dataclass(frozen=True)
class ModelFile:
    """A version to stream as a silo gets it, with the receipts that prove it is what the log says."""

    path: Path
    view: records.View
    receipts: tuple[Receipt, ...]


@dataclass(frozen=True)
class ExportedModel:
    path: Path
    version: int
    digest: str
    card: bytes  # Markdown, UTF-8
    terms: bytes  # canonical
    bytes: int
    receipt: Receipt


@dataclass(frozen=True)
class Jobs:
    federation: str
    writer: Writer
    reader: Reader
    log: Log
    blobs: BlobStore
    observer: Actor
    presence: Presence
    clock: Callable[[], float]
    entropy: Callable[[int], bytes]
    wake: Callable[[], None]
    sharing: Sharing

    def spool(self) -> Path:
        """A file to stream an initial model into."""
        return self.blobs.spool()

    def submit(
        self, owner: Actor, terms: bytes, manifest: bytes, archive: bytes, initial: Path
    ) -> tuple[str, Receipt]:
        """Record a job; silos are asked from now on. Raises Refused when the parts do not fit the terms."""
        parsed = parse_terms(terms)
        tensors = parse_manifest(manifest)
        if parsed.file.revival is not None and parsed.file.revival.mode == "paper":
            raise Refused(
                Reason.MALFORMED,
                'revival: mode "paper" runs in simulations only; take mode "additive", or leave it out',
            )
        for what, digest, named in (
            ("manifest", tensors.digest(), parsed.manifest_sha256),
            ("archive", canonical.sha256(archive), parsed.archive_sha256),
            ("initial model", _file_sha256(initial), parsed.initial_sha256),
        ):
            if digest != named:
                raise Refused(
                    Reason.DIGEST_MISMATCH, f"the {what} is not the one the terms name; submit the job again"
                )
        optimizer_manifest(
            tensors, parsed.file.aggregation.server_optimizer
        )  # its tensors fit the limits as well
        elements = sum(spec.elements for spec in tensors.trainable())
        for density in parsed.file.link.densities if parsed.file.link else ():
            if density * elements < 1:
                raise Refused(
                    Reason.MALFORMED, f"link: a density of {density} leaves none of {elements} entries"
                )
        check_file(initial, tensors)
        check_values(initial, tensors)
        for small in (terms, manifest, archive):
            self.blobs.put(small)
        self.blobs.adopt(initial, parsed.initial_sha256)
        made = encode(self.blobs, self.blobs.path(parsed.initial_sha256), parsed, tensors, 0)
        job = f"{parsed.file.job.name}-{self.entropy(4).hex()}"
        committed = self.writer.run(lambda tx: self._insert(tx, owner, job, terms, manifest, made), "submit")
        return job, committed.receipts[0]

    def _insert(
        self,
        tx: Transaction,
        owner: Actor,
        job: str,
        text: bytes,
        manifest: bytes,
        encoded: Sequence[Encoded],
    ) -> None:
        terms = parse_terms(text)
        entry = tx.log(
            "job.submitted",
            actor=owner,
            target=Target(kind="job", id=job, sha256=terms.digest()),
            job=job,
            detail={
                "name": terms.file.job.name,
                "terms_sha256": terms.digest(),
                "archive_sha256": terms.archive_sha256,
                "initial_sha256": terms.initial_sha256,
                "manifest_sha256": terms.manifest_sha256,
            },
        )
        tx.connection.execute(
            insert(jobs).values(
                id=job,
                name=terms.file.job.name,
                status="waiting",
                terms=text,
                terms_digest=terms.digest(),
                manifest=manifest,
                submitted_at=tx.now,
                submitted_index=entry,
                head=0,
            )
        )
        size = parse_manifest(manifest).file_bytes
        publish_initial(tx, owner, job, terms, size, encoded)

    def offered(self, silo: str) -> list[OfferedJob]:
        """Every job that has not ended, newest first, with what this silo decided."""
        query = select(jobs).where(jobs.c.status.not_in(lifecycle.ENDED)).order_by(jobs.c.submitted_at.desc())
        with self.reader.connect() as connection:
            rows = connection.execute(query.limit(limits.JOBS)).all()
            decided = {row.id: records.decision_of(connection, row.id, silo) for row in rows}
            teaching = {row.id for row in rows if silo in records.teaching(connection, row.id)}
        return [
            OfferedJob(
                row.id,
                row.terms,
                row.manifest,
                row.status,
                decided[row.id],
                row.id in teaching,
                row.head,
                self.log.receipt(row.submitted_index),
            )
            for row in rows
        ]

    def archive(self, job: str) -> Path:
        with self.reader.connect() as connection:
            return self.blobs.require(records.job_terms(connection, job).archive_sha256)

    def decide(self, silo: str, actor: Actor, job: str, data: bytes) -> Receipt:
        """Record what a person at the silo signed. Raises Refused for other terms, another silo or a job that ended."""
        envelope = dsse.parse_envelope(data)
        with self.reader.connect() as connection:
            payload = records.verify_silo_signature(connection, silo, "approver", envelope)
        statement = statements.parse_decision(payload)
        if (statement.silo, statement.job, statement.federation) != (silo, job, self.federation):
            raise Refused(Reason.BAD_SIGNATURE, f"the signed decision is not silo {silo}'s about job {job}")
        receipts = self.writer.run(
            lambda tx: self._decide(tx, silo, actor, statement, envelope), "decide"
        ).receipts
        self.wake()
        return receipts[0]

    def _decide(
        self,
        tx: Transaction,
        silo: str,
        actor: Actor,
        statement: statements.DecisionStatement,
        envelope: dsse.Envelope,
    ) -> None:
        # The silo may have been revoked since its signature was looked at.
        records.verify_silo_signature(tx.connection, silo, "approver", envelope)
        job = records.job_row(tx.connection, statement.job)
        if job.status in lifecycle.ENDED:
            raise Refused(
                Reason.JOB_ENDED, f"job {job.name} is {job.status}; there is nothing left to decide"
            )
        if statement.terms_sha256 != job.terms_digest:
            raise Refused(
                Reason.CODE_DIGEST_MISMATCH, f"the decision is about other terms than job {job.id} has"
            )
        decision, asked = DECIDED[statement.decision], parse_terms(job.terms).file.revival is not None
        if (statement.revival is not None) != (asked and decision == "approved"):
            raise Refused(
                Reason.MALFORMED,
                "an approval of a job with [revival] says whether the silo's models may teach, and no other decision does",
            )
        others = (decisions.c.job == job.id, decisions.c.decision == "approved", decisions.c.silo != silo)
        if decision == "approved" and records.count(tx.connection, decisions, *others) >= SILOS:
            raise Refused(Reason.QUOTA, f"job {job.name} has {SILOS} silos, which is the most a job can have")
        entry = tx.log(
            f"job.{decision}",
            actor=actor,
            target=Target(kind="job", id=job.id, sha256=job.terms_digest),
            job=job.id,
            detail={"silo": silo, "terms_sha256": job.terms_digest, "revival": statement.revival},
            signed=envelope,
        )
        mine = (decisions.c.job == job.id, decisions.c.silo == silo)
        tx.connection.execute(delete(decisions).where(*mine))
        row = {"job": job.id, "silo": silo, "decision": decision, "entry": entry}
        tx.connection.execute(insert(decisions).values(**row, revival=bool(statement.revival)))
        if decision != "approved":
            lifecycle.withdraw(tx, self.observer, silo, job.id)
        elif statement.revival is False:
            lifecycle.end_revivals(tx, self.observer, "withdrawn", job.id, silo)
        lifecycle.conclude(tx, self.observer, job.id)

    def model(self, silo: str, job: str, digest: str) -> ModelFile:
        """A published version's view, for a silo that approved the job. Raises Refused."""
        with self.reader.connect() as connection:
            if records.decision_of(connection, job, silo) != "approved":
                raise Refused(Reason.JOB_NOT_APPROVED, f"silo {silo} has not approved job {job}")
            of = records.job_row(connection, job)
            called = {"job": job, "tier": parse_terms(of.terms).file.tier(silo), "digest": digest}
            equal = connection.execute(_CALLED, called).all()
            leased = connection.execute(_LEASED, {"job": job, "silo": silo}).scalar()
            there = records.kept(connection, digest)
            # Updates may cancel out, and then versions are equal: the silo expects the one its lease names.
            row = next((one for one in equal if one.number == leased), equal[-1] if equal else None)
            view = records.view_of(connection, of, row, silo) if row else None
        if view is None:
            raise Refused(Reason.NOT_FOUND, f"job {job} has published no version with digest {digest}")
        if not there:
            raise Refused(Reason.NOT_FOUND, f"version {view.version} of job {job} {PRUNED}")
        return ModelFile(self.blobs.require(digest), view, tuple(map(self.log.receipt, view.entries)))

    def status(self, job: str | None = None) -> list[JobStatus]:
        return job_statuses(self.reader, self.presence, self.sharing, self.clock(), job)

    def going_on(self, also: Collection[str]) -> list[JobStatus]:
        """Of every job that has not ended, and of those named."""
        return going_on(self.reader, self.presence, self.sharing, self.clock(), also, WATCHED)

    def change(self, owner: Actor, job: str, action: str, reason: str) -> Receipt:
        """pause | resume | abort."""
        committed = self.writer.run(lambda tx: lifecycle.change(tx, owner, job, action, reason), action)
        self.wake()
        return committed.receipts[0]

    def export(self, owner: Actor, job: str, selector: str) -> ExportedModel:
        """The file of one version: "head", "best", "ema" (the average at the head) or a number."""
        with self.reader.connect() as connection:
            row = records.job_row(connection, job)
            version, digest = _select(connection, row, selector)
            written = card.model_card(connection, row, version, digest, selector)

        def decide(tx: Transaction) -> None:
            if not records.kept(tx.connection, digest):
                raise Refused(Reason.NOT_FOUND, f"version {version} of job {job} {PRUNED}")
            mine = (versions.c.job == job, versions.c.number == version)
            tx.connection.execute(update(versions).where(*mine).values(handed_out_at=tx.now))
            detail = {"version": version, "sha256": digest, "selector": selector}
            target = Target(kind="model", id=f"{job}/{version}", sha256=digest)
            tx.log("model.exported", actor=owner, target=target, job=job, detail=detail)

        receipt = self.writer.run(decide, "export").receipts[0]
        path = self.blobs.require(digest)
        size, terms = path.stat().st_size, bytes(row.terms)
        return ExportedModel(path, version, digest, written.encode(), terms, size, receipt)


def _select(connection: Connection, job: Any, selector: str) -> tuple[int, str]:
    if selector == "best" and job.best is None:
        raise Refused(Reason.NOT_FOUND, f"job {job.id} has no evaluated version yet; export head instead")
    if not re.fullmatch("head|best|ema|[0-9]{1,16}", selector):
        raise Refused(Reason.MALFORMED, f"{selector[:80]!r} is not head, best, ema or a version number")
    number = {"head": job.head, "ema": job.head, "best": job.best}.get(selector)
    version = records.version_row(connection, job.id, int(selector) if number is None else number)
    if version is None:
        raise Refused(Reason.NOT_FOUND, f"job {job.id} has no version {selector}; its head is {job.head}")
    digest = version.ema if selector == "ema" else version.parameters
    if digest is None:
        raise Refused(
            Reason.NOT_FOUND, f"job {job.id} keeps no average (aggregation.ema), or has only version 0"
        )
    return version.number, digest


def _file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
