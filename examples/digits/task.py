"""Handwritten digits: what a managed task looks like. No import from the platform is needed to run it."""

import time

import numpy as np
import torch
from torch.utils.data import TensorDataset


class Digits:
    """A small convolutional network for 8 × 8 pictures. `[job.params]` of the job file arrive as keyword arguments."""

    def __init__(self, channels: int = 16) -> None:
        self.channels = channels
        self.pause = 0.0

    def model(self) -> torch.nn.Module:
        few, many = self.channels, 2 * self.channels
        return torch.nn.Sequential(
            torch.nn.Unflatten(1, (1, 8, 8)),
            torch.nn.Conv2d(1, few, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
            torch.nn.Conv2d(few, many, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
            torch.nn.Flatten(),
            torch.nn.Linear(4 * many, 10),
        )

    def dataset(self, data, split):
        with np.load(data.path) as file:
            x, y = file["x"], file["y"]
        # A picture's own bytes decide its split: it stays there when pictures are added or reordered.
        mine = [index for index in range(len(y)) if data.split(x[index].tobytes()) == split]
        self.pause = float(data.params.get("seconds_per_batch", 0))  # lets a demo have a slow silo
        return TensorDataset(torch.from_numpy(x[mine]), torch.from_numpy(y[mine]))

    def loss(self, model, batch):
        x, y = batch
        time.sleep(self.pause)
        return torch.nn.functional.cross_entropy(model(x), y)

    def evaluate(self, model, batches):
        correct, loss, count = 0, 0.0, 0
        for x, y in batches:
            scores = model(x)
            correct += int((scores.argmax(1) == y).sum())
            loss += float(torch.nn.functional.cross_entropy(scores, y, reduction="sum"))
            count += len(y)
        return {"accuracy": correct / count, "loss": loss / count}
