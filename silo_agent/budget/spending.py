"""What one job may still spend of the data set it is bound to, and the charge before each of its cycles.

Two budgets hold at once: the job's own, in its terms, and the data set's, in policy.toml, over all jobs it ever serves.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from anabranch.errors import Reason, Refused
from anabranch.privacy import Privacy
from anabranch.terms import JobFile, Training
from anabranch.tlog.claim import PrivacyClaim
from anabranch.wire import canonical
from silo_agent.budget import accounting
from silo_agent.budget.accounting import Event
from silo_agent.budget.ledger import Charge, Ledger, Spend
from silo_agent.policy import Ceiling


@dataclass(frozen=True)
class Spending:
    """Of one private job, under the policy of now. The numbers of its first cycle hold for all of them."""

    ledger: Ledger
    job: str
    file: JobFile
    privacy: Privacy  # of the file
    ceiling: Ceiling | None

    def charge(self, cycle: str, steps: int, count: Callable[[], int]) -> Charge:
        """Spend one cycle; `count` asks how many units the data set has. A cycle that was charged before is not again.

        Raises Refused(DP_BUDGET) when there is not enough left, and then nothing is spent; Refused(POLICY) when data,
        δ or unit do not fit; and as `Ledger.charge`.
        """
        known = self.ledger.of(self.job, cycle)
        if known is not None:
            return self.ledger.charge(replace(known.spend, event=replace(known.spend.event, steps=steps)))
        units = count()
        for delta in (self.privacy.delta, *([self.ceiling.delta] if self.ceiling else [])):
            accounting.check_delta_for(units, delta)
        event = replace(self._kept() or self._planned(units), steps=steps)
        asked = self._spend(cycle, units, event)
        self._check(asked)
        return self.ledger.charge(asked)

    def claim(self, charge: Charge) -> PrivacyClaim:
        """What the signed update says of it."""
        spend = charge.spend
        before = [one for one in self._charges() if one.sequence <= charge.sequence]
        return PrivacyClaim(
            unit=spend.unit,
            sample_rate=canonical.hexfloat(spend.event.sample_rate),
            noise_multiplier=canonical.hexfloat(spend.event.noise_multiplier),
            max_grad_norm=canonical.hexfloat(self.privacy.max_grad_norm),
            steps=spend.event.steps,
            delta=canonical.hexfloat(spend.delta),
            cycles=len(before),
            ledger_head=charge.hash,
        )

    def cycles_left(self) -> int | None:
        """How many more cycles of most steps both budgets hold; None before the first, which fixes the noise.

        Raises Refused(POLICY) when the clock was set back.
        """
        self.ledger.check_clock()
        event = self._kept()
        if event is None:
            return None
        whole = replace(event, steps=self.file.training.local_steps)
        return cycles_left(self._all(), self._spend("", 0, whole), self.ceiling)

    def _charges(self) -> list[Charge]:
        """Those of this job."""
        return [one for one in self._all() if one.spend.job == self.job]

    def _all(self) -> list[Charge]:
        """Those of the data set."""
        return self.ledger.charges(self.file.job.data)

    def _kept(self) -> Event | None:
        """The sample rate and the noise of the job's first cycle, or more noise where the policy has come to ask for it.

        Records that come or go change how many are in a step, on average, and nothing of what a step reveals of one.
        """
        first = next(iter(self._charges()), None)
        if first is None:
            return None
        noise = max(first.spend.event.noise_multiplier, self._least_noise)
        return replace(first.spend.event, noise_multiplier=noise)

    def _planned(self, units: int) -> Event:
        event = planned(self.file.training, self.privacy, units)
        return replace(event, noise_multiplier=max(event.noise_multiplier, self._least_noise))

    @property
    def _least_noise(self) -> float:
        return self.ceiling.least_noise if self.ceiling else 0.0

    def _check(self, asked: Spend) -> None:
        others = {one.spend.unit for one in self._all()} - {asked.unit}
        if others:
            raise Refused(
                Reason.POLICY,
                f"what jobs revealed of data {asked.binding!r} is counted for each {others.pop()}, and job {self.job} "
                f"counts for each {asked.unit}: the two do not add up; bind other data for it",
            )
        why = exceeded(self._all(), asked, self.ceiling)
        if why is not None:
            raise Refused(Reason.DP_BUDGET, f"{why}. Nothing was spent; this silo trains no more for it")

    def _spend(self, cycle: str, units: int, event: Event) -> Spend:
        p = self.privacy
        return Spend(
            self.file.job.data, self.job, cycle, p.unit, units, event, p.epsilon, p.delta, p.cycles_max
        )


def planned(training: Training, privacy: Privacy, units: int) -> Event:
    """All steps of as many cycles as the terms allow, with the least noise. Raises Refused where data or δ do not fit."""
    accounting.check_data(units, training.batch_size, privacy.delta)
    rate, steps = min(1.0, training.batch_size / coarse(units)), privacy.cycles_max * training.local_steps
    return Event(rate, accounting.noise_for(privacy.epsilon, privacy.delta, rate, steps), steps)


def spending(ledger: Ledger, job: str, file: JobFile, ceiling: Ceiling | None) -> Spending | None:
    """None for a job without [privacy]."""
    return Spending(ledger, job, file, file.privacy, ceiling) if file.privacy is not None else None


@dataclass(frozen=True)
class _Books:
    """What stands in the ledger, as far as one job is concerned; equal steps are one event."""

    cycles: int  # of the job
    own: list[Event]  # of the job
    all: list[Event]  # of its data set


def exceeded(charges: Sequence[Charge], asked: Spend, ceiling: Ceiling | None) -> str | None:
    """Which budget `asked` would exceed after `charges`, all of its data set; None: it fits."""
    return _exceeded(_books(charges, asked.job), asked, ceiling, 1)


def cycles_left(charges: Sequence[Charge], asked: Spend, ceiling: Ceiling | None) -> int:
    """How many cycles as `asked` fit into both budgets after `charges`."""
    books = _books(charges, asked.job)
    low, high = 0, asked.cycles_max
    while low < high:
        middle = (low + high + 1) // 2
        fits = _exceeded(books, asked, ceiling, middle) is None
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def _books(charges: Sequence[Charge], job: str) -> _Books:
    own = [one.spend.event for one in charges if one.spend.job == job]
    return _Books(len(own), accounting.merged(own), accounting.merged(one.spend.event for one in charges))


def _exceeded(books: _Books, asked: Spend, ceiling: Ceiling | None, cycles: int) -> str | None:
    if books.cycles + cycles > asked.cycles_max:
        return f"job {asked.job} has had {books.cycles} of its {asked.cycles_max} cycles here"
    more = replace(asked.event, steps=cycles * asked.event.steps)
    job = accounting.spent([*books.own, more], asked.delta)
    if job > asked.epsilon:
        return (
            f"job {asked.job} would come to epsilon {job:.4g} here, and its terms promise {asked.epsilon:.4g}"
        )
    if ceiling is None:
        return None
    together = accounting.spent([*books.all, more], ceiling.delta)
    if together > ceiling.epsilon:
        return (
            f"policy.toml [data.{asked.binding}.privacy] epsilon = {ceiling.epsilon:.4g}: all jobs together would come to "
            f"{together:.4g}"
        )
    return None


def coarse(units: int) -> float:
    """`units`, rounded down to a power of the fourth root of two: the sample rate, which leaves this site, shall not tell
    how many records there are to everybody who knows the batch size.
    """
    return float(2 ** (math.floor(4 * math.log2(units)) / 4))
