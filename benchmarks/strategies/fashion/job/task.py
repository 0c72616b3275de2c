"""Clothes in 28 × 28 grey pictures (Fashion-MNIST), a small network without normalisation layers."""

import numpy as np
import torch
from torch.utils.data import TensorDataset


class Fashion:
    def model(self) -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Conv2d(1, 16, 5, stride=2, padding=2),
            torch.nn.ReLU(),
            torch.nn.Conv2d(16, 32, 3, stride=2, padding=1),
            torch.nn.ReLU(),
            torch.nn.Conv2d(32, 64, 3, stride=2, padding=1),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(64 * 4 * 4, 10),
        )

    def dataset(self, data, split):
        """A silo's records are all for training; `test` and `validation` are files no silo has."""
        with np.load(data.path) as file:
            x, y = file["x"], file["y"]
        pictures = torch.from_numpy(x).unsqueeze(1).float().div_(255).sub_(0.2860).div_(0.3530)
        return TensorDataset(pictures, torch.from_numpy(y.astype(np.int64)))

    def loss(self, model, batch):
        x, y = batch
        return torch.nn.functional.cross_entropy(model(x), y)

    def evaluate(self, model, batches):
        correct, loss, count = 0, 0.0, 0
        for x, y in batches:
            scores = model(x)
            correct += int((scores.argmax(1) == y).sum())
            loss += float(torch.nn.functional.cross_entropy(scores, y, reduction="sum"))
            count += len(y)
        return {"accuracy": correct / count, "loss": loss / count}
