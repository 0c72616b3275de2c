"""What the evaluation process is asked to do: the one document the demo hands to `console.demo.local`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel


@dataclass(frozen=True)
class TaskData:
    """What the demo's task reads of a silo's data binding."""

    path: Path
    params: Mapping[str, Any]


class SiloPlan(BaseModel, extra="forbid", frozen=True):
    name: str
    data: str  # directory with train.npz and validation.npz


class Plan(BaseModel, extra="forbid", frozen=True):
    """Paths name canonical safetensors files of the export. Steps are batches of `batch_size` records."""

    task_file: str
    task_class: str
    seed: int
    initial: str
    head: str
    ema: str | None
    versions: dict[int, str]  # number → parameters
    silos: tuple[SiloPlan, ...]
    together: str  # directory whose validation.npz holds all silos' held-out records
    batch_size: int
    steps: int  # a local-only training gets
    learning_rate: float
    tune_steps: int
    tune_learning_rate: float
