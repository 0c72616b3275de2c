"""Texts that are made behind the table of tokens, and adapters that are swapped on one base."""

from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anabranch.terms import Revival

pytest.importorskip("peft")
pytest.importorskip("transformers")

from reviver import pool
from reviver.inputs import Inputs
from reviver.pool import Batch
from reviver.public import Public
from reviver.reviver import Reviver
from reviver.synthesis import Synthesis
from reviver.teachers import Network, Teacher
from reviver.texts import PROMPT, Passages
from reviver.trial import Unsupported, inputs_of, tried
from silo_agent import Texts
from tests.reviver.posts import (
    CLASSES,
    FIRST,
    LENGTH,
    TEXTS,
    WIDTH,
    WORDS,
    Classifier,
    accuracy,
    network,
    records,
    trained,
    travelling,
)

SETTINGS = Revival(
    freeze=0, warmup=2, synthesis_every=1, synthesis_steps=20, synthesis_batch=32, steps=10, lr=0.01, gain=1.0
)
QUICK = SETTINGS.model_copy(update={"synthesis_steps": 2, "steps": 2})


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(inputs: Inputs, count: int, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    found: Tensor = inputs.generator()(inputs.latent(count, chance(seed))).detach()
    return found


def reviver(settings: Revival = SETTINGS, seed: int = 3, public: Public | None = None) -> Reviver:
    torch.set_num_threads(1)
    model = network()
    return Reviver(model, Passages(TEXTS, model), settings, seed, public=public)


def taught(settings: Revival = SETTINGS, seed: int = 3) -> Reviver:
    """By two silos: one has only the classes 0 and 1, the other only 2."""
    one, base = reviver(settings, seed), travelling(network())
    assert one.teachers.take("hospital-a", trained((0, 1)), base) == ""
    assert one.teachers.take("hospital-b", trained((2,)), base) == ""
    return one


def test_vectors_of_a_written_text_are_that_text() -> None:
    """Bit for bit the scores of its ids: positions, mask and all are the model's own."""
    ids, _ = records(8, range(CLASSES), 1)
    model = network().eval()
    expected = model(ids)
    Passages(TEXTS, model)
    table = model.get_parameter("base_model.model.encoder.embeddings.word_embeddings.weight")
    vectors = table[ids] * ids.ne(0)[..., None]
    assert torch.equal(model(vectors), expected)
    assert torch.equal(model(ids), expected)


def test_what_a_made_text_is() -> None:
    """The first token, a prompt they share, and rows of the table; zero behind the end, which is in the second half."""
    model = network()
    inputs = Passages(TEXTS, model)
    texts = made(inputs, 40)
    table = model.get_parameter("base_model.model.encoder.embeddings.word_embeddings.weight")
    assert texts.shape == (40, LENGTH, WIDTH)
    assert torch.equal(texts[:, 0], table[FIRST].expand(40, -1))
    assert torch.equal(texts[:1, 1 : 1 + PROMPT - 1].expand(40, -1, -1), texts[:, 1:PROMPT])
    rows = texts[:, PROMPT:].reshape(-1, WIDTH)
    assert float(torch.cdist(rows, table).min(1).values.max()) < 1e-3
    there = inputs.augment(texts, chance()).ne(0).any(-1)
    assert set(there.sum(1).tolist()) == set(range(LENGTH // 2, LENGTH + 1))
    assert bool((there.int().diff(dim=1) <= 0).all())


def test_noise_is_tokens_of_the_vocabulary() -> None:
    noise = Passages(TEXTS, network()).noise(200, chance())
    assert noise.dtype == torch.int64
    there = noise.ne(0)
    assert set(noise[:, 1:].flatten().tolist()) == set(range(WORDS))
    assert bool((noise[:, 0] == FIRST).all())
    assert bool((there.int().diff(dim=1) <= 0).all()), "the padding token stands in a text's midst"


def test_swapped_adapters_answer_as_models_loaded_one_by_one() -> None:
    ids, _ = records(32, range(CLASSES), 4)
    shared = Network(network())
    adapters = [trained((0, 1)), trained((2,)), trained((1,))]
    for values in [*adapters, adapters[0]]:
        alone = network().eval()
        missing = alone.load_state_dict(values, strict=False)
        assert not missing.unexpected_keys
        assert torch.equal(shared(values, ids), alone(ids))


def test_many_teachers_are_one_base_and_their_adapters() -> None:
    one, base = reviver(QUICK), travelling(network())
    before = {name: tensor.data_ptr() for name, tensor in one._network.initial().items()}
    for silo in range(20):
        values = {name: tensor + 0.01 * silo for name, tensor in base.items()}
        one.learn(f"hospital-{silo}", base, {name: values[name] - base[name] for name in base})
    assert not isinstance(one.revive(base, 5), str)
    held = [tensor for teacher in one.teachers.slots.values() for tensor in teacher.values.values()]
    assert sum(tensor.untyped_storage().nbytes() for tensor in held) == 20 * sum(
        tensor.nbytes for tensor in base.values()
    )
    assert {name: tensor.data_ptr() for name, tensor in one._network.initial().items()} == before
    assert torch.equal(one._network.initial()[next(iter(base))], next(iter(base.values())))


def test_the_head_learns_what_the_silos_know() -> None:
    """A head that knows two of three kinds of texts is told of the third by texts without words."""
    one, head = taught(), trained((0, 1))
    before, after = accuracy(head), []
    for version in range(1, 13):
        revived = one.revive(head, version)
        if not isinstance(revived, str):
            assert revived.delta.keys() == head.keys()
            head = {name: head[name] + change for name, change in revived.delta.items()}
            after.append(accuracy(head))
    assert before < 0.68 < 0.72 < fmean(after[-5:])


def test_the_prompt_learns_from_call_to_call() -> None:
    """With the same tokens behind it the teacher is less sure of what it was not asked for."""
    model = network()
    inputs, net = Passages(TEXTS, model), Network(model)
    torch.manual_seed(0)
    synthesis = Synthesis(net, inputs, chance())
    knows_all = Teacher(
        "hospital-a", trained(tuple(range(CLASSES))), torch.full((CLASSES,), 1 / CLASSES), 1.0, 0.0
    )

    def loss() -> float:
        with torch.no_grad():
            texts = synthesis._generator(inputs.latent(300, chance(7)))
            scores = net(knows_all.values, texts)
            return float(nn.functional.cross_entropy(scores, torch.arange(300) % CLASSES))

    before = loss()
    for _ in range(20):
        assert synthesis.make([knows_all], 16, 3, None) is not None
    assert loss() < 0.95 * before


def test_the_same_seed_gives_the_same_bytes() -> None:
    head = trained((0, 1))

    def last(seed: int) -> Tensor:
        one = taught(QUICK, seed)
        found = [one.revive(head, version) for version in range(1, 5)][-1]
        assert not isinstance(found, str)
        return torch.cat([change.flatten() for change in found.delta.values()])

    assert torch.equal(last(3), last(3))
    assert not torch.equal(last(3), last(4))


def test_made_texts_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Newest kept: of twelve batches of 32 the pool holds what fits into four."""
    monkeypatch.setattr(pool, "BYTES", 4 * 32 * LENGTH * WIDTH * 4)
    one, head = taught(QUICK), trained((0, 1))
    for version in range(1, 7):
        one.revive(head, version)
    kept = list(one._pool._batches)
    assert len(kept) == 4
    one.revive(head, 7)
    assert list(one._pool._batches)[:3] == kept[1:]


@pytest.mark.parametrize("synthesis", ["noise", "public"])
def test_written_texts_are_distilled_on_too(synthesis: str) -> None:
    settings = Revival.model_validate({**QUICK.model_dump(), "synthesis": synthesis})
    ids, labels = records(60, range(CLASSES), 7)
    taught_on, measured = Batch(ids[:40], labels[:40], frozenset()), Batch(ids[40:], labels[40:], frozenset())
    public = Public(measured, taught_on) if synthesis == "public" else None
    one, base = reviver(settings, public=public), travelling(network())
    assert one.teachers.take("hospital-a", trained((2,)), base) == ""
    found = one.revive(trained((0, 1)), 5)
    assert not isinstance(found, str)
    assert found.effect is None or found.effect.accuracy is not None


class Says:
    def __init__(self, inputs: Any) -> None:
        self.inputs = lambda: inputs


class TwoTables(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = Classifier(), Classifier()

    def forward(self, ids: Tensor) -> Tensor:
        return self.one(ids) + self.other(ids)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (replace(TEXTS, embedding="tokens"), "0 modules of that name; its embeddings are .*word_embeddings"),
        (replace(TEXTS, embedding="dropout"), "modules of that name|no table"),
        (replace(TEXTS, embedding="head.modules_to_save"), "no table of"),
        (replace(TEXTS, pad=WORDS), f"pad = {WORDS}, and the table has {WORDS} tokens"),
        (replace(TEXTS, first=-1), "first = -1"),
    ],
)
def test_what_is_not_so_of_the_model_is_said(texts: Texts, said: str) -> None:
    with pytest.raises(Unsupported, match=said) as found:
        inputs_of(Says(texts), network())  # type: ignore[arg-type]
    assert found.value.why == "no_embedding"


def test_two_tables_of_one_name_are_told_apart_by_more_of_it() -> None:
    model = TwoTables()
    with pytest.raises(Unsupported, match="2 modules of that name"):
        inputs_of(Says(TEXTS), model)  # type: ignore[arg-type]
    inputs_of(Says(replace(TEXTS, embedding="one.encoder.embeddings.word_embeddings")), model)  # type: ignore[arg-type]


def test_a_table_the_model_does_not_read_is_said() -> None:
    model = TwoTables()
    model.forward = model.one.forward  # type: ignore[method-assign]
    named = replace(TEXTS, embedding="other.encoder.embeddings.word_embeddings")
    inputs = inputs_of(Says(named), model)  # type: ignore[arg-type]
    with pytest.raises(Unsupported, match="do not depend smoothly") as found:
        tried(Network(model), inputs)
    assert found.value.why == "no_gradient"


def test_texts_longer_than_the_model_takes_are_said() -> None:
    model = network()
    inputs = inputs_of(Says(replace(TEXTS, length=20)), model)  # type: ignore[arg-type]
    with pytest.raises(Unsupported, match="does not take the task's inputs"):
        tried(Network(model), inputs)


def test_a_table_that_answers_in_another_shape_is_said() -> None:
    model = network()
    inputs = inputs_of(Says(replace(TEXTS, embedding="position_embeddings", first=1)), model)  # type: ignore[arg-type]
    with pytest.raises(Unsupported, match=r"'position_embeddings' gave \(1, 12, 16\)"):
        tried(Network(model), inputs)


def test_texts_of_hardly_a_token_are_refused() -> None:
    with pytest.raises(ValueError, match="4 tokens or more"):
        Texts(3, "word_embeddings")
