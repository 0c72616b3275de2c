"""A task of numbers, and whether a model may be trained with privacy."""

from typing import Any

import torch
from torch import nn

from anabranch.privacy import Privacy
from silo_agent.training.private.mechanism import Mechanism
from silo_agent.training.private.noise import Source
from silo_agent.training.private.units import Units


class Task:
    def model(self) -> Any: ...
    def dataset(self, data: Any, split: str) -> Any: ...
    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        x, y = batch
        return nn.functional.cross_entropy(model(x), y)


class Each(Task):
    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        x, y = batch
        return nn.functional.cross_entropy(model(x), y, reduction="none")


def data(count: int = 12) -> list[tuple[torch.Tensor, int]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(6, generator=generator), i % 3) for i in range(count)]


def prove(
    model: nn.Module, task: Any = None, records: Any = None, optimizer: Any = None, **privacy: Any
) -> None:
    some = data() if records is None else records
    model.train()
    torch.manual_seed(0)
    made = Mechanism(
        task or Task(),
        model,
        optimizer or torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1),
        Privacy(epsilon=1, delta=1e-5, cycles_max=1, **privacy),
        {"noise_multiplier": 1.0, "sample_rate": 0.5},
        Units(len(some), None),
        lambda indices: [some[index] for index in indices],
        getattr(task, "collate", torch.utils.data.default_collate),
        Source(),
    )
    made.prove()
    made.close()


def around(layer: nn.Module, out: int = 6) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6), layer, nn.Flatten(), nn.Linear(out, 3))


class Channels(nn.Module):
    """(n, 6) as `shape`, through the layer, and back."""

    def __init__(self, layer: nn.Module, *shape: int) -> None:
        super().__init__()
        self.layer, self.shape = layer, shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layer(x.reshape(-1, *self.shape)).flatten(1)
        return found


def frozen(layer: nn.Module) -> nn.Module:
    return layer.requires_grad_(False)
