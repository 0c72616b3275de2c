"""Teachers small enough for a test: blobs of three kinds in 8 × 8 pictures, and networks that know some of them."""

import torch
from torch import Tensor, nn

from reviver.inputs import Pictures
from reviver.teachers import Network
from silo_agent.training.inputs import Images

CLASSES, SIZE = 3, 8
PICTURES = Pictures(Images((1, SIZE, SIZE), 0.0, 1.0, flips=False))


def network() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, CLASSES),
    )


def records(count: int, classes: list[int], seed: int) -> tuple[Tensor, Tensor]:
    """A bright stripe across a third of the picture says the class."""
    chance = torch.Generator().manual_seed(seed)
    labels = torch.tensor(classes)[torch.randint(0, len(classes), (count,), generator=chance)]
    inputs = 0.2 * torch.rand(count, 1, SIZE, SIZE, generator=chance)
    for place, label in enumerate(labels.tolist()):
        inputs[place, :, 3 * label : 3 * label + 2] += 0.7
    return inputs, labels


def values_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def trained(classes: list[int], seed: int = 0, steps: int = 60) -> dict[str, Tensor]:
    """What a silo that holds only `classes` would send."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(steps):
        inputs, labels = records(32, classes, 1000 * seed + step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return values_of(model)


def accuracy(values: dict[str, Tensor]) -> float:
    inputs, labels = records(300, [0, 1, 2], 99)
    scores = Network(network())(values, inputs)
    return float((scores.argmax(1) == labels).float().mean())
