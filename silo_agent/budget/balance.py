"""How the books stand: what each data set has revealed, in what jobs, and how many cycles are left."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from anabranch.privacy import Unit
from silo_agent.budget.accounting import Event, spent
from silo_agent.budget.ledger import Charge, Ledger
from silo_agent.budget.spending import cycles_left
from silo_agent.policy import Ceiling, Policy


@dataclass(frozen=True)
class JobBalance:
    job: str
    cycles: int
    cycles_max: int
    cycles_left: int  # as things stand: another job on the same data takes from the same ceiling
    spent: float  # ε
    epsilon: float  # the terms promise
    delta: float
    newest: Event


@dataclass(frozen=True)
class Balance:
    """Of one data binding."""

    binding: str
    ceiling: Ceiling | None  # None: the policy names none, or binds no such data any more
    unit: Unit | None  # None: nothing was spent
    delta: float | None  # at which `spent` is: the ceiling's, else the largest of the jobs'
    spent: float  # ε by Rényi accounting, which decides
    tighter: float  # ε of the same events by their privacy loss distribution
    jobs: tuple[JobBalance, ...]
    charges: tuple[Charge, ...]


def balances(ledger: Ledger, policy: Policy) -> list[Balance]:
    """Of every binding that has a ceiling or a history."""
    with_ceiling = {name: binding.privacy for name, binding in policy.data.items() if binding.privacy}
    names = with_ceiling.keys() | {one.spend.binding for one in ledger.charges()}
    return [_balance(name, with_ceiling.get(name), ledger.charges(name)) for name in sorted(names)]


def delta_of(charges: Sequence[Charge], ceiling: Ceiling | None) -> float | None:
    return ceiling.delta if ceiling else max((one.spend.delta for one in charges), default=None)


def _balance(name: str, ceiling: Ceiling | None, charges: Sequence[Charge]) -> Balance:
    delta, events = delta_of(charges, ceiling), [one.spend.event for one in charges]
    jobs = dict.fromkeys(one.spend.job for one in charges)
    return Balance(
        binding=name,
        ceiling=ceiling,
        unit=charges[-1].spend.unit if charges else None,
        delta=delta,
        spent=spent(events, delta) if delta else 0.0,
        tighter=spent(events, delta, "pld") if delta else 0.0,
        jobs=tuple(_job(job, ceiling, charges) for job in jobs),
        charges=tuple(charges),
    )


def _job(job: str, ceiling: Ceiling | None, charges: Sequence[Charge]) -> JobBalance:
    mine = [one.spend for one in charges if one.spend.job == job]
    newest = mine[-1]
    longest = replace(newest.event, steps=max(one.event.steps for one in mine))
    return JobBalance(
        job=job,
        cycles=len(mine),
        cycles_max=newest.cycles_max,
        cycles_left=cycles_left(charges, replace(newest, event=longest), ceiling),
        spent=spent((one.event for one in mine), newest.delta),
        epsilon=newest.epsilon,
        delta=newest.delta,
        newest=newest.event,
    )
