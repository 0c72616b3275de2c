"""What the evaluation process is asked to do: the one document the demo hands to `console.demo.local`."""

from pydantic import BaseModel

from anabranch.terms import JobFile


class SiloPlan(BaseModel, extra="forbid", frozen=True):
    name: str
    data: str  # directory with train.npz and validation.npz


class Plan(BaseModel, extra="forbid", frozen=True):
    """Paths name canonical safetensors files of the export. Steps are batches."""

    folder: str  # the job's code
    file: JobFile
    initial: str
    model: str  # the one whose worth to each silo is reported
    versions: dict[int, str]  # number → parameters
    averages: dict[int, str]  # number → running average, where the job keeps one
    silos: tuple[SiloPlan, ...]
    together: str  # directory whose validation.npz holds all silos' held-out records
    steps: int  # a local-only training gets
    looks: int  # points of it at which it is evaluated, evenly spaced
    tune_steps: int
    tune_learning_rate: float
