"""What a task's model takes, so that a reviver can make inputs of that kind (docs/revival.md)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Images:
    """Pictures of `shape` (channels, height, width), as the model gets them, with values from `low` to `high`."""

    shape: tuple[int, int, int]
    low: float = 0.0
    high: float = 1.0
    flips: bool = True  # a picture and its mirror image mean the same
