"""LoRA on tiny transformers with random weights: the adapters train with privacy, in each way."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from anabranch.adapting import Adapter
from anabranch.privacy import Privacy
from silo_agent.training.adapters import adapted
from silo_agent.training.private.clipping import MARGIN
from silo_agent.training.private.mechanism import Mechanism
from silo_agent.training.private.noise import Source
from silo_agent.training.private.units import Units
from silo_agent.training.task import Garbage

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")
BOUND = 0.05

Record = tuple[torch.Tensor, torch.Tensor]


class Classifies:
    def __init__(self, reduction: str) -> None:
        self.reduction = reduction

    def model(self) -> Any: ...
    def dataset(self, data: Any, split: str) -> Any: ...
    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        words, labels = batch
        return nn.functional.cross_entropy(model(input_ids=words).logits, labels, reduction=self.reduction)


class Continues(Classifies):
    """Each record's mean over its own words: what transformers' own loss is not, where lengths differ."""

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        words, lengths = batch
        logits = model(input_ids=words).logits[:, :-1].transpose(1, 2)
        there = torch.arange(words.shape[1] - 1) < lengths[:, None] - 1
        each = nn.functional.cross_entropy(logits, words[:, 1:], reduction="none") * there
        losses = each.sum(1) / there.sum(1)
        return losses.mean() if self.reduction == "mean" else losses


class TransformersOwn(Continues):
    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        words, lengths = batch
        there = torch.arange(words.shape[1]) < lengths[:, None]
        found: torch.Tensor = model(input_ids=words, labels=torch.where(there, words, -100)).loss
        return found


def bert() -> nn.Module:
    return BertForSequenceClassification(
        BertConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=50,
            max_position_embeddings=32, num_labels=3,
        )
    )  # fmt: skip


def gpt() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=50, n_positions=32))


def data(count: int = 12) -> list[Record]:
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(0, 50, (count, 9), generator=generator)
    return [(words[i], torch.tensor(2 + i % 3 if i % 2 else i % 3)) for i in range(count)]


def lengths(count: int = 12) -> list[Record]:
    return [(words, torch.tensor(3 + i % 7)) for i, (words, _) in enumerate(data(count))]


def labelled(count: int = 12) -> list[Record]:
    return [(words, torch.tensor(i % 3)) for i, (words, _) in enumerate(data(count))]


def lora(model: nn.Module, freeze_a: bool, **of: Any) -> nn.Module:
    found = adapted(model, Adapter(kind="lora", rank=4, freeze_a=freeze_a, **of))
    torch.manual_seed(3)
    with torch.no_grad():  # as after some versions: B is not 0 any more
        for name, parameter in found.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    return found.eval()


def mechanism(model: nn.Module, some: list[Record], task: Any, **privacy: Any) -> Mechanism:
    return Mechanism(
        task,
        model,
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0),
        Privacy(epsilon=1, delta=1e-5, cycles_max=1, max_grad_norm=BOUND, **privacy),
        {"noise_multiplier": 1e-12, "sample_rate": 1.0},
        Units(len(some), None),
        lambda indices: [some[index] for index in indices],
        torch.utils.data.default_collate,
        Source(),
    )


def by_hand(model: nn.Module, some: list[Record], task: Any) -> dict[str, torch.Tensor]:
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in named.items()}
    for record in some:
        loss = task.loss(model, torch.utils.data.default_collate([record])).mean()
        gradient = torch.autograd.grad(loss, list(named.values()))
        factor = min(1.0, BOUND * (1 - MARGIN) / float(torch.cat([g.flatten() for g in gradient]).norm()))
        for name, part in zip(named, gradient, strict=True):
            total[name] += part * factor / len(some)
    return total


WAYS = [("hooks", "mean", None), ("hooks", "none", 5), ("ghost", "none", None), ("ghost", "none", 5)]


@pytest.mark.parametrize(("method", "reduction", "physical"), WAYS)
@pytest.mark.parametrize("freeze_a", [False, True])
@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_adapters_train_with_privacy(
    kind: str, freeze_a: bool, method: str, reduction: str, physical: int | None
) -> None:
    torch.manual_seed(0)
    if kind == "bert":
        model = lora(bert(), freeze_a, heads=["classifier"], targets=["query", "value"])
        some, task = labelled(), Classifies(reduction)
    else:
        model, some, task = lora(gpt(), freeze_a, targets=["c_attn"]), lengths(), Continues(reduction)
    expected = by_hand(model, some, task)
    of = {"method": method, "physical_batch": physical}
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    made = mechanism(model, some, task, **of)
    made.gradient()
    made.close()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert set(found) == set(expected)
    assert any("lora_B" in name for name in found)
    assert any("lora_A" in name for name in found) != freeze_a
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("method", ["hooks", "ghost"])
def test_adapters_with_dropout_are_let_through(method: str) -> None:
    torch.manual_seed(0)
    model = lora(bert(), False, heads=["classifier"], targets=["query"], dropout=0.1).train()
    mechanism(model, labelled(), Classifies("none"), method=method).prove()
    model = lora(gpt(), True, targets=["c_attn"], dropout=0.1).train()
    mechanism(model, lengths(), Continues("none"), method=method).prove()


def test_a_mean_over_the_words_of_a_batch_is_found() -> None:
    """As transformers' own loss of language models is: with shorter texts beside it, a text would count for more."""
    torch.manual_seed(0)
    model = lora(gpt(), True, targets=["c_attn"]).train()
    with pytest.raises(Garbage) as refused:
        mechanism(model, lengths(), TransformersOwn("mean")).prove()
    assert refused.value.kind == "RecordsMixed"


def test_the_head_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = adapted(bert(), Adapter(kind="head", heads=["classifier"])).train()
    made = mechanism(model, labelled(), Classifies("mean"))
    made.prove()
    made.gradient()
    grown = {name for name, p in model.named_parameters() if p.grad is not None}
    assert grown == {"classifier.weight", "classifier.bias"}
