"""When a buffer of updates becomes an aggregation, and which updates go into it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from anabranch.terms import Aggregation, seconds


@dataclass(frozen=True)
class Waiting:
    """An admitted update that is not merged yet. Sequences of them are in log order."""

    update: str
    silo: str
    base: int
    received_at: float


@dataclass(frozen=True)
class Closing:
    """The buffer closes now. Everything left out is loud: `absent` is logged, `superseded` updates are retired."""

    inputs: tuple[str, ...]
    closed_by: Literal["full", "max_wait"]
    absent: tuple[str, ...]
    superseded: tuple[str, ...]


@dataclass(frozen=True)
class StillOpen:
    """Look again at `at` (unix seconds), or earlier if an update arrives; None: only an update can change it."""

    at: float | None


def close(
    rule: Aggregation,
    head: int,
    head_since: float,
    waiting: Sequence[Waiting],
    participants: Sequence[str],
    now: float,
) -> Closing | StillOpen:
    """Decide for one job. `participants` are the silos the job may expect an update from.

    fedbuff: the first `buffer` updates, whatever their base; `max_wait` after the oldest closes a smaller buffer.
    fedavg: one update of every participant, trained from the head; `max_wait` after the head was published closes
    without the missing. An update that missed its round is superseded: its silo trains again from the head.
    """
    if rule.strategy == "fedavg":
        return _close_round(rule, head, head_since, waiting, participants, now)
    if not waiting:
        return StillOpen(None)
    if len(waiting) >= rule.buffer:
        return _closing(waiting[: rule.buffer], "full", participants, ())
    deadline = waiting[0].received_at + seconds(rule.max_wait)
    if now >= deadline:
        return _closing(waiting, "max_wait", participants, ())
    return StillOpen(deadline)


def _close_round(
    rule: Aggregation,
    head: int,
    head_since: float,
    waiting: Sequence[Waiting],
    participants: Sequence[str],
    now: float,
) -> Closing | StillOpen:
    current = [update for update in waiting if update.base == head]
    late = tuple(update.update for update in waiting if update.base != head)
    if current and {update.silo for update in current} >= set(participants):
        return _closing(current, "full", participants, late)
    deadline = head_since + seconds(rule.max_wait)
    if current and now >= deadline:
        return _closing(current, "max_wait", participants, late)
    return StillOpen(deadline if current else None)


def _closing(
    inputs: Sequence[Waiting],
    closed_by: Literal["full", "max_wait"],
    participants: Sequence[str],
    superseded: tuple[str, ...],
) -> Closing:
    present = {update.silo for update in inputs}
    absent = tuple(silo for silo in participants if silo not in present) if closed_by == "max_wait" else ()
    return Closing(tuple(update.update for update in inputs), closed_by, absent, superseded)
