"""Which cycles a silo pays for. Two budgets hold at once, and neither is exceeded, whatever comes in what order."""

from collections.abc import Callable
from pathlib import Path

import pytest

from anabranch.errors import Reason, Refused
from anabranch.terms import JobFile, parse_job_file
from anabranch.wire import canonical
from silo_agent.budget.accounting import Event, noise_for, spent
from silo_agent.budget.ledger import Ledger
from silo_agent.budget.spending import Spending, coarse, spending
from silo_agent.policy import Ceiling

JOB = """
[job]
name = "tiny"
task = "task.py:Tiny"
data = "records"
[training]
local_steps = 5
batch_size = 100
buffers = "none"
[privacy]
epsilon = 3.0
delta = 1e-5
cycles_max = 4
"""


def file(**changes: str) -> JobFile:
    text = JOB
    for old, new in changes.items():
        assert f"{old} = " in text
        text = "\n".join(
            f"{old} = {new}" if line.startswith(f"{old} = ") else line for line in text.split("\n")
        )
    return parse_job_file(text)


def of(
    ledger: Ledger, job: str = "tiny-1", ceiling: Ceiling | None = None, terms: JobFile | None = None
) -> Spending:
    found = spending(ledger, job, terms or file(), ceiling)
    assert found is not None
    return found


def thousand() -> int:
    return 1000


def refused(reason: Reason, says: str, call: Callable[[], object]) -> None:
    with pytest.raises(Refused, match=says) as refusal:
        call()
    assert refusal.value.code is reason


def test_all_cycles_of_a_job_fit_and_no_more(reopened: Callable[..., Ledger]) -> None:
    for cycle in range(4):
        one = of(reopened())
        assert one.cycles_left() == (None if cycle == 0 else 4 - cycle)
        charge = one.charge(f"l-{cycle}", 5, thousand)
        assert one.claim(charge).cycles == cycle + 1
    one = of(reopened())
    assert one.cycles_left() == 0
    refused(Reason.DP_BUDGET, "4 of its 4 cycles.*Nothing was spent", lambda: one.charge("l-4", 5, thousand))
    events = [charge.spend.event for charge in one.ledger.charges()]
    assert events == [events[0]] * 4
    assert 2.99 < spent(events, 1e-5) <= 3.0
    assert events[0] == Event(100 / coarse(1000), noise_for(3.0, 1e-5, 100 / coarse(1000), 20), 5)


def test_a_resumed_cycle_is_not_counted_again_and_asks_nothing(reopened: Callable[..., Ledger]) -> None:
    first = of(reopened()).charge("l-0", 5, thousand)

    def nobody() -> int:
        raise AssertionError("asked the training process")

    again = of(reopened(), ceiling=Ceiling(epsilon=1e-3, delta=1e-5))
    assert again.charge("l-0", 5, nobody) == first
    assert again.claim(first).ledger_head == first.hash
    refused(Reason.POLICY, "was charged with", lambda: again.charge("l-0", 4, nobody))


def test_records_that_come_or_go_change_no_number(reopened: Callable[..., Ledger]) -> None:
    one, counts = of(reopened()), [1000, 2000, 50]
    events = [one.charge(f"l-{n}", 5, lambda n=n: counts[n]).spend.event for n in range(3)]
    assert events == [events[0]] * 3
    assert [charge.spend.units for charge in one.ledger.charges()] == [1000, 2000, 50]


def test_data_that_do_not_fit_are_refused_and_nothing_is_spent(reopened: Callable[..., Ledger]) -> None:
    ledger = reopened()
    refused(Reason.POLICY, "99 units and batch_size is 100", lambda: of(ledger).charge("l", 5, lambda: 99))
    large = file(delta="0.001")
    refused(Reason.POLICY, "too large for 1000", lambda: of(ledger, terms=large).charge("l", 5, thousand))
    ceiling = Ceiling(epsilon=9.0, delta=0.01)
    refused(Reason.POLICY, "0.01 is too large", lambda: of(ledger, ceiling=ceiling).charge("l", 5, thousand))
    assert ledger.charges() == []
    of(ledger).charge("l", 5, lambda: 100)  # a batch of all records
    assert ledger.charges()[0].spend.event.sample_rate == 1.0


def test_the_ceiling_holds_over_jobs_and_restarts(reopened: Callable[..., Ledger]) -> None:
    ceiling, done, refusals = Ceiling(epsilon=4.0, delta=1e-5), [], []
    for number in range(12):
        one = of(reopened(), f"job-{number % 3}", ceiling)
        try:
            done.append(one.charge(f"l-{number}", 5, thousand))
        except Refused as refusal:
            refusals.append((refusal.code, "all jobs together" in str(refusal)))
    assert set(refusals) == {(Reason.DP_BUDGET, True)}
    ledger = reopened()
    assert ledger.charges() == done
    assert 4 <= len(done) < 12
    assert spent((one.spend.event for one in done), 1e-5) <= 4.0
    assert {of(ledger, f"job-{number}", ceiling).cycles_left() for number in range(3)} == {0}
    assert of(ledger, "job-0", ceiling.model_copy(update={"epsilon": 40.0})).cycles_left() > 0
    other = file(data='"elsewhere"')
    assert of(ledger, "job-9", ceiling, other).charge("l-99", 5, thousand).sequence == len(done)


def test_what_is_left_is_what_then_fits(reopened: Callable[..., Ledger]) -> None:
    ledger, ceiling = reopened(), Ceiling(epsilon=3.0, delta=1e-6)
    one = of(ledger, ceiling=ceiling)
    one.charge("l-0", 5, thousand)
    left = one.cycles_left()
    assert left is not None
    assert 0 < left < 3
    for number in range(left):
        one.charge(f"l-{number + 1}", 5, thousand)
    assert one.cycles_left() == 0
    refused(Reason.DP_BUDGET, "all jobs together", lambda: one.charge("l-9", 5, thousand))


def test_the_policys_least_noise_is_a_floor_also_for_a_job_that_has_begun(
    reopened: Callable[..., Ledger],
) -> None:
    ledger = reopened()
    begun = of(ledger).charge("l-0", 5, thousand).spend.event.noise_multiplier
    ceiling = Ceiling(epsilon=9.0, delta=1e-5, least_noise=2 * begun)
    assert of(ledger, ceiling=ceiling).charge("l-1", 5, thousand).spend.event.noise_multiplier == 2 * begun
    assert of(ledger, "new-1", ceiling).charge("l-2", 5, thousand).spend.event.noise_multiplier == 2 * begun


def test_one_data_set_counts_one_unit(reopened: Callable[..., Ledger]) -> None:
    ledger = reopened()
    of(ledger).charge("l-0", 5, thousand)
    text = JOB.replace("[privacy]", '[privacy]\nunit = "subject"')
    other = of(ledger, "job-2", terms=parse_job_file(text))
    refused(Reason.POLICY, "counted for each example", lambda: other.charge("l-1", 5, thousand))


def test_a_claim_says_what_was_charged(tmp_path: Path, reopened: Callable[..., Ledger]) -> None:
    one = of(reopened())
    charge = one.charge("l-0", 5, thousand)
    claim = one.claim(charge)
    assert claim.model_dump() == {
        "unit": "example",
        "sample_rate": canonical.hexfloat(charge.spend.event.sample_rate),
        "noise_multiplier": canonical.hexfloat(charge.spend.event.noise_multiplier),
        "max_grad_norm": canonical.hexfloat(1.0),
        "steps": 5,
        "delta": canonical.hexfloat(1e-5),
        "cycles": 1,
        "ledger_head": charge.hash,
    }


def test_a_sample_rate_does_not_tell_how_many_records_there_are() -> None:
    for units in (1, 2, 3, 10, 1000, 123_456):
        assert 0.84 * units < coarse(units) <= units
    assert coarse(1100) == coarse(1101) == coarse(1200)
    assert sum(coarse(units) != coarse(units + 1) for units in range(1000, 2000)) == 4
