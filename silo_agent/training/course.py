"""Which records come next: shuffled epochs that go on from one cycle to the next.

A cycle may be shorter than an epoch; if every cycle started a new one, the records at the end of an unlucky order
would never be seen. The order of epoch e depends on (seed, e) alone, so a position is two integers.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Order = Callable[[torch.Generator], Sequence[int]]  # one epoch's indices, drawn with the generator


@dataclass(frozen=True)
class Position:
    epoch: int = 0
    taken: int = 0  # records of this epoch


class Course:
    """Walks through epochs of `order` from `position`."""

    def __init__(self, seed: int, order: Order, position: Position) -> None:
        self._seed = seed
        self._order = order
        self._indices = self._draw(position.epoch)
        self.position = position

    def take(self, count: int) -> list[int]:
        """The next `count` indices, running over into the next epoch, so that every batch is full.

        Raises ValueError when an epoch is empty.
        """
        taken: list[int] = []
        while len(taken) < count:
            epoch, start = self.position.epoch, self.position.taken
            piece = self._indices[start : start + count - len(taken)]
            taken += [int(index) for index in piece]
            self.position = Position(epoch, start + len(piece))
            if self.position.taken >= len(self._indices):
                self.position = Position(epoch + 1)
                self._indices = self._draw(epoch + 1)
        return taken

    def _draw(self, epoch: int) -> Sequence[int]:
        generator = torch.Generator().manual_seed(seed_of("epoch", self._seed, epoch))
        indices = self._order(generator)
        if not len(indices):
            raise ValueError("there are no records to train on")
        return indices


def shuffled(size: int) -> Order:
    """Every one of `size` records once per epoch."""
    return lambda generator: torch.randperm(size, generator=generator).tolist()


def seed_of(*parts: object) -> int:
    """A 63-bit seed from anything that prints: equal parts, equal seed."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
