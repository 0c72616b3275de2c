"""When a buffer of updates becomes an aggregation, and which updates go into it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from anabranch.terms import Aggregation, seconds

MOST = 100  # updates in one version: its log entry names each, and its length is limited

ClosedBy = Literal["full", "max_wait", "interval", "first", "latest"]


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
    closed_by: ClosedBy
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

    fedbuff, ca2fl: the first `buffer` updates, whatever their base; `max_wait` after the oldest closes a smaller buffer.
    fedasync, afl-dw: the same, one by one.
    fedfix: what has arrived when a window ends. The first begins when the head was published, each is `interval` long;
    one in which nothing arrived makes no version.
    fedavg: one update of every participant, trained from the head; `max_wait` after the head was published closes
    without the missing. An update that missed its round is superseded: its silo trains again from the head.
    fedcompass: `server.core.compass.close`, which knows of leases.
    """
    if rule.strategy == "fedavg":
        return _close_round(rule, head, head_since, waiting, participants, now)
    if not waiting:
        return StillOpen(None)
    if rule.interval is not None:
        return _close_window(seconds(rule.interval), head_since, waiting, now)
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


def _close_window(
    interval: float, head_since: float, waiting: Sequence[Waiting], now: float
) -> Closing | StillOpen:
    """Nobody is absent: the others are at work, and nobody waits for them."""
    empty = math.floor(max(0.0, waiting[0].received_at - head_since) / interval)
    end = head_since + (empty + 1) * interval
    return _closing(waiting[:MOST], "interval", (), ()) if now >= end else StillOpen(end)


def _closing(
    inputs: Sequence[Waiting],
    closed_by: ClosedBy,
    participants: Sequence[str],
    superseded: tuple[str, ...],
) -> Closing:
    present = {update.silo for update in inputs}
    absent = tuple(silo for silo in participants if silo not in present) if closed_by == "max_wait" else ()
    return Closing(tuple(update.update for update in inputs), closed_by, absent, superseded)
