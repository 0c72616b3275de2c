"""When the evaluations of a version are in, what they say of it, and whether a job has learnt enough."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Literal

from anabranch.terms import Evaluation, JobTerms, seconds

Awaited = Literal["nobody", "those at work", "everybody"]


def awaited(terms: JobTerms, head: int, published_at: float, resumed_at: float, now: float) -> Awaited:
    """Whose evaluation of the newest due version, published at `published_at`, is waited for. All times unix seconds.

    Every participant has `max_wait`. Before the last version a silo that took no lease for as long is not waited for:
    versions may come faster than that, and then none would ever be judged.
    """
    if not terms.file.evaluated:
        return "nobody"
    wait = seconds(terms.file.aggregation.max_wait)
    if now >= max(published_at, resumed_at) + wait:
        return "nobody"
    if head < terms.file.stop.versions and now >= resumed_at + wait:
        return "those at work"
    return "everybody"


@dataclass(frozen=True)
class Judged:
    value: float
    better: bool  # than any version before
    unimproved: int  # evaluated versions since the best


def judge(
    rule: Evaluation, best: float | None, unimproved: int, metrics: Sequence[Mapping[str, float]]
) -> Judged | None:
    """One version by what silos measured; None: nobody measured the metric. The plain mean, which needs no counts."""
    values = [one[rule.metric] for one in metrics if rule.metric in one]
    if not values:
        return None
    value = mean(values)  # exact, so that the largest floats do not overflow
    better = best is None or (value > best if rule.mode == "max" else value < best)
    return Judged(value, better, 0 if better else unimproved + 1)
