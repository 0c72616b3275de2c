"""What several rooms read from the state store, as the facts their decisions take."""

from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from statistics import median
from typing import Any

from sqlalchemy import Connection, bindparam, func, select

from anabranch.errors import Reason, Refused
from anabranch.link import Packing
from anabranch.terms import JobTerms, parse_terms
from anabranch.wire import dsse, statements
from anabranch.wire.packed import most_bytes
from anabranch.wire.tensors import Manifest, parse_manifest
from server.core.admission import JobFacts, LeaseFacts
from server.state.tables import decisions, jobs, keys, leases, named, silos, updates, versions, views

RECENT = 64  # tasks that say how long one takes

# Every decision asks these: building a statement takes longer than running it, so each is built once.
_KEYS = select(keys.c.keyid, keys.c.public).where(
    keys.c.silo == bindparam("silo"), keys.c.purpose == bindparam("purpose"), keys.c.retired_at.is_(None)
)
_LEASE = select(leases).where(leases.c.id == bindparam("lease"))
_JOB = select(jobs).where(jobs.c.id == bindparam("job"))
_VERSION = select(versions).where(
    versions.c.job == bindparam("job"), versions.c.number == bindparam("number")
)
_VIEW = select(views).where(
    views.c.job == bindparam("job"),
    views.c.version == bindparam("number"),
    views.c.tier == bindparam("tier"),
)
_DECISION = select(decisions.c.decision).where(
    decisions.c.job == bindparam("job"), decisions.c.silo == bindparam("silo")
)
_PARTICIPANTS = (
    select(decisions.c.silo)
    .join(silos, silos.c.name == decisions.c.silo)
    .where(
        decisions.c.job == bindparam("job"), decisions.c.decision == "approved", silos.c.status == "active"
    )
    .order_by(decisions.c.silo)
)
_NEWEST_MERGED = (
    select(updates)
    .where(
        updates.c.job == bindparam("job"), updates.c.silo == bindparam("silo"), updates.c.status == "merged"
    )
    .order_by(updates.c.entry.desc())
    .limit(1)
)
_WORKED = (
    select(updates.c.silo, updates.c.received_at - leases.c.issued_at)
    .join(leases, leases.c.id == updates.c.lease)
    .where(updates.c.job == bindparam("job"), updates.c.status == "merged")
    .order_by(updates.c.entry.desc())
    .limit(RECENT)
)
_TEACHING = _PARTICIPANTS.where(decisions.c.revival)
_KEPT = select(named.c.digest).where(named.c.digest == bindparam("digest"), named.c.pruned.is_(None)).limit(1)


def verify_silo_signature(connection: Connection, silo: str, purpose: str, envelope: dsse.Envelope) -> bytes:
    """The payload, signed with a key this silo registered for `purpose` and with no other. Raises Refused(BAD_SIGNATURE)."""
    if len(envelope.signatures) != 1:
        raise Refused(
            Reason.BAD_SIGNATURE, f"{len(envelope.signatures)} signatures; the log keeps one, so send one"
        )
    found = connection.execute(_KEYS, {"silo": silo, "purpose": purpose})
    public = {row.keyid: bytes(row.public) for row in found}
    if envelope.signatures[0].keyid in public:
        return dsse.verify(envelope, public[envelope.signatures[0].keyid], statements.PAYLOAD_TYPE)
    raise Refused(
        Reason.BAD_SIGNATURE, f"not signed by a {purpose} key that silo {silo} registered at enrolment"
    )


def lease_facts(connection: Connection, lease: str) -> LeaseFacts | None:
    row = connection.execute(_LEASE, {"lease": lease}).first()
    return LeaseFacts(row.silo, row.job, row.kind, row.version, row.nonce, row.status) if row else None


def job_row(connection: Connection, job: str) -> Any:
    """Raises Refused(NOT_FOUND)."""
    row = connection.execute(_JOB, {"job": job}).first()
    if row is None:
        raise Refused(Reason.NOT_FOUND, f"there is no job {job}; list the jobs to see their ids")
    return row


def job_facts(connection: Connection, job: str, silo: str, base: int) -> JobFacts | None:
    """What admission needs to know of a job; None when it does not exist."""
    row = connection.execute(_JOB, {"job": job}).first()
    if row is None:
        return None
    version = version_row(connection, job, base)
    terms, manifest = parse_terms(row.terms), manifest_of(row.manifest)
    packing = terms.file.upload(base, silo)
    return JobFacts(
        id=job,
        status=row.status,
        terms=terms,
        terms_digest=row.terms_digest,
        head=row.head,
        decision=decision_of(connection, job, silo),
        base_sha256=view_of(connection, row, version, silo).digest if version else "",
        least_bytes=0 if packing else manifest.file_bytes,
        most_bytes=most_bytes(manifest, packing) if packing else manifest.file_bytes,
    )


def job_terms(connection: Connection, job: str) -> JobTerms:
    return parse_terms(job_row(connection, job).terms)


def job_manifest(connection: Connection, job: str) -> Manifest:
    return manifest_of(job_row(connection, job).manifest)


@lru_cache(maxsize=8)
def manifest_of(encoded: bytes) -> Manifest:
    """Parsed: thousands of tensors take a tenth of a second, and every decision about a job asks."""
    return parse_manifest(encoded)


_file_bytes: dict[str, int] = {}  # by the manifest's digest; a number for each job there was is little


def file_bytes(digest: str, encoded: bytes) -> int:
    """Of a file with every tensor of the manifest whole. Remembered: who lists all jobs asks for all of them."""
    if digest not in _file_bytes:
        _file_bytes[digest] = manifest_of(encoded).file_bytes
    return _file_bytes[digest]


def version_row(connection: Connection, job: str, number: int) -> Any:
    """The row of a version, or None."""
    return connection.execute(_VERSION, {"job": job, "number": number}).first()


@dataclass(frozen=True)
class View:
    """What a silo gets of a version."""

    version: int
    packing: Packing | None  # None: the parameters as they are stored
    digest: str  # what leases and statements call the version by
    bytes: int
    entries: tuple[int, ...]  # that name it: model.published, and model.encoded if it is packed


def view_of(connection: Connection, job: Any, version: Any, silo: str) -> View:
    """What `silo` gets of a version, by the rows of the version and of its job."""
    terms = parse_terms(job.terms)
    key = {"job": job.id, "number": version.number, "tier": terms.file.tier(silo)}
    packed = connection.execute(_VIEW, key).first()
    if packed is None:
        size = file_bytes(terms.manifest_sha256, job.manifest)
        return View(version.number, None, version.parameters, size, (version.entry,))
    packing = terms.file.download(version.number, silo)
    return View(version.number, packing, packed.digest, packed.bytes, (version.entry, packed.entry))


def kept(connection: Connection, digest: str) -> bool:
    """Whether the log names this content without saying that it was pruned."""
    return connection.execute(_KEPT, {"digest": digest}).first() is not None


def decision_of(connection: Connection, job: str, silo: str) -> str:
    """approved | denied | withdrawn, or "" while the silo has not decided."""
    return connection.execute(_DECISION, {"job": job, "silo": silo}).scalar() or ""


def participants(connection: Connection, job: str) -> list[str]:
    """Silos that approved the job and are not revoked, sorted."""
    return list(connection.execute(_PARTICIPANTS, {"job": job}).scalars())


def teaching(connection: Connection, job: str) -> list[str]:
    """Participants whose models may teach, sorted."""
    return list(connection.execute(_TEACHING, {"job": job}).scalars())


def teachers(connection: Connection, job: str) -> list[Any]:
    """Of silos whose models may teach, the newest update that was merged: rows, by silo."""
    newest = (
        connection.execute(_NEWEST_MERGED, {"job": job, "silo": silo}).first()
        for silo in teaching(connection, job)
    )
    return [row for row in newest if row is not None]


def task_seconds(connection: Connection, job: str) -> float:
    """From lease to update, of the fastest silo's newest tasks, in the median; 0: nothing was merged yet."""
    worked = defaultdict(list)
    for silo, seconds in connection.execute(_WORKED, {"job": job}):
        worked[silo].append(seconds)
    return min(map(median, worked.values()), default=0.0)


def count(connection: Connection, table: Any, *conditions: Any) -> int:
    return connection.execute(select(func.count()).select_from(table).where(*conditions)).scalar_one()
