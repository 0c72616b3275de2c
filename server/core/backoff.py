"""How long a silo whose leases fail again and again waits for its next one.

Without it a broken silo asks at once, fails at once, and writes two entries a second into the log for ever.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from anabranch.errors import Reason

TOLERATED = 2  # failed leases in a row that cost nothing: a hiccup is not a broken silo
FIRST, LONGEST = 5.0, 600.0  # seconds after the next one; doubled with each further one, at most the second
RECENT = 12  # ended leases that are looked at: with so many failures in a row the wait is the longest
# How a lease may end without its update and without its silo being to blame.
BLAMELESS = frozenset({"withdrawn", Reason.JOB_ENDED, Reason.JOB_NOT_APPROVED})


@dataclass(frozen=True)
class Ended:
    """A lease that is not open any more."""

    status: str  # fulfilled | released
    reason: str
    at: float | None  # unix seconds, of a released one


@dataclass(frozen=True)
class Backoff:
    failures: int  # in a row
    until: float  # unix seconds; 0.0: no waiting


def backoff(newest_first: Iterable[Ended], forgiven_at: float, now: float) -> Backoff:
    """From a silo's leases of one job. Any success ends the row, and so does resuming the job (`forgiven_at`).

    A failure that lies in the future (the clock was set back) is not waited for.
    """
    failures, newest = 0, 0.0
    for lease in newest_first:
        if lease.status == "released" and lease.reason in BLAMELESS:
            continue
        if lease.status != "released" or lease.at is None or lease.at <= forgiven_at:
            break
        failures, newest = failures + 1, newest or lease.at
    wait = pause_after(failures)
    return Backoff(failures, newest + wait if wait and newest <= now else 0.0)


def pause_after(failures: int) -> float:
    """Seconds between the end of the last failed lease and the next one."""
    if failures <= TOLERATED:
        return 0.0
    return float(min(FIRST * 2 ** min(failures - TOLERATED - 1, RECENT), LONGEST))
