"""Small pictures of ten kinds of things: a network of one layer that looks and one that decides."""

import numpy as np
import torch
from torch.nn.functional import batch_norm, cross_entropy
from torch.utils.data import TensorDataset

from silo_agent import Images


class Track(torch.nn.Module):
    """Changes nothing, and keeps mean and variance of what came through each channel: made inputs are held against it."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                batch_norm(x, self.running_mean, self.running_var, training=True, momentum=0.1)
        return x


class Pictures:
    def __init__(self, channels, size, mean, deviation):
        self.channels, self.size = channels, size
        self.mean, self.deviation = mean, deviation  # of a pixel, from 0 to 1

    def model(self):
        half = self.size // 2
        return torch.nn.Sequential(
            torch.nn.Conv2d(self.channels, 8, 5, stride=2, padding=2),
            Track(8),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(8 * half * half, 10),
        )

    def inputs(self):
        low, high = -self.mean / self.deviation, (1 - self.mean) / self.deviation
        return Images((self.channels, self.size, self.size), low, high)

    def dataset(self, data, split):
        """A silo's records are all for training; `test` and `validation` are files no silo has."""
        with np.load(data.path) as file:
            x, y = file["x"], file["y"]
        pictures = torch.from_numpy(x).view(-1, self.size, self.size, self.channels).permute(0, 3, 1, 2)
        scaled = pictures.float().div_(255).sub_(self.mean).div_(self.deviation).contiguous()
        return TensorDataset(scaled, torch.from_numpy(y.astype(np.int64)))

    def loss(self, model, batch):
        x, y = batch
        return cross_entropy(model(x), y)

    def evaluate(self, model, batches):
        correct, loss, count = 0, 0.0, 0
        for x, y in batches:
            scores = model(x)
            correct += int((scores.argmax(1) == y).sum())
            loss += float(cross_entropy(scores, y, reduction="sum"))
            count += len(y)
        return {"accuracy": correct / count, "loss": loss / count}
