"""Clothes in 28 × 28 grey pictures (Fashion-MNIST), a small network without normalisation layers."""

import numpy as np
import torch
from torch.utils.data import TensorDataset

from silo_agent import Images

MEAN, DEVIATION = 0.2860, 0.3530


class Seen(torch.nn.Module):
    """Changes nothing. Keeps mean and variance of each channel as BatchNorm would, for a reviver to hold inputs against."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                self.running_mean.lerp_(x.mean((0, 2, 3)), 0.1)
                self.running_var.lerp_(x.var((0, 2, 3), unbiased=False), 0.1)
        return x


class Fashion:
    def model(self) -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Conv2d(1, 16, 5, stride=2, padding=2),
            Seen(16),
            torch.nn.ReLU(),
            torch.nn.Conv2d(16, 32, 3, stride=2, padding=1),
            Seen(32),
            torch.nn.ReLU(),
            torch.nn.Conv2d(32, 64, 3, stride=2, padding=1),
            Seen(64),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(64 * 4 * 4, 10),
        )

    def inputs(self):
        return Images((1, 28, 28), low=-MEAN / DEVIATION, high=(1 - MEAN) / DEVIATION)

    def dataset(self, data, split):
        """A silo's records are all for training; `test` and `validation` are files no silo has."""
        with np.load(data.path) as file:
            x, y = file["x"], file["y"]
        pictures = torch.from_numpy(x).unsqueeze(1).float().div_(255).sub_(MEAN).div_(DEVIATION)
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
