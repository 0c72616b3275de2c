"""Digits that lie on their side, by a network that was trained on upright ones."""

import numpy as np
import torch
from safetensors.torch import load_file
from torch.utils.data import TensorDataset


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(64, 128), torch.nn.Linear(128, 128)
        self.head = torch.nn.Linear(128, 10)

    def forward(self, x):
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


class Digits:
    def model(self, base):
        model = Network()
        model.load_state_dict(load_file(base / "model.safetensors"))
        return model

    def dataset(self, data, split):
        with np.load(data.path) as file:
            x, y = file["x"].astype(np.float32), file["y"].astype(np.int64)
        return TensorDataset(torch.from_numpy(x), torch.from_numpy(y))

    def loss(self, model, batch):
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

    def evaluate(self, model, batches):
        right = count = 0
        for x, y in batches:
            right += int((model(x).argmax(1) == y).sum())
            count += len(y)
        return {"accuracy": right / count, "num_examples": count}
