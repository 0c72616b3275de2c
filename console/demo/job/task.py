"""Classify 8 × 8 handwritten digits. A task is a plain class; the silo's agent owns the training loop."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from silo_agent import Images

if TYPE_CHECKING:
    from silo_agent.training.task import SiloData

Batch = tuple[Tensor, Tensor]


class Digits:
    def __init__(self) -> None:
        self.pause = 0.0  # seconds per training batch

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def inputs(self) -> Images:
        return Images((1, 8, 8), flips=False)

    def dataset(self, data: "SiloData", split: str) -> TensorDataset:
        """`data.path` holds train.npz and validation.npz; a silo may play a slow machine in its own policy."""
        self.pause = float(data.params.get("seconds_per_batch", 0.0))
        with np.load(Path(data.path) / f"{split}.npz", allow_pickle=False) as records:
            pixels = torch.from_numpy(records["pixels"]).view(-1, 1, 8, 8)
            return TensorDataset(pixels, torch.from_numpy(records["labels"]))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        time.sleep(self.pause)
        pixels, labels = batch
        return cross_entropy(model(pixels), labels)

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        right = seen = 0
        for pixels, labels in batches:
            right += int((model(pixels).argmax(1) == labels).sum())
            seen += len(labels)
        return {"accuracy": right / seen}
