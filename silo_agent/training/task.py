"""What a managed job is made of: a plain class with a model, a data set and a loss. The platform owns the loop.

The class is named in the job file (`task = "task.py:Digits"`) and called with `[job.params]` as keyword arguments.
"""

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

from anabranch.errors import Reason, Refused

if TYPE_CHECKING:
    import torch

FRACTIONS: Final = (0.8, 0.1, 0.1)  # train, validation, test
SPLITS: Final = ("train", "validation", "test")

Param = str | int | float | bool


@runtime_checkable
class Task(Protocol):
    """The methods every managed task has. Any of these may be there too:

    * `evaluate(model, batches) -> dict[str, float]`: metrics over an iterable of batches; needed for evaluation
    * `collate(records) -> batch`: instead of torch's default
    * `optimizer(model) -> torch.optim.Optimizer`: instead of the one in the job file
    * `sampler(dataset, generator) -> Sequence[int]`: one epoch's order of indices, drawn with `generator` only

    * `inputs() -> silo_agent.Images` or `Texts`, or an object like those of `reviver.inputs.Inputs`: what the model takes,
      so that a reviver can make such inputs; without it the job runs without revival
    * `public() -> Dataset` of inputs and labels that belong to no silo, out of the job's code or its archive: what
      revivals are measured on and, with `synthesis = "public"`, distil on

    A task is built once per process and lives across cycles. What it keeps in itself is not saved: when the process
    is replaced, only the model, the optimizer, the random state and the position in the data come back.
    """

    def model(self, base: Path = ...) -> "torch.nn.Module":
        """A fresh model. Called with the job's seed set, the same one at every silo: what is not trained must be
        equal. A job that names a base model (`[job] base`) is called with its folder here, any other without."""
        ...

    def dataset(self, data: "SiloData", split: str) -> "Dataset":
        """The records of `split`: "train", or what the job evaluates on, such as "validation"."""
        ...

    def loss(self, model: "torch.nn.Module", batch: Any) -> "torch.Tensor":
        """A scalar to minimise."""
        ...


class Dataset(Protocol):
    """What torch calls a map-style data set. With `__getitems__` a batch is read in one call."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Any: ...


class Garbage(Refused):
    """The job's code returned something that is not what it should be. `kind` is one word, told to the job's
    owner."""

    def __init__(self, kind: str, message: str, culprit: Callable[..., Any] | None = None) -> None:
        """`culprit`: the job's function that returned it."""
        super().__init__(Reason.TASK_GARBAGE, message)
        self.kind = kind
        self.culprit = culprit


def _unchanged(record: Any) -> Any:
    return record


@dataclass(frozen=True)
class SiloData:
    """The data a silo binds to a job: a path, this site's own loader parameters, and its own view of a record."""

    path: Path
    params: Mapping[str, Param]
    transform: Callable[[Any], Any] = _unchanged  # of one record; managed training applies it by itself

    def split(self, key: str | bytes | int, *, fractions: Sequence[float] = FRACTIONS) -> str:
        """ "train", "validation" or "test", from a hash of the record's or its subject's key alone.

        So a subject stays in its split when records are added, reordered, or read by another program. `fractions` are
        the shares of the three, in that order, adding up to 1. Raises ValueError for other fractions.
        """
        if len(fractions) != len(SPLITS) or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-9:
            raise ValueError(f"fractions {fractions} are not three shares that add up to 1")
        data = key if isinstance(key, bytes) else str(key).encode()
        place = int.from_bytes(hashlib.sha256(data).digest()[:8], "big") / 2**64
        bound = 0.0
        for split, fraction in zip(SPLITS, fractions, strict=True):
            bound += fraction
            if place < bound:
                return split
        return next(
            split for split, fraction in reversed(list(zip(SPLITS, fractions, strict=True))) if fraction
        )


def load_task(archive: Path, reference: str, params: Mapping[str, Param]) -> Task:
    """`"task.py:Digits"` of the unpacked archive, built with `params`. Runs the job's code, and raises what it
    raises.

    Raises Garbage when there is no such class or it lacks a required method.
    """
    file, _, name = reference.partition(":")
    module = import_file(archive / file, Path(file).stem)
    factory = getattr(module, name, None)
    if not callable(factory):
        raise Garbage("NoSuchTask", f"{file} has no class {name}")
    task = factory(**params)
    if not isinstance(task, Task):
        raise Garbage(
            "NoTask", f"{reference} needs the methods model(), dataset(data, split) and loss(model, batch)"
        )
    return task


def import_file(path: Path, name: str) -> ModuleType:
    """Import one file as the module `name`; files beside it become importable too."""
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise Garbage("NoSuchFile", f"{path.name} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: classes look their module up
    spec.loader.exec_module(module)
    return module


def load_transform(reference: str) -> Callable[[Any], Any]:
    """`"/etc/silo/transform.py:normalise"`, a function of the silo. Raises what importing it raises."""
    file, _, name = reference.rpartition(":")
    function: Callable[[Any], Any] = getattr(import_file(Path(file), "silo_transform"), name)
    return function


def metrics_of(values: Any, culprit: Callable[..., Any]) -> dict[str, float]:
    """What an evaluation returned, as finite floats. Raises Garbage."""
    if not isinstance(values, Mapping):
        raise Garbage(
            "MetricsNotAMapping", f"evaluation returned {type(values).__name__}, not a dict", culprit
        )
    metrics: dict[str, float] = {}
    for name, value in values.items():
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = float("nan")
        if not isinstance(name, str) or not number - number == 0:
            raise Garbage("MetricsNotNumbers", f"metric {name!r} is {value!r}, not a finite number", culprit)
        metrics[name] = number
    return metrics


def records(dataset: Dataset, indices: Iterable[int], transform: Callable[[Any], Any]) -> list[Any]:
    """Records by index, each through the silo's transform."""
    wanted = list(indices)
    fetch = getattr(dataset, "__getitems__", None)
    found = fetch(wanted) if fetch else [dataset[index] for index in wanted]
    return [transform(record) for record in found]
