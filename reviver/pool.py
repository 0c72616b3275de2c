"""Synthetic inputs, with the labels they were made for: newest kept, bounded in number and bytes."""

from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor

SAMPLES = 16_000
BYTES = 256 << 20


@dataclass(frozen=True)
class Batch:
    inputs: Tensor  # (n, …); on whatever device
    labels: Tensor  # (n,); on the CPU
    silos: frozenset[str]  # whose models it was made from


@dataclass
class Pool:
    chance: torch.Generator
    _batches: deque[Batch] = field(default_factory=deque)
    _all: Batch | None = None  # of them, in one; made when asked for
    _places: dict[int, Tensor] = field(default_factory=dict)  # label → where it is

    def __len__(self) -> int:
        return sum(len(batch.labels) for batch in self._batches)

    def add(self, batch: Batch) -> None:
        self._batches.append(batch)
        each = batch.inputs[0].numel() * batch.inputs.element_size()
        while len(self) > len(batch.labels) and len(self) > min(SAMPLES, BYTES // each):
            self._batches.popleft()
        self._all = None

    def forget(self, silo: str) -> None:
        self._batches = deque(batch for batch in self._batches if silo not in batch.silos)
        self._all = None

    def draw(self, labels: Tensor) -> Tensor:
        """An input (n, …) for each of `labels` (n,); any input for a label there is none of."""
        held = self._held()
        anywhere = torch.arange(len(held.labels))
        places = [self._places.get(label, anywhere) for label in labels.tolist()]
        chosen = torch.rand(len(labels), generator=self.chance)
        which = [int(at[int(share * len(at))]) for at, share in zip(places, chosen.tolist(), strict=True)]
        return held.inputs[which]

    def _held(self) -> Batch:
        if self._all is None:
            inputs = torch.cat([batch.inputs for batch in self._batches])
            labels = torch.cat([batch.labels for batch in self._batches])
            self._all = Batch(inputs, labels, frozenset())
            self._places = {label: (labels == label).nonzero().flatten() for label in set(labels.tolist())}
        return self._all
