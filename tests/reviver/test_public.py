"""A job's public records: what a task may give, what is measured on them, and what is distilled on them."""

from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from anabranch.terms import Revival
from anabranch.tlog import revivals
from anabranch.wire.canonical import hexfloat
from reviver.lessons import reviver_of
from reviver.pool import Batch
from reviver.public import MEASURED, Public, public_of
from reviver.reviver import Reviver
from reviver.trial import Unsupported
from reviver.worth import RECENT, Effect, Facts, why_not
from server.core.revival import Report
from server.reviving import _effect
from silo_agent.training.inputs import Images
from silo_agent.training.task import Garbage
from tests.reviver.models import PICTURES, SIZE, accuracy, network, records, trained, values_of

SETTINGS = Revival(freeze=0, warmup=0, synthesis="public", synthesis_every=1, steps=10, lr=0.003, gain=1.0)


class Says:
    def __init__(self, public: Any) -> None:
        self.public = lambda: public

    def inputs(self) -> Images:
        return Images((1, SIZE, SIZE), flips=False)


def task(count: int = 200) -> Any:
    return Says(TensorDataset(*records(count, [0, 1, 2], 17)))


def taught(public: Public | None, settings: Revival = SETTINGS) -> Reviver:
    torch.set_num_threads(1)
    one, base = Reviver(network(), PICTURES, settings, 3, public=public), values_of(network())
    assert one.teachers.take("hospital-a", trained([0, 1]), base) == ""
    assert one.teachers.take("hospital-b", trained([2]), base) == ""
    return one


@pytest.mark.parametrize(("count", "measured"), [(2, 1), (7, 3), (200, 100), (3000, MEASURED)])
def test_what_is_measured_on_is_not_distilled_on(count: int, measured: int) -> None:
    """Every record is in one part; which one it is drawn by the seed, in whatever order they come."""
    numbered = TensorDataset(torch.arange(float(count)).view(count, 1), torch.zeros(count, dtype=torch.int64))
    found = public_of(Says(numbered), 5)  # type: ignore[arg-type]
    assert found is not None
    assert len(found.measured.labels) == measured
    both = torch.cat([found.measured.inputs, found.taught.inputs]).flatten()
    assert torch.equal(both.sort().values, torch.arange(float(count)))
    again, other = public_of(Says(numbered), 5), public_of(Says(numbered), 6)  # type: ignore[arg-type]
    assert again is not None
    assert other is not None
    assert torch.equal(again.taught.inputs, found.taught.inputs)
    assert count < 100 or not torch.equal(other.taught.inputs, found.taught.inputs)


@pytest.mark.parametrize(
    "public",
    [
        None,
        TensorDataset(*records(1, [0], 0)),
        [torch.zeros(3), torch.zeros(3)],
        [(torch.zeros(3), 0.5)] * 4,
        [(torch.zeros(3), torch.zeros(2, dtype=torch.int64))] * 4,
    ],
)
def test_what_is_no_labelled_data_set_is_refused(public: Any) -> None:
    with pytest.raises(Garbage, match=r"public\(\)"):
        public_of(Says(public), 0)  # type: ignore[arg-type]


def test_a_task_that_lacks_what_its_job_asks_for_is_told_what() -> None:
    assert reviver_of(task(), network(), SETTINGS, 0).__class__ is Reviver
    without = task()
    del without.public
    for lacking, why in ((without, "no_public"), (object(), "no_inputs")):
        with pytest.raises(Unsupported) as raised:
            reviver_of(lacking, network(), SETTINGS, 0)  # type: ignore[arg-type]
        assert raised.value.why == why


def test_the_head_learns_on_public_records_and_its_accuracy_says_so() -> None:
    """No input is made; what is measured is what the test measures by itself, on other records."""
    one, head = taught(public_of(task(), 3)), trained([0, 1])
    before, effects = accuracy(head), []
    for version in range(1, 16):
        revived = one.revive(head, version)
        assert not isinstance(revived, str)
        assert revived.effect is not None
        assert revived.effect.accuracy is not None
        effects.append(revived.effect.accuracy)
        head = {**head, **{name: head[name] + change for name, change in revived.delta.items()}}
    assert before < 0.75 < 0.9 < accuracy(head)
    assert effects[0][0] == pytest.approx(before, abs=0.1)
    assert effects[-1][1] == pytest.approx(accuracy(head), abs=0.1)
    assert one._batches == 0


def test_records_that_are_measured_on_do_not_change_what_is_distilled() -> None:
    """With a generator, public records are a yardstick, and all that is made goes into the pool."""
    settings = SETTINGS.model_copy(update={"synthesis": "generator", "synthesis_batch": 16})
    public = public_of(task(), 3)
    assert public is not None
    one, head = taught(public, settings), trained([0, 1])
    for version in range(1, 10):
        revived = one.revive(head, version)
    assert not isinstance(revived, str)
    assert revived.effect is not None
    assert revived.effect.accuracy is not None
    assert len(one._pool) == 9 * 16
    assert len(one._held) == len(public.measured.labels)


def test_a_silo_that_is_forgotten_takes_no_public_records_along() -> None:
    public = Public(
        Batch(*records(20, [0, 1, 2], 1), frozenset()), Batch(*records(30, [0, 1, 2], 2), frozenset())
    )
    one = taught(public)
    one.forget("hospital-a")
    assert (len(one._held), len(one._pool)) == (20, 30)


def test_accuracy_decides_over_agreement_where_it_is_known() -> None:
    better, worse = Effect(0.6, 0.5, (0.7, 0.8)), Effect(0.6, 0.9, (0.8, 0.7))
    assert why_not(Facts(0.1, 1.0, 0.9, [better] * RECENT)) == ""
    assert why_not(Facts(0.1, 1.0, 0.9, [worse] * RECENT)) == "no_effect"


def test_the_log_has_the_accuracy_beside_the_agreement() -> None:
    told = {"seed": 1, "device": "cpu", "libraries": {}, "seconds": 1.0}
    agreement = {"agreement_before": 0.5, "agreement_after": 0.75}
    said = _effect(Report(**told, **agreement, accuracy_before=0.25, accuracy_after=0.5))
    entry = revivals.Effect.model_validate(said)
    assert (entry.accuracy_before, entry.accuracy_after) == (hexfloat(0.25), hexfloat(0.5))
    assert set(_effect(Report(**told, **agreement)) or ()) == set(agreement)
