"""Whether reviving pays. A reviver that does not, says so and rests; the job goes on as if there were none.

A reviver as slow as a fast silo's task is late with all it says, and where silos hold nearly the same classes there is
nothing to revive. Where exactly the bounds lie best is not measured yet.
"""

from collections.abc import Sequence
from dataclasses import dataclass

SLOWEST = 0.5  # of the task of the fastest silo
EVENEST = 0.4  # skew below which every silo holds a bit of everything
RECENT = 16  # measured effects that are judged: of fewer the mean is chance
PAUSE = 100  # versions until it tries again, where it had no effect


@dataclass(frozen=True)
class Effect:
    """How far the head agrees with its teachers on held-back inputs, before and after: exp(-KL(teacher ‖ head)), of the
    mean; 1 where both say the same. And the share of the job's public records on which it is right, where it has some.
    """

    before: float
    after: float
    accuracy: tuple[float, float] | None = None

    @property
    def gained(self) -> float:
        before, after = self.accuracy or (self.before, self.after)
        return after - before


@dataclass(frozen=True)
class Facts:
    seconds: float  # of a revival, in the median
    task_seconds: float  # of the fastest silo's task, in the median
    skew: float  # `teachers.skew`
    effects: Sequence[Effect]  # of late, oldest first


def why_not(facts: Facts) -> str:
    """Empty: it pays, as far as one can tell."""
    if facts.seconds > SLOWEST * facts.task_seconds:
        return "slow"
    if facts.skew < EVENEST:
        return "even"
    recent = facts.effects[-RECENT:]
    if len(recent) == RECENT and sum(one.gained for one in recent) <= 0:
        return "no_effect"
    return ""
