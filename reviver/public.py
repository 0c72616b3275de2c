"""A job's public records, where its task has some: a part that revivals are measured on, and a part to distil on."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reviver.pool import SAMPLES, Batch
from silo_agent.training.task import Garbage, Task

MEASURED = 1000  # records, at most


@dataclass(frozen=True)
class Public:
    measured: Batch
    taught: Batch


def public_of(task: Task, seed: int) -> Public | None:
    """None: the task has none. Which record is in which part is drawn by the seed. Raises Garbage."""
    say = getattr(task, "public", None)
    if say is None:
        return None
    said: Any = say()
    if not hasattr(said, "__len__") or len(said) < 2:
        raise Garbage("NotPublic", "public() returned no data set of two records or more", say)
    order = torch.randperm(len(said), generator=torch.Generator().manual_seed(seed)).tolist()
    half = min(len(order) // 2, MEASURED)
    parts = []
    for places in (order[:half], order[half : half + SAMPLES]):
        batch: Any = torch.utils.data.default_collate([said[place] for place in places])
        if not _labelled(batch):
            raise Garbage("NotPublic", "a record of public() is not an input with its label", say)
        parts.append(Batch(batch[0], batch[1], frozenset()))
    return Public(*parts)


def _labelled(batch: Any) -> bool:
    if not (isinstance(batch, list | tuple) and len(batch) == 2):
        return False
    inputs, labels = batch
    if not (isinstance(inputs, Tensor) and isinstance(labels, Tensor)):
        return False
    return labels.dtype == torch.int64 and labels.dim() == 1
