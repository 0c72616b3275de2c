"""How jobs that run at once share the silos: FedAST (Askin et al., UAI 2024, arXiv 2406.00302); ADR 9 has what differs.

A job's share is the number of leases it should have of all that are open. It is proportional to its weight: stated by
the operator, or a score, which is high where the updates of one job disagree and more of them have to be averaged.
A silo that is free takes a lease of the job furthest below its share, so far as one lease makes a difference.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

Rule = Literal["turns", "fedast-static", "fedast"]
Weight = Annotated[float, Field(gt=0, le=1e6)]  # what an operator may state

WINDOW = 8  # updates that a score is taken from, the newest that were merged
RECENT = 32  # leases of one silo that say which job is next there
SLACK = 1  # leases; a job that is no further behind than this is level with the one furthest behind
NOISIEST = 100.0  # updates that cancel have no mean, and would make a score without bound
NEWEST = 1 / 8  # weight of the newest version in a job's score

Sketches = NDArray[np.float64]  # one row for each update


@dataclass(frozen=True)
class Allocation:
    """What the operator chose. `shares`: with fedast-static, weights by the name of a job; others weigh 1."""

    rule: Rule = "turns"
    shares: Mapping[str, float] = field(default_factory=dict)

    def weight(self, name: str, score: float | None) -> float | None:
        """None: not known yet."""
        return score if self.rule == "fedast" else self.shares.get(name, 1.0)


TURNS = Allocation()


@dataclass(frozen=True)
class Standing:
    """A job that goes on."""

    job: str
    weight: float | None  # None counts as the mean of the others
    active: int  # silos that train for it now, in time
    silos: int  # that approve it: it has no use for more leases


def agree(rule: Rule, stated: Mapping[str, float]) -> None:
    """Raises ValueError for shares that nobody would read."""
    if stated and rule != "fedast-static":
        raise ValueError(
            f'shares are for allocation = "fedast-static"; {rule} does not read them, leave them out'
        )


def score(newest: Sketches) -> float | None:
    """sqrt(sum of |update - mean|^2 / (n * |mean|^2)) of the newest WINDOW updates; None while there are fewer.

    Scale-free: neither the size of a model nor its learning rates enter.
    """
    if len(newest) < WINDOW:
        return None
    mean = newest.mean(axis=0)
    with np.errstate(over="ignore"):  # then there is no score
        noise = float(np.square(newest - mean).sum()) / len(newest)
        signal = float(np.square(mean).sum())
    if not math.isfinite(noise + signal):
        return None
    if not signal:
        return NOISIEST if noise else 0.0
    return min(math.sqrt(noise / signal), NOISIEST)


def smoothed(before: float | None, newest: float | None) -> float | None:
    """A job's score, after a version whose updates say `newest`."""
    if before is None or newest is None:
        return before if newest is None else newest
    return before + (newest - before) * NEWEST


def shares(standings: Sequence[Standing], leases: int) -> dict[str, int]:
    """How many of `leases` each job should have; of equals the first comes first.

    Every job has one, even where there are fewer leases than jobs. The others go one by one to the job furthest
    below its part by weight, among those with silos left.
    """
    known = [one.weight for one in standings if one.weight is not None]
    usual = math.fsum(known) / len(known) if known else 1.0
    weights = {one.job: usual if one.weight is None else one.weight for one in standings}
    whole, total = math.fsum(weights.values()), max(leases, len(standings))
    part = {job: weight / whole if whole else 1 / len(standings) for job, weight in weights.items()}
    found = dict.fromkeys(weights, 1)
    for _ in range(total - len(standings)):
        room = [one.job for one in standings if found[one.job] < one.silos] or list(found)
        found[max(room, key=lambda job: total * part[job] - found[job])] += 1
    return found


def next_job(share: Mapping[str, int], active: Mapping[str, int], taken: Mapping[str, Sequence[int]]) -> str:
    """The job a free silo trains for next. `taken`: job it may train for → log entries of its newest RECENT leases.

    Among jobs that are level the silo's own leases follow the shares. If every silo simply took the job furthest
    behind, it would find its own one there whenever it comes back, and each job would learn from silos of its own.
    For the same reason no silo goes without one of its jobs for more than RECENT leases.
    """
    entries = sorted(((entry, job) for job, mine in taken.items() for entry in mine), reverse=True)[:RECENT]
    own = Counter(job for _, job in entries)
    behind = {job: share[job] - active.get(job, 0) for job in taken}
    level = [job for job in taken if behind[job] >= max(behind.values()) - SLACK]
    missed = [job for job in taken if not own[job]] if len(entries) == RECENT else []

    def served(job: str) -> tuple[float, int]:
        return (own[job] + 1) / share[job], max(taken[job], default=-1)

    return min(missed or level, key=served)
