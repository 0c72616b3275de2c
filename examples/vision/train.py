"""Pictures, and all of a small CNN trained on them. Four lines make it federated; they are marked.

A silo's data is a folder of .npz files, each with x, shape (n, 3, height, width), uint8, and y, shape (n,), int64.
"""

import os

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from silo_agent import federated  # 1

CLASSES, BATCH, RATE = 3, 32, 0.05  # BATCH: of each process
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if GPU else torch.device("cpu")


def block(channels, out):
    """GroupNorm keeps no running statistics: silos with other pictures do not disturb each other's."""
    return [nn.Conv2d(channels, out, 3, padding=1), nn.GroupNorm(8, out), nn.ReLU(), nn.MaxPool2d(2)]


def load(data, split):
    """The pictures of one split, in memory, on the CPU: `data.split` sorts each by its content."""
    found, labels = [], []
    for path in sorted(data.path.glob("*.npz")):
        with np.load(path) as file:
            x, y = file["x"], file["y"]
        mine = [index for index in range(len(y)) if data.split(x[index].tobytes()) == split]
        found.append(torch.from_numpy(x[mine]))
        labels.append(torch.from_numpy(y[mine]))
    return torch.cat(found), torch.cat(labels)


def prepared(x):
    return x.to(DEVICE, non_blocking=True).float() / 255 - 0.5


def batches(count, steps):
    """Indices of this process's part of each step. The cycle has seeded all processes alike, so they agree."""
    together = BATCH * WORLD
    order = torch.cat([torch.randperm(count) for _ in range(steps * together // count + 1)])
    for step in range(steps):
        yield order[step * together : (step + 1) * together][RANK::WORLD]


def train(model, pictures, labels, steps):
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    total = 0.0
    for mine in batches(len(labels), steps):
        x, y = prepared(pictures[mine]), labels[mine].to(DEVICE)
        flipped = torch.rand(len(x), device=DEVICE) < 0.5
        x = torch.where(flipped[:, None, None, None], x.flip(3), x)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        total += loss.detach()
    return total / steps


def evaluate(model, split):
    pictures, labels = load(fl.data, split)
    guesses = torch.cat([model(prepared(x)).argmax(1).cpu() for x in pictures.split(256)])
    return {"accuracy": (guesses == labels).float().mean(), "num_examples": len(labels)}


layers = [*block(3, 16), *block(16, 32), *block(32, 64), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
model = nn.Sequential(*layers, nn.Linear(64, CLASSES)).to(DEVICE)

with federated(model, evaluate=evaluate) as fl:  # 2
    wrapped = model
    if WORLD > 1:
        dist.init_process_group()
        wrapped = DistributedDataParallel(model, [DEVICE] if GPU else None)
    pictures, labels = load(fl.data, "train")
    for cycle in fl:  # 3
        loss = train(wrapped, pictures, labels, cycle.steps)
        cycle.submit(num_examples=len(labels), metrics={"loss": loss})  # 4
