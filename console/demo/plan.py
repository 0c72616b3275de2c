"""What the evaluation process is asked to do: the one document the demo hands to `console.demo.local`."""

from pydantic import BaseModel


class SiloPlan(BaseModel, extra="forbid", frozen=True):
    name: str
    data: str  # directory with train.npz and validation.npz


class Plan(BaseModel, extra="forbid", frozen=True):
    """Paths name canonical safetensors files of the export. Steps are batches of `batch_size` records."""

    folder: str  # the job's code
    task: str  # "task.py:Digits"
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
