"""Handwritten digits with a training loop of one's own. Four lines make it federated; they are marked."""

import itertools
import time

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from silo_agent import federated  # 1

model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
loss_of = torch.nn.CrossEntropyLoss()


def load(data, split):
    with np.load(data.path) as file:
        x, y = file["x"], file["y"]
    mine = [index for index in range(len(y)) if data.split(x[index].tobytes()) == split]
    return TensorDataset(torch.from_numpy(x[mine]), torch.from_numpy(y[mine]))


def train(model, batches, pause):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in batches:
        time.sleep(pause)
        optimizer.zero_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        optimizer.step()
    return loss.item()


def evaluate(model, split):
    x, y = load(fl.data, split).tensors
    return {"accuracy": (model(x).argmax(1) == y).float().mean(), "num_examples": len(y)}


with federated(model, evaluate=evaluate) as fl:  # 2
    loader = DataLoader(load(fl.data, "train"), batch_size=32, shuffle=True)
    pause = float(fl.data.params.get("seconds_per_batch", 0))
    for cycle in fl:  # 3
        endless = itertools.chain.from_iterable(itertools.repeat(loader))
        loss = train(model, itertools.islice(endless, cycle.steps), pause)
        cycle.submit(num_examples=len(loader.dataset), metrics={"loss": loss})  # 4
