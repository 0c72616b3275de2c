"""What makes inputs out of noise: the default for images, of any shape."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

NARROWEST, SLOPE = 16, 0.2


@dataclass(frozen=True)
class Images:
    """What a task's model takes: pictures of `shape` (channels, height, width) with values from `low` to `high`."""

    shape: tuple[int, int, int]
    low: float
    high: float
    flips: bool = True  # whether a picture and its mirror image mean the same


class Inputs(Protocol):
    def generator(self, latent: int) -> nn.Module: ...
    def augment(self, inputs: Tensor, chance: torch.Generator) -> Tensor: ...


class ImageGenerator(nn.Module):
    """Noise (n, latent) → pictures (n, *shape) with values from low to high: two doublings from a quarter of the size."""

    def __init__(self, images: Images, latent: int, width: int = 64) -> None:
        super().__init__()
        channels, height, width_ = images.shape
        self.images, self.width = images, width
        self.small = math.ceil(height / 4), math.ceil(width_ / 4)
        narrow = max(width // 2, NARROWEST)
        self.first = nn.Linear(latent, width * self.small[0] * self.small[1])
        self.body = nn.Sequential(
            nn.BatchNorm2d(width, track_running_stats=False),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width, narrow, 3, padding=1),
            nn.BatchNorm2d(narrow, track_running_stats=False),
            nn.LeakyReLU(SLOPE),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(narrow, NARROWEST, 3, padding=1),
            nn.BatchNorm2d(NARROWEST, track_running_stats=False),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(NARROWEST, channels, 3, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, noise: Tensor) -> Tensor:
        start = self.first(noise).view(len(noise), self.width, *self.small)
        _, height, width = self.images.shape
        unit: Tensor = self.body(start)[:, :, :height, :width]
        return self.images.low + (self.images.high - self.images.low) * unit


def augmented(pictures: Tensor, flips: bool, chance: torch.Generator) -> Tensor:
    """Moved by up to an eighth of their size, the border repeated, and half of them mirrored. One draw for the batch."""
    height, width = pictures.shape[-2:]
    pad = max(1, min(height, width) // 8)
    padded = nn.functional.pad(pictures, (pad, pad, pad, pad), mode="replicate")
    down, right, mirrored = torch.randint(0, 2 * pad + 1, (3,), generator=chance).tolist()
    moved = padded[:, :, down : down + height, right : right + width]
    return moved.flip(-1) if flips and mirrored % 2 else moved
