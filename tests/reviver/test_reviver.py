"""Reviving, without a server: what silos know one by one, the head knows afterwards."""

import pytest
import torch

from anabranch.terms import Revival
from reviver.pool import SAMPLES, Batch, Pool
from reviver.reviver import Reviver
from reviver.teachers import LOUDEST, Network, Teacher, Teachers, heard, skew
from reviver.worth import PAUSE, RECENT, Effect, Facts, why_not
from tests.reviver.models import CLASSES, PICTURES, SIZE, accuracy, network, trained, values_of

SETTINGS = Revival(
    freeze=0, warmup=4, synthesis_every=1, synthesis_steps=20, synthesis_batch=32, steps=10, lr=0.01, gain=1.0
)


def reviver(settings: Revival = SETTINGS, seed: int = 3) -> Reviver:
    torch.set_num_threads(1)
    return Reviver(network(), PICTURES, settings, seed)


def taught(settings: Revival = SETTINGS, seed: int = 3) -> Reviver:
    """By two silos: one has only the classes 0 and 1, the other only 2."""
    one, base = reviver(settings, seed), values_of(network())
    assert one.teachers.take("hospital-a", trained([0, 1]), base) == ""
    assert one.teachers.take("hospital-b", trained([2]), base) == ""
    return one


def test_the_head_learns_what_the_silos_know() -> None:
    """A head that knows two of three classes is told of the third, on inputs nobody has ever seen."""
    one, head = taught(), trained([0, 1])
    before = accuracy(head)
    for version in range(1, 25):
        revived = one.revive(head, version)
        if not isinstance(revived, str):
            head = {**head, **{name: head[name] + change for name, change in revived.delta.items()}}
    assert before < 0.75 < 0.85 < accuracy(head)


def test_it_warms_up_first() -> None:
    one, head = taught(), trained([0, 1])
    found = [one.revive(head, version) == "warmup" for version in range(1, 7)]
    assert found == [True] * 4 + [False] * 2


def test_without_teachers_there_is_nothing_to_revive() -> None:
    assert reviver().revive(values_of(network()), 50) == "warmup"


def test_the_same_seed_gives_the_same_bytes() -> None:
    head = trained([0, 1])

    def last(seed: int) -> torch.Tensor:
        one = taught(seed=seed)
        found = [one.revive(head, version) for version in range(1, 7)][-1]
        assert not isinstance(found, str)
        return torch.cat([change.flatten() for change in found.delta.values()])

    assert torch.equal(last(3), last(3))
    assert not torch.equal(last(3), last(4))


def test_the_head_and_the_teachers_stay_as_they_are() -> None:
    one, head = taught(), trained([0, 1])
    kept = {name: tensor.clone() for name, tensor in head.items()}
    held = {
        silo: {n: t.clone() for n, t in teacher.values.items()}
        for silo, teacher in one.teachers.slots.items()
    }
    for version in range(1, 8):
        one.revive(head, version)
    assert all(torch.equal(head[name], kept[name]) for name in kept)
    for silo, teacher in one.teachers.slots.items():
        assert all(torch.equal(tensor, held[silo][name]) for name, tensor in teacher.values.items())


@pytest.mark.parametrize("broken", ["conv", "statistics"])
def test_a_model_that_is_not_finite_teaches_nobody(broken: str) -> None:
    one, base = taught(), values_of(network())
    kept = one.teachers.slots["hospital-a"]
    values = {name: tensor.clone() for name, tensor in base.items()}
    values["0.weight" if broken == "conv" else "1.running_var"].view(-1)[0] = float("nan")
    assert one.teachers.take("hospital-a", values, base) == "nonfinite"
    assert one.teachers.slots["hospital-a"] is kept


def test_a_model_far_from_its_base_teaches_nobody() -> None:
    one, base = taught(), values_of(network())
    scaled = {name: base[name] + 30 * (tensor - base[name]) for name, tensor in trained([2]).items()}
    assert one.teachers.take("hospital-c", scaled, base) == "far"
    assert {teacher.silo for teacher in one.teachers} == {"hospital-a", "hospital-b"}


def test_a_silo_has_one_slot_however_often_it_returns() -> None:
    one, base = taught(), values_of(network())
    newest = trained([2], seed=8)
    for _ in range(20):
        one.teachers.take("hospital-b", trained([2], seed=7, steps=5), base)
    one.teachers.take("hospital-b", newest, base)
    assert len(one.teachers) == 2
    assert one.teachers.slots["hospital-b"].values is newest


def test_forgetting_a_silo_forgets_what_was_made_from_it() -> None:
    """Its slot, its inputs, and the generator that learned from it: as if it had never been there."""
    one, head = (
        taught(Revival.model_validate({**SETTINGS.model_dump(), "synthesis_teachers": 1})),
        trained([0, 1]),
    )
    for version in range(1, 12):
        one.revive(head, version)
    one.forget("hospital-b")
    assert set(one.teachers.slots) == {"hospital-a"}
    assert all("hospital-b" not in batch.silos for pool in (one._pool, one._held) for batch in pool._batches)
    fresh = reviver()._synthesis._generator.state_dict()
    assert all(
        torch.equal(tensor, fresh[name]) for name, tensor in one._synthesis._generator.state_dict().items()
    )


def test_what_does_not_travel_is_the_models_own() -> None:
    """A frozen layer, and statistics of a job that keeps its buffers to itself: neither stands in a silo's file."""
    model = network()
    model[0].requires_grad_(False)  # type: ignore[index]
    travels = {name for name, one in model.named_parameters() if one.requires_grad}
    one = Reviver(model, PICTURES, SETTINGS, 3)
    base = {name: tensor for name, tensor in values_of(network()).items() if name in travels}
    for silo, classes in (("hospital-a", [0, 1]), ("hospital-b", [2])):
        sent = {name: tensor - base[name] for name, tensor in trained(classes).items() if name in travels}
        assert one.learn(silo, base, sent) == ""
    found = [one.revive(base, version) for version in range(1, 7)][-1]
    assert not isinstance(found, str)
    assert set(found.delta) == travels


def test_what_a_silo_holds_is_guessed_from_its_answers_to_noise() -> None:
    one = taught()
    of = {silo: teacher.proportions for silo, teacher in one.teachers.slots.items()}
    assert all(torch.isclose(each.sum(), torch.tensor(1.0)) for each in of.values())
    assert float(of["hospital-b"][2]) > 0.9 > 0.2 > float(of["hospital-a"][2])
    assert 0.3 < skew(one.teachers) <= 1 - 1 / CLASSES


def test_only_the_first_models_of_a_silo_are_probed() -> None:
    teachers = Teachers(Network(network()), PICTURES, torch.Generator().manual_seed(1))
    base, models = (
        values_of(network()),
        [trained([0], steps=20), trained([1], steps=20), trained([2], steps=20)],
    )
    found = []
    for values in models:
        teachers.take("hospital-a", values, base)
        found.append(teachers.slots["hospital-a"].proportions)
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found[1], found[2])


def batch(label: int, count: int, silo: str = "hospital-a") -> Batch:
    inputs = torch.full((count, 1, SIZE, SIZE), float(label))
    return Batch(inputs, torch.full((count,), label), frozenset([silo]))


def test_the_pool_is_bounded_and_drops_the_oldest() -> None:
    pool = Pool(torch.Generator().manual_seed(0))
    for label in (0, 1, 2):
        for _ in range(SAMPLES // 2000):
            pool.add(batch(label, 1000))
    assert len(pool) <= SAMPLES
    drawn = pool.draw(torch.zeros(500, dtype=torch.long))  # none are left: any will do
    assert set(drawn[:, 0, 0, 0].tolist()) == {1.0, 2.0}


def test_every_label_is_answered_with_an_input_made_for_it() -> None:
    pool = Pool(torch.Generator().manual_seed(0))
    for label, count in ((0, 400), (1, 5), (2, 90)):
        pool.add(batch(label, count))
    labels = torch.randint(0, 3, (400,), generator=torch.Generator().manual_seed(1))
    assert torch.equal(pool.draw(labels)[:, 0, 0, 0].long(), labels)


def asked(*held: list[float]) -> torch.Tensor:
    """How often each teacher is asked, and about what, (teachers, classes)."""
    return heard([Teacher(str(number), {}, torch.tensor(one), 1.0, 0.0) for number, one in enumerate(held)])


def test_a_class_one_silo_holds_is_heard_as_often_as_one_that_all_hold() -> None:
    weights = asked([0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.5, 0.49, 0.01])
    assert torch.allclose(weights.sum(0), torch.full((3,), 1 / 3), atol=0.01)
    assert float(weights[2, 2]) == pytest.approx(1 / 3, abs=0.01)


def test_nobody_is_heard_twice_as_much_as_its_part_whatever_it_claims() -> None:
    """Nine of ten classes are nobody's but the last one's, as far as its answers to noise say."""
    honest = [1.0] + [0.0] * 9
    weights = asked(honest, honest, honest, honest, [0.0] + [1 / 9] * 9)
    assert weights.sum(1).tolist() == pytest.approx([0.15] * 4 + [LOUDEST / 5])
    assert float(weights.sum()) == pytest.approx(1.0)


def test_where_no_step_is_finite_nothing_joins_the_pool() -> None:
    one = taught()
    one._synthesis._generator.first.weight.data.fill_(float("inf"))  # type: ignore[union-attr, operator]
    assert one.revive(trained([0, 1]), 50) == "warmup"
    assert len(one._pool) == 0


GOOD = Effect(0.6, 0.7)


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        (Facts(0.2, 1.0, 0.7, []), ""),
        (Facts(0.2, 1.0, 0.7, [GOOD] * 9), ""),
        (Facts(0.51, 1.0, 0.7, [GOOD] * 9), "slow"),
        (Facts(0.5, 1.0, 0.39, [GOOD] * 9), "even"),
        (Facts(0.2, 1.0, 0.7, [Effect(0.6, 0.5)] * 15), ""),
        (Facts(0.2, 1.0, 0.7, [Effect(0.6, 0.6)] * 16), "no_effect"),
        (Facts(0.2, 1.0, 0.7, [GOOD] * 16 + [Effect(0.6, 0.4)] * 16), "no_effect"),
        (Facts(0.2, 1.0, 0.7, [Effect(0.6, 0.4)] * 16 + [GOOD] * 16), ""),
    ],
)
def test_it_knows_whether_it_pays(facts: Facts, why: str) -> None:
    assert why_not(facts) == why


def test_without_effect_it_pauses_and_then_tries_again() -> None:
    """A chance run of measurements switched a reviver off for good that was worth three points."""
    one = taught()
    one._effects.extend([Effect(0.6, 0.6)] * RECENT)
    said = [one.why_not(version, 0.1, 1.0) for version in (50, 50 + PAUSE - 1, 50 + PAUSE)]
    assert said == ["no_effect", "no_effect", ""]
