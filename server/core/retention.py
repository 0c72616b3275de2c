"""What of a job nobody needs any more, as a pure function of its facts and the time.

Two promises of the terms, `[retention]`:

updates    What a replay needs, deltas and the snapshots it compares with, is kept until this long after the job has ended
           and one of its models was last handed out. Until then every version can be recomputed from version 0, and a
           strategy finds the deltas it merged before (ca2fl).
snapshots  A version that is not the head any more is kept this long after the next one was published. It goes while the
           job runs on, unless somebody still needs its bytes.

The head and the best version stay for good, with their optimizer state and average.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from anabranch.terms import Retention, seconds


@dataclass(frozen=True)
class Stored:
    """A version whose snapshot is kept."""

    number: int
    superseded_at: float | None  # None: it is the head
    handed_out_at: float | None


@dataclass(frozen=True)
class Facts:
    ended_at: float | None
    handed_out_at: float | None  # newest, of any version
    stored: tuple[Stored, ...]
    head: int
    best: int | None
    needed: frozenset[int]  # bases of open leases and of updates that wait, the version to be evaluated


@dataclass(frozen=True)
class Overdue:
    """`deltas`: of all updates of the job."""

    rule: Literal["updates", "snapshots"]
    versions: tuple[int, ...]
    deltas: bool


def overdue(rule: Retention, job: Facts, now: float) -> Overdue | None:
    """What to prune now; None: nothing."""
    stay = {job.head, job.best}
    window = seconds(rule.updates)
    if job.ended_at is not None and now >= max(job.ended_at, job.handed_out_at or 0.0) + window:
        return Overdue("updates", tuple(one.number for one in job.stored if one.number not in stay), True)
    stay |= {0} | job.needed  # replay starts from version 0
    idle = tuple(
        one.number
        for one in job.stored
        if one.number not in stay
        and one.superseded_at is not None
        and now >= one.superseded_at + seconds(rule.snapshots)
        and (one.handed_out_at is None or now >= one.handed_out_at + window)
    )
    return Overdue("snapshots", idle, False) if idle else None


def spans(versions: Iterable[int]) -> list[tuple[int, int]]:
    """Ascending numbers as (first, last) of each unbroken run."""
    found: list[tuple[int, int]] = []
    for number in versions:
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found
