"""Texts small enough for a test: three kinds, each of words of its own, and a BERT of one layer that wears an adapter."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from anabranch.terms import Adapter
from reviver.teachers import Network
from silo_agent.training.adapters import adapted
from silo_agent.training.inputs import Texts

CLASSES, LENGTH, WORDS, WIDTH, FIRST = 3, 12, 40, 16, 39
TEXTS = Texts(LENGTH, "word_embeddings", first=FIRST)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=WORDS,
            hidden_size=WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
            initializer_range=0.3,
        )
        self.encoder = BertModel(config, add_pooling_layer=False)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        there = ids.ne(0).long()
        words = self.encoder(input_ids=ids, attention_mask=there).last_hidden_state
        scores: Tensor = self.head((words * there[..., None]).sum(1) / there.sum(1, keepdim=True))
        return scores


def network() -> nn.Module:
    torch.manual_seed(5)
    return adapted(Classifier(), Adapter(rank=2, targets=("query", "value"), heads=("head",)))


def records(count: int, classes: Sequence[int], seed: int) -> tuple[Tensor, Tensor]:
    """Twelve words of a text's ten tokens or so say its class."""
    chance = torch.Generator().manual_seed(seed)
    labels = torch.tensor(classes)[torch.randint(0, len(classes), (count,), generator=chance)]
    ids = 1 + 12 * labels[:, None] + torch.randint(0, 12, (count, LENGTH), generator=chance)
    ids[:, 0] = FIRST
    ends = torch.randint(LENGTH // 2, LENGTH + 1, (count, 1), generator=chance)
    return torch.where(torch.arange(LENGTH) < ends, ids, 0), labels


def travelling(model: nn.Module) -> dict[str, Tensor]:
    return {name: one.detach().clone() for name, one in model.named_parameters() if one.requires_grad}


@cache
def trained(classes: tuple[int, ...], seed: int = 0, steps: int = 60) -> dict[str, Tensor]:
    """What travels of a silo's model that holds only `classes`."""
    model = network()
    optimizer = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], lr=0.01)
    for step in range(steps):
        ids, labels = records(16, classes, 1000 * seed + step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(ids), labels).backward()
        optimizer.step()
    return travelling(model)


def accuracy(values: dict[str, Tensor]) -> float:
    ids, labels = records(300, range(CLASSES), 99)
    return float((Network(network())(values, ids).argmax(1) == labels).float().mean())
