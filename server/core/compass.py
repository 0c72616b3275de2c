"""fedcompass: how many steps a silo makes next, so that silos of different speed arrive together; when they are merged.

    speed    seconds of a step: elapsed / steps of a silo's first update; then (1 - NEWEST) * speed + NEWEST * (the same)
    join     the arrival group that leaves the most steps, floor((expected - now) / speed) of them, within the terms' bounds
    found    otherwise: as many steps as let the silo meet the fastest of a group when that one is done once more,
             floor((latest + most * fastest - now) / speed); as many as the terms allow where there is nobody to meet
    expected now + steps * speed; latest now + steps * speed * latest_factor: both of the founder, for all who join

(Li et al., ICLR 2024, arXiv 2309.14675, with the scheduler of APPFL.) A silo whose speed is not known makes as many steps as
the terms allow, without a group, and what it sends is merged alone. No group is waited for longer than `max_wait`.

A group is the leases that name it. All of this follows from the rows of leases and updates, so a restart changes nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from anabranch.terms import Aggregation, JobTerms, seconds
from server.core.buffer import MOST, Closing, StillOpen

NEWEST = 0.9  # how much of a silo's speed its newest update makes up
SLACK = 1e-3  # of a step: times are rounded, and half a microsecond must not cost a whole step
QUICKEST = 1e-9  # seconds of a step, where a clock was set back


@dataclass(frozen=True)
class Member:
    """A training lease, as far as it was scheduled. Times are unix seconds."""

    silo: str
    group: str | None  # None: the speed of its silo was not known
    expected: float
    latest: float
    step_seconds: float  # the silo's speed when it was issued


@dataclass(frozen=True)
class Arrived:
    """An admitted update that is not merged yet. Sequences of them are in log order."""

    update: str
    received_at: float
    member: Member

    @property
    def late(self) -> bool:
        """Its group did not wait for it: it goes with the next one, and its silo works on."""
        return self.member.group is not None and self.received_at > self.member.latest


@dataclass(frozen=True)
class Booking:
    """What a lease is to be."""

    steps: int
    group: str | None  # None: the lease founds one
    expected: float
    latest: float
    step_seconds: float


@dataclass(frozen=True)
class _Group:
    id: str | None
    expected: float
    latest: float
    fastest: float  # seconds of a step


def speed(known: float | None, issued_at: float, arrived_at: float, steps: int) -> float:
    """Seconds of a step, after an update of `steps` steps. `known`: what it was taken for before."""
    newest = max((arrived_at - issued_at) / steps, QUICKEST)
    return newest if known is None else (1.0 - NEWEST) * known + NEWEST * newest


def waits(silo: str, arrived: Sequence[Arrived]) -> bool:
    """Whether a silo has to wait until what it sent is merged."""
    return any(one.member.silo == silo and not one.late for one in arrived)


def book(
    terms: JobTerms,
    silo: str,
    speeds: Mapping[str, float],
    at_work: Sequence[Member],
    arrived: Sequence[Arrived],
    now: float,
) -> Booking:
    """The next lease of `silo`. `speeds`: its own, and of those that were merged with it and have no lease yet.

    They are placed fastest first, whoever asks first: a slow silo finds the group that a faster one is about to found.
    """
    groups = _groups(at_work, [one.member for one in arrived], now)
    for name in sorted(speeds, key=lambda name: (speeds[name], name)):
        steps, group = _place(terms, speeds[name], groups, now)
        if name == silo:
            break
        fastest = min(group.fastest, speeds[name])
        groups = [one for one in groups if one is not group]
        groups.append(_Group(group.id, group.expected, group.latest, fastest))
    return Booking(steps, group.id, group.expected, group.latest, speeds[silo])


def _groups(at_work: Sequence[Member], arrived: Sequence[Member], now: float) -> list[_Group]:
    """Those somebody still works for in time; the one that closes first comes first."""
    alive = {one.group for one in at_work if one.latest > now} - {None}
    found: dict[str | None, _Group] = {}
    for one in (*at_work, *arrived):
        if one.group in alive:
            known = found.get(one.group)
            fastest = min(one.step_seconds, known.fastest) if known else one.step_seconds
            found[one.group] = _Group(one.group, one.expected, one.latest, fastest)
    return sorted(found.values(), key=lambda group: (group.latest, group.id))


def _place(terms: JobTerms, speed: float, groups: Sequence[_Group], now: float) -> tuple[int, _Group]:
    """Steps, and the group: one of `groups`, or a new one."""
    rule, most = terms.file.aggregation, terms.file.training.local_steps
    least = rule.local_steps_min
    assert least is not None
    assert rule.latest_factor is not None

    def until(moment: float) -> int:
        return math.floor(min((moment - now) / speed + SLACK, most + 1.0))

    joined = [(until(group.expected), group) for group in groups]
    fitting = [(steps, group) for steps, group in joined if least <= steps <= most]
    if fitting:
        return max(fitting, key=lambda one: one[0])
    met = [until(group.latest + most * group.fastest) for group in groups]
    steps = (
        max([least, *(steps for steps in met if steps <= most)])
        if min(met, default=most + 1) <= most
        else most
    )
    latest = now + min(steps * speed * rule.latest_factor, seconds(rule.max_wait))
    return steps, _Group(None, min(now + steps * speed, latest), latest, speed)


def close(
    rule: Aggregation, waiting: Sequence[Arrived], at_work: Sequence[Member], now: float
) -> Closing | StillOpen:
    """As `server.core.buffer.close`. `at_work`: open training leases.

    first     a silo's first update, alone
    full      everybody of a group has arrived
    latest    the latest time of a group in which somebody has arrived; the others are absent
    max_wait  nothing of the above came to take late updates along

    Late updates go with the next group that closes.
    """
    for one in waiting:
        if one.member.group is None:
            return Closing((one.update,), "first", (), ())
    looks = []
    there = {one.member.group: one.member for one in waiting if not one.late}
    for group, member in sorted(there.items(), key=lambda item: (item[1].latest, item[0])):
        absent = tuple(sorted(one.silo for one in at_work if one.group == group))
        if not absent or now >= member.latest:
            taken = [one.update for one in waiting if one.late or one.member.group == group]
            return Closing(tuple(taken[:MOST]), "latest" if absent else "full", absent, ())
        looks.append(member.latest)
    late = [one for one in waiting if one.late]
    if late:
        looks.append(late[0].received_at + seconds(rule.max_wait))
        if now >= looks[-1]:
            return Closing(tuple(one.update for one in late[:MOST]), "max_wait", (), ())
    return StillOpen(min(looks, default=None))
