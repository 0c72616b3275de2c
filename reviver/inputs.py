"""Inputs made of noise, and pictures. Texts are in `texts`."""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from silo_agent.training.inputs import Images

LATENT, WIDTH, NARROWEST, SLOPE = 64, 64, 16, 0.2


@runtime_checkable
class Inputs(Protocol):
    def generator(self) -> nn.Module:
        """A fresh one: latents (n, …) → inputs (n, …), differentiable. Drawn from torch's global state."""

    def latent(self, count: int, chance: torch.Generator) -> Tensor:
        """What a generator starts from, (count, …); trained beside it."""

    def noise(self, count: int, chance: torch.Generator) -> Tensor:
        """Inputs (count, …) that say nothing, drawn with `chance` only, on the CPU."""

    def augment(self, inputs: Tensor, chance: torch.Generator) -> Tensor:
        """The same inputs, seen differently; differentiable. They may lie on a GPU; `chance` draws on the CPU."""


@dataclass(frozen=True)
class Pictures:
    images: Images

    def generator(self) -> nn.Module:
        return PictureGenerator(self.images, LATENT)

    def latent(self, count: int, chance: torch.Generator) -> Tensor:
        return torch.randn(count, LATENT, generator=chance)

    def noise(self, count: int, chance: torch.Generator) -> Tensor:
        return torch.randn(count, *self.images.shape, generator=chance)

    def augment(self, inputs: Tensor, chance: torch.Generator) -> Tensor:
        """Moved by up to an eighth of their size, their border repeated, and half of the time mirrored: all alike."""
        height, width = inputs.shape[-2:]
        most = max(1, min(height, width) // 8)
        padded = nn.functional.pad(inputs, (most, most, most, most), mode="replicate")
        down, right, mirror = torch.randint(0, 2 * most + 1, (3,), generator=chance).tolist()
        moved = padded[:, :, down : down + height, right : right + width]
        return moved.flip(-1) if self.images.flips and mirror % 2 else moved


class PictureGenerator(nn.Module):
    """Noise (n, latent) → pictures (n, *shape): twice doubled from a quarter of their size."""

    def __init__(self, images: Images, latent: int) -> None:
        super().__init__()
        channels, height, width = images.shape
        self.images, self.small = images, (math.ceil(height / 4), math.ceil(width / 4))
        self.first = nn.Linear(latent, WIDTH * self.small[0] * self.small[1])
        half = WIDTH // 2
        self.body = nn.Sequential(
            nn.BatchNorm2d(WIDTH, track_running_stats=False),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(WIDTH, half, 3, padding=1),
            nn.BatchNorm2d(half, track_running_stats=False),
            nn.LeakyReLU(SLOPE),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(half, NARROWEST, 3, padding=1),
            nn.BatchNorm2d(NARROWEST, track_running_stats=False),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(NARROWEST, channels, 3, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, noise: Tensor) -> Tensor:
        _, height, width = self.images.shape
        unit: Tensor = self.body(self.first(noise).view(len(noise), WIDTH, *self.small))
        low, high = self.images.low, self.images.high
        return low + (high - low) * unit[:, :, :height, :width]
