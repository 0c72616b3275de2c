"""What tasks say about their inputs, and what is made of it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reviver.inputs import Pictures
from reviver.trial import Unsupported, inputs_of
from silo_agent import Images
from silo_agent.training.task import Garbage

SHAPES = [(1, 8, 8), (3, 32, 32), (1, 28, 28), (3, 33, 47), (2, 1, 5)]


@pytest.mark.parametrize("shape", SHAPES)
def test_pictures_have_the_shape_and_the_range_that_was_asked_for(shape: tuple[int, int, int]) -> None:
    pictures, chance = Pictures(Images(shape, -0.5, 2.0)), torch.Generator().manual_seed(0)
    made = pictures.generator()(pictures.latent(4, chance))
    assert made.shape == (4, *shape)
    assert float(made.detach().min()) >= -0.5
    assert float(made.detach().max()) <= 2.0
    assert pictures.noise(4, chance).shape == (4, *shape)
    assert pictures.augment(made, chance).shape == (4, *shape)


def test_the_way_from_noise_to_seen_pictures_is_differentiable() -> None:
    pictures, chance = Pictures(Images((1, 12, 12))), torch.Generator().manual_seed(0)
    noise = pictures.latent(4, chance).requires_grad_()
    pictures.augment(pictures.generator()(noise), chance).square().sum().backward()  # type: ignore[no-untyped-call]
    assert noise.grad is not None
    assert float(noise.grad.abs().sum()) > 0


@pytest.mark.parametrize("flips", [True, False])
def test_pictures_are_mirrored_only_where_that_means_nothing(flips: bool) -> None:
    """A ramp from left to right still rises to the right, unless it may be mirrored."""
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    pictures, chance = Pictures(Images((1, 8, 8), flips=flips)), torch.Generator().manual_seed(0)
    rises = [bool((pictures.augment(ramp, chance).diff(dim=-1) >= 0).all()) for _ in range(40)]
    assert all(rises) is not flips


class Vectors:
    """A hook for other inputs than pictures."""

    def generator(self) -> nn.Module:
        return nn.Linear(5, 7)

    def latent(self, count: int, chance: torch.Generator) -> Tensor:
        return torch.randn(count, 5, generator=chance)

    def noise(self, count: int, chance: torch.Generator) -> Tensor:
        return torch.randn(count, 7, generator=chance)

    def augment(self, inputs: Tensor, chance: torch.Generator) -> Tensor:
        return inputs


class Says:
    def __init__(self, inputs: Any) -> None:
        self.inputs = lambda: inputs


def test_a_task_says_what_its_inputs_are() -> None:
    images, vectors = Images((1, 8, 8)), Vectors()
    model = nn.Identity()
    assert inputs_of(Says(images), model) == Pictures(images)  # type: ignore[arg-type]
    assert inputs_of(Says(vectors), model) is vectors  # type: ignore[arg-type]
    with pytest.raises(Unsupported, match="no method inputs"):
        inputs_of(object(), model)  # type: ignore[arg-type]
    with pytest.raises(Garbage, match="returned int"):
        inputs_of(Says(3), model)  # type: ignore[arg-type]
