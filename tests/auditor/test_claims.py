"""Claims of privacy: the auditor adds them up itself, and by its own formula."""

import warnings
from typing import Any

import numpy as np
import pytest

from anabranch.privacy import Privacy
from anabranch.terms import Job, JobFile, Silos, Training
from anabranch.tlog.claim import PrivacyClaim
from anabranch.wire import canonical
from auditor import renyi
from silo_agent.budget import accounting
from silo_agent.budget.accounting import Event, noise_for, spent

EPSILON, DELTA, RATE, STEPS, CYCLES = 3.0, 1e-5, 0.1, 5, 4
TERMS = JobFile(
    job=Job(name="digits", task="task.py:Digits"),
    silos=Silos(min=2),
    training=Training(local_steps=STEPS, buffers="none"),
    privacy=Privacy(epsilon=EPSILON, delta=DELTA, cycles_max=CYCLES),
)


def claim(cycles: int, noise: float, **changes: Any) -> PrivacyClaim:
    said = {
        "unit": "example",
        "sample_rate": canonical.hexfloat(RATE),
        "noise_multiplier": canonical.hexfloat(noise),
        "max_grad_norm": canonical.hexfloat(1.0),
        "steps": STEPS,
        "delta": canonical.hexfloat(DELTA),
        "cycles": cycles,
        "ledger_head": f"{cycles:064x}",
    }
    return PrivacyClaim.model_validate({**said, **changes})


@pytest.fixture(scope="module")
def noise() -> float:
    return noise_for(EPSILON, DELTA, RATE, STEPS * CYCLES)


@pytest.fixture
def begun(story: Any) -> Any:
    return story.begin(TERMS)


def found(report: Any) -> list[str]:
    return [finding.what for finding in report.findings]


def test_epsilon_is_derived_from_the_log_alone(begun: Any, audit: Any, noise: float) -> None:
    for cycle in (1, 2, 4):  # the third was charged, and its update never came
        begun.update("a", begun.lease("a"), claim=claim(cycle, noise))
    report = audit(begun).report
    assert report.verified, report.findings
    (one,) = report.privacy
    assert (one.job, one.silo, one.unit, one.cycles, one.updates) == ("digits-1", "a", "example", 4, 3)
    assert one.epsilon == pytest.approx(spent([Event(RATE, noise, STEPS * 4)], DELTA), rel=1e-3)
    assert 2.98 < one.epsilon <= EPSILON == one.promised
    assert report.document()["privacy"][0]["epsilon"] == one.epsilon


@pytest.mark.parametrize(
    ("cycles", "changes", "says"),
    [
        (5, {}, "claims 5 cycles, the job allows 4"),
        (1, {"steps": 6}, "claims 6 steps"),
        (1, {"unit": "subject"}, "unit is subject"),
        (1, {"delta": canonical.hexfloat(1e-4)}, "delta is 0.0001"),
        (1, {"max_grad_norm": canonical.hexfloat(2.0)}, "max_grad_norm is 2.0"),
        (1, {"sample_rate": canonical.hexfloat(1.5)}, "sample rate of 1.5"),
        (1, {"noise_multiplier": canonical.hexfloat(0.0)}, "noise multiplier of 0.0"),
        (4, {"noise_multiplier": canonical.hexfloat(0.9)}, "the claims of privacy come to epsilon"),
    ],
)
def test_a_claim_that_does_not_keep_the_terms(
    begun: Any, audit: Any, noise: float, cycles: int, changes: dict[str, Any], says: str
) -> None:
    begun.update("a", begun.lease("a"), claim=claim(cycles, noise, **changes))
    assert any(says in what for what in found(audit(begun).report))


def test_an_update_without_a_claim_and_a_claim_without_terms(begun: Any, audit: Any, noise: float) -> None:
    begun.update("a", begun.lease("a"))
    assert "the terms ask for a claim of privacy" in found(audit(begun).report)


def test_a_claim_nobody_asked_for(story: Any, audit: Any, noise: float) -> None:
    story.begin().update("a", story.lease("a"), claim=claim(1, noise))
    assert "the terms ask for no claim of privacy" in found(audit(story).report)


def test_a_ledger_that_was_put_back(begun: Any, audit: Any, noise: float) -> None:
    for cycle in (2, 2):
        begun.update("a", begun.lease("a"), claim=claim(cycle, noise))
    assert any("its ledger was put back" in what for what in found(audit(begun).report))


def test_another_claim_logged_than_was_signed(begun: Any, audit: Any, noise: float) -> None:
    logged = claim(1, 2 * noise).model_dump(mode="json")
    begun.update("a", begun.lease("a"), claim=claim(1, noise), privacy=logged)
    assert any(what.startswith("logs privacy = ") for what in found(audit(begun).report))


def test_the_formula_gives_what_both_libraries_give() -> None:
    """Opacus' series at the same orders to ten digits; dp_accounting's is the same or a little above."""
    analysis = pytest.importorskip("opacus.accountants.analysis.rdp")
    chance = np.random.default_rng(5)
    for _ in range(25):
        rate, noise = 10 ** chance.uniform(-3, -0.1), 10 ** chance.uniform(-0.2, 1.0)
        steps, delta = int(10 ** chance.uniform(0, 4)), 10 ** chance.uniform(-9, -3)
        own = renyi.epsilon([(rate, noise, steps)], delta)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rdp = analysis.compute_rdp(q=rate, noise_multiplier=noise, steps=steps, orders=accounting.ORDERS)
            theirs, _ = analysis.get_privacy_spent(orders=accounting.ORDERS, rdp=rdp, delta=delta)
        assert own == pytest.approx(theirs, rel=1e-9, abs=1e-9)
        assert own <= spent([Event(rate, noise, steps)], delta) * (1 + 1e-9)
    assert renyi.epsilon([(1.0, 2.0, 10)], 1e-5) == pytest.approx(
        spent([Event(1.0, 2.0, 10)], 1e-5), rel=1e-12
    )
    assert renyi.epsilon([], 1e-5) == 0.0
    assert tuple(renyi.ORDERS) == accounting.ORDERS
