"""Whether one update may enter: the whole rule, as a pure function.

Identity is not checked here; the transport has established it and `silo` is who the TLS peer is.
"""

from dataclasses import dataclass

from anabranch.errors import Reason, Refused
from anabranch.terms import JobFile, JobTerms
from anabranch.tlog.claim import PrivacyClaim
from anabranch.wire import canonical
from anabranch.wire.statements import UpdateStatement


@dataclass(frozen=True)
class LeaseFacts:
    silo: str
    job: str
    kind: str
    version: int
    nonce: str
    status: str  # open | fulfilled | released


@dataclass(frozen=True)
class JobFacts:
    id: str
    status: str
    terms: JobTerms
    terms_digest: str
    head: int
    decision: str  # of this silo
    base_sha256: str  # parameters of the leased version
    least_bytes: int  # of a delta
    most_bytes: int


def admit(
    federation: str, silo: str, statement: UpdateStatement, lease: LeaseFacts | None, job: JobFacts | None
) -> int:
    """Return the update's staleness in versions, head − leased version. Raises Refused with the first reason found.

    1. It speaks of this federation and of a lease this silo holds for this job.
    2. The lease has not had its update.
    3. The base is the version that was leased, byte for byte.
    4. The silo approved exactly these terms, and still does.
    5. The job can still use it: not ended, not older than `max_staleness`.
    6. Its size is what the manifest says; record counts come only if the terms ask for them.
    7. It claims noise exactly if the terms ask for privacy, and such as they ask for.
    """
    lease, job = _held(federation, silo, statement, lease, job)  # 1, 2
    _follows_the_lease(silo, statement, lease, job)  # 3, 4
    staleness = _staleness(lease, job)  # 5
    _fits(statement, job)  # 6
    _claims(statement.privacy, job.terms.file)  # 7
    return staleness


def _held(
    federation: str, silo: str, statement: UpdateStatement, lease: LeaseFacts | None, job: JobFacts | None
) -> tuple[LeaseFacts, JobFacts]:
    """The lease that waits for this update, and its job."""
    if statement.federation != federation:
        raise Refused(
            Reason.BAD_SIGNATURE,
            f"update was signed for federation {statement.federation}, this is {federation}",
        )
    if lease is None or lease.silo != silo or job is None or lease.job != statement.job:
        raise Refused(
            Reason.BAD_LEASE, f"lease {statement.lease} is not a lease of silo {silo} for job {statement.job}"
        )
    if lease.kind != "train" or lease.nonce != statement.nonce:
        raise Refused(Reason.BAD_LEASE, f"lease {statement.lease} has another nonce or is not for training")
    if lease.status == "fulfilled":
        raise Refused(Reason.REPLAYED, f"lease {statement.lease} already has its update")
    if lease.status == "released":
        raise Refused(Reason.BAD_LEASE, f"lease {statement.lease} was released; ask for the next task")
    return lease, job


def _follows_the_lease(silo: str, statement: UpdateStatement, lease: LeaseFacts, job: JobFacts) -> None:
    """Made from the version that was leased, under the terms that the silo approves."""
    if (statement.base_version, statement.base_sha256) != (lease.version, job.base_sha256):
        raise Refused(
            Reason.UNKNOWN_BASE,
            f"lease {statement.lease} is for version {lease.version} ({job.base_sha256[:12]}…), "
            f"the update was trained from {statement.base_version} ({statement.base_sha256[:12]}…)",
        )
    if statement.terms_sha256 != job.terms_digest or statement.manifest_sha256 != job.terms.manifest_sha256:
        raise Refused(
            Reason.CODE_DIGEST_MISMATCH, f"the update was made under other terms than job {job.id} has"
        )
    if job.decision != "approved":
        raise Refused(Reason.JOB_NOT_APPROVED, f"silo {silo} has not approved job {job.id}, or has withdrawn")


def _staleness(lease: LeaseFacts, job: JobFacts) -> int:
    """How many versions late, if the job can still use it."""
    if job.status in ("completed", "aborted") or job.head >= job.terms.file.stop.versions:
        raise Refused(Reason.JOB_ENDED, f"job {job.id} has ended at version {job.head}")
    staleness = job.head - lease.version
    if staleness > job.terms.file.aggregation.max_staleness:
        raise Refused(
            Reason.TOO_STALE,
            f"the update is {staleness} versions old, the job takes at most {job.terms.file.aggregation.max_staleness}",
        )
    return staleness


def _fits(statement: UpdateStatement, job: JobFacts) -> None:
    """What it announces is what the job takes."""
    if not job.least_bytes <= statement.bytes <= job.most_bytes:
        exact = job.least_bytes == job.most_bytes
        raise Refused(
            Reason.SIZE_LIMIT,
            f"a delta of this job has {'' if exact else 'at most '}{job.most_bytes} bytes, {statement.bytes} were announced",
        )
    if (statement.num_examples is not None) != (job.terms.file.silos.weighting == "examples"):
        raise Refused(
            Reason.MALFORMED,
            f"the job weights {job.terms.file.silos.weighting}ly; record counts do not fit that",
        )
    if statement.num_examples == 0:
        raise Refused(
            Reason.MALFORMED, "an update of 0 examples has no weight; send it only after training on records"
        )


def _claims(claim: PrivacyClaim | None, file: JobFile) -> None:
    """Whether the claim is true only the silo knows; this is whether it can be."""
    wanted = file.privacy
    if (wanted is None) != (claim is None):
        raise Refused(
            Reason.MALFORMED, "a claim of privacy comes with updates of jobs with [privacy], and always"
        )
    if wanted is None or claim is None:
        return
    told = {
        "unit": claim.unit == wanted.unit,
        "delta": canonical.from_hexfloat(claim.delta) == wanted.delta,
        "max_grad_norm": canonical.from_hexfloat(claim.max_grad_norm) == wanted.max_grad_norm,
        "steps": claim.steps <= file.training.local_steps,
        "cycles": claim.cycles <= wanted.cycles_max,
        "sample_rate": 0 < canonical.from_hexfloat(claim.sample_rate) <= 1,
        "noise_multiplier": canonical.from_hexfloat(claim.noise_multiplier) > 0,
    }
    wrong = [name for name, fits in told.items() if not fits]
    if wrong:
        raise Refused(Reason.MALFORMED, f"the claim of privacy does not fit the terms: {', '.join(wrong)}")


def check_norm(norm: float, limit: float | None) -> None:
    """Raises Refused(NORM_EXCEEDED) when the L2 norm over trainable tensors is above the job's limit."""
    if limit is not None and norm > limit:
        raise Refused(Reason.NORM_EXCEEDED, f"the update's norm is {norm:.6g}, the job allows {limit:.6g}")
