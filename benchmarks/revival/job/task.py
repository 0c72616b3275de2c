"""Small pictures of ten kinds of things, and a network without normalisation layers."""

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from silo_agent import Images


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


class Pictures:
    def __init__(self, channels, size, mean, deviation, width, layers):
        self.channels, self.size = channels, size
        self.mean, self.deviation = mean, deviation  # of a pixel, from 0 to 1
        self.width, self.layers = (
            width,
            layers,
        )  # each layer twice as wide as the one before, and half as large

    def model(self):
        seen, size, made = self.channels, self.size, []
        for layer in range(self.layers):
            width, side = self.width * 2**layer, 3 if layer else 5
            convolution = torch.nn.Conv2d(seen, width, side, stride=2, padding=side // 2)
            made += [convolution, Seen(width), torch.nn.ReLU()]
            seen, size = width, (size + 1) // 2
        return torch.nn.Sequential(*made, torch.nn.Flatten(), torch.nn.Linear(seen * size * size, 10))

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
