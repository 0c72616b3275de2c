"""Errors, one root per side of blame.

Every message says what was wrong, where, and what to do next. `Reason` is the closed list of codes that travel on
the wire and into the audit log; a refusal without a code from this list is a bug.
"""

from enum import StrEnum


class Reason(StrEnum):
    """Why somebody else's data or request was refused. Codes are additive; a code's meaning never changes."""

    MALFORMED = "malformed"  # does not parse, or is not in canonical form
    SIZE_LIMIT = "size_limit"  # larger than a stated bound, checked before memory is taken
    DIGEST_MISMATCH = "digest_mismatch"  # bytes differ from the digest that names them
    BAD_SIGNATURE = "bad_signature"  # signed by another key, or not at all
    BAD_LEASE = "bad_lease"  # no such lease, or it belongs to another silo or job
    REPLAYED = "replayed"  # the lease already has its update
    UNKNOWN_BASE = "unknown_base"  # base version differs from the one leased
    TOO_STALE = "too_stale"  # older than the job's max_staleness
    SHAPE_MISMATCH = "shape_mismatch"
    DTYPE_MISMATCH = "dtype_mismatch"
    NAME_MISMATCH = "name_mismatch"  # tensors missing or not asked for
    NONFINITE = "nonfinite"  # NaN or infinity
    NORM_EXCEEDED = "norm_exceeded"  # larger than the job's max_update_norm
    JOB_ENDED = "job_ended"
    JOB_NOT_APPROVED = "job_not_approved"  # this silo has not approved these terms
    JOB_NOT_RUNNING = "job_not_running"
    CODE_DIGEST_MISMATCH = "code_digest_mismatch"  # archive differs from the approved one
    POLICY = "policy"  # the silo's policy forbids it
    DP_BUDGET = "dp_budget"  # what the data may reveal is spent, by the job's terms or by the silo's policy
    QUOTA = "quota"  # too much at once from one identity
    REVOKED_IDENTITY = "revoked_identity"
    DUPLICATE_IDENTITY = "duplicate_identity"  # another agent talks under the same identity at the same time
    BAD_CERTIFICATE = "bad_certificate"  # outside the X.509 profile, expired, or not on the allow-list
    BAD_TOKEN = "bad_token"  # noqa: S105 - a code: join token unknown, used, expired or for another silo
    WRONG_ROLE = "wrong_role"  # this identity may not call this method
    NOT_FOUND = "not_found"
    TASK_FAILED = "task_failed"  # the job's code raised at the silo
    TASK_HUNG = "task_hung"  # the job's code made no progress
    TASK_GARBAGE = "task_garbage"  # the job's code returned something that is not an update
    TASK_OUT_OF_MEMORY = (
        "task_out_of_memory"  # the job's code asked for more memory than its GPU or machine has
    )


OUT_OF_MEMORY_REMEDY = (
    "it needs more memory than this silo has: take a smaller batch_size or shorter inputs, accumulate gradients, "
    "checkpoint activations, or train fewer parameters"
)


MESSAGE = 8192  # characters of an error


def plain(text: str, most: int) -> str:
    """What somebody else wrote, fit for a message of ours: at most `most` characters, none that a terminal obeys."""
    cut = text if len(text) <= most else text[: most - 1] + "…"
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in cut)


class AnabranchError(Exception):
    """Root of the five sides of blame; never raised itself. A message may quote a stranger, and still fits a log."""

    def __init__(self, message: str = "") -> None:
        super().__init__("\n".join(plain(line, MESSAGE) for line in message[:MESSAGE].split("\n")))


class Refused(AnabranchError):
    """Their data or request is wrong. Sending it again unchanged cannot succeed."""

    def __init__(self, code: Reason, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type["Refused"], tuple[Reason, str]]:
        return Refused, (self.code, str(self))  # it may come from another process


class Conflict(AnabranchError):
    """Somebody else was faster; look again and retry."""


class Unavailable(AnabranchError):
    """Not now: draining, restarting, disk full, peer unreachable. Retry later."""


class Corrupt(AnabranchError):
    """Our own storage is not what we wrote. Stop; do not serve."""


class Misuse(AnabranchError):
    """Our bug: a caller broke a rule that code, not data, must keep."""


def wording(error: Exception) -> str:
    """What is wrong with a file or a connection, for use in a sentence: without the numbers of the system or of a codec."""
    if isinstance(error, UnicodeError):
        return "not UTF-8 text"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
