"""Script mode: the user's own loop, with `federated(model)` around it.

    from silo_agent import federated

    with federated(model) as fl:
        for cycle in fl:                      # the base version is loaded into `model`
            train(model, loader)              # your code, unchanged
            cycle.submit(num_examples=len(loader.dataset), metrics={"loss": loss})

With a `transformers.Trainer` the body of the loop is `cycle.train(trainer)`.

Run outside a federation, the same script does one cycle by itself and says so: nothing is sent anywhere.

A silo may run a script as several processes, the ranks (`ranks.py`). Each gets every request and loads the base; only
rank 0 writes the update.
"""

import os
import runpy
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from anabranch.terms import Job, JobFile, parse_job_file
from anabranch.wire.tensors import Manifest, check_values
from silo_agent.training import saved, tensors
from silo_agent.training.channel import Evaluate, Message, Request, Train
from silo_agent.training.course import seed_of
from silo_agent.training.speed import Meter
from silo_agent.training.task import Garbage, SiloData, metrics_of

if TYPE_CHECKING:
    from transformers import Trainer
    from transformers.trainer_utils import TrainOutput

Evaluation = Callable[[torch.nn.Module, str], Mapping[str, Any]]

DATA = "ANABRANCH_DATA"  # environment, outside a federation only: what `fl.data.path` is


class Place(Protocol):
    """Where the script runs: in a federation, on its own, or to have its initial model taken."""

    file: JobFile
    data: SiloData

    def enter(self, model: torch.nn.Module, manifest: Manifest) -> None:
        """The script has handed over its model."""
        ...

    def receive(self) -> Request | None:
        """The next thing to do; None to end."""
        ...

    def send(self, message: Message) -> None: ...

    def leaving(self) -> bool:
        """The agent is stopping: what the script saves now, it can go on from later."""
        ...


_place: Place | None = None  # set by `run`; None: the script was started by a person


class Cycle:
    """One fetch–train–submit."""

    def __init__(
        self, request: Train, config: JobFile, place: Place, model: torch.nn.Module, manifest: Manifest
    ) -> None:
        self.version = request["version"]  # the base
        self.steps = request["steps"]  # local steps the job asks for
        self.step = 0  # steps done; it counts by itself: set it only when you go on from a save
        self.config = config  # the job file
        self.seed = seed_of(config.job.seed, request["cycle"])  # of this cycle, the same when it is resumed
        self.submitted = False
        self._meter = Meter()
        self._request, self._place, self._model, self._manifest = request, place, model, manifest

    @property
    def folder(self) -> Path:
        """For saves of this cycle: empty when it begins, and as it was left when the agent was killed inside it."""
        folder = _saves(self._request) / self._request["cycle"]
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def leaving(self) -> bool:
        """The agent is stopping: save to `folder` and end the script, and the cycle goes on from there later."""
        return self._place.leaving()

    def train(
        self,
        trainer: "Trainer",
        *,
        num_examples: int | None = None,
        metrics: Mapping[str, Any] | None = None,
    ) -> "TrainOutput":
        """`trainer.train()` for this cycle, then `submit`. Returns what `trainer.train()` does.

        It goes on from the last save of a cycle that was cut off. `num_examples`: by default the length of the
        trainer's data set. Raises ValueError for a trainer whose optimizer has already seen another cycle.
        """
        from silo_agent.training import huggingface

        examples = len(trainer.train_dataset) if num_examples is None else num_examples
        output = huggingface.train(self, trainer)
        self.submit(num_examples=examples, metrics={"loss": output.training_loss, **(metrics or {})})
        return output

    def submit(self, *, num_examples: int, metrics: Mapping[str, Any] | None = None) -> None:
        """Hand in the model as it is now. Once per cycle, on every rank. Raises ValueError the second time, Garbage for
        no numbers."""
        if self.submitted:
            raise ValueError("this cycle has been submitted already")
        numbers = metrics_of(metrics or {}, self.submit)
        if _rank() == 0:
            base, out = Path(self._request["parameters"]), Path(self._request["out"])
            tensors.save_update(self._model, base, out, self._manifest)
        else:
            tensors.gather(self._model, self._manifest)
        self._place.send(
            {
                "is": "trained",
                "cycle": self._request["cycle"],
                "num_examples": int(num_examples),
                "steps": self.step,
                "metrics": numbers,
            }
        )
        self.submitted = True

    def _count(self, *_: object) -> None:
        """An optimizer has made a step."""
        self.step += 1
        speed = self._meter.speed()
        self._place.send(
            {
                "is": "progress",
                "cycle": self._request["cycle"],
                "step": self.step,
                "steps": max(self.step, self.steps),
                "samples_per_second": speed["samples_per_second"],
                "tokens_per_second": speed["tokens_per_second"],
            }
        )


class Federation:
    """What `federated` returns: a context manager to iterate over once."""

    def __init__(self, model: torch.nn.Module, evaluate: Evaluation | None) -> None:
        self._model = model
        self._evaluate = evaluate
        self._place = _place or Alone()
        self._manifest = tensors.manifest_of(model, self._place.file.training.buffers)
        self._open: Cycle | None = None

    @property
    def data(self) -> SiloData:
        """The silo's data: `.path`, `.params`, `.split(key)`, `.transform(record)`."""
        return self._place.data

    def __enter__(self) -> Self:
        self._place.enter(self._model, self._manifest)
        return self

    def __iter__(self) -> Iterator[Cycle]:
        while (request := self._place.receive()) is not None:
            if request["do"] == "evaluate":
                self._answer(request)
            elif request["do"] == "train":
                yield from self._cycle(request)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._require_submitted()

    def _cycle(self, request: Train) -> Iterator[Cycle]:
        tensors.load(self._model, Path(request["parameters"]), self._manifest)
        self._model.train()
        for folder in _saves(request).glob("*"):
            if folder.name != request["cycle"] and _rank() == 0:
                shutil.rmtree(folder, ignore_errors=True)
        cycle = Cycle(request, self._place.file, self._place, self._model, self._manifest)
        saved.seed_all(cycle.seed)
        self._open = cycle
        hook = register_optimizer_step_post_hook(cycle._count)
        uncount = cycle._meter.watch(self._model)
        try:
            yield cycle
        finally:
            hook.remove()
            uncount()
        self._require_submitted()

    def _require_submitted(self) -> None:
        if self._open is not None and not self._open.submitted:
            raise Garbage("NotSubmitted", "the loop's body ended without cycle.submit(num_examples=...)")

    def _answer(self, request: Evaluate) -> None:
        cycle = request["cycle"]
        if self._evaluate is None:
            self._place.send(
                {
                    "is": "failed",
                    "cycle": cycle,
                    "reason": "task_failed",
                    "exception": "EvaluationUnsupported",
                }
            )
            return
        tensors.load(self._model, Path(request["parameters"]), self._manifest)
        self._model.eval()
        with torch.no_grad():
            metrics = metrics_of(self._evaluate(self._model, request["split"]), self._evaluate)
        examples = int(metrics.pop("num_examples", 0))
        self._place.send({"is": "evaluated", "cycle": cycle, "metrics": metrics, "num_examples": examples})


def federated(model: torch.nn.Module, *, evaluate: Evaluation | None = None) -> Federation:
    """Put `model` into the job this script runs in. Use it as `with federated(model) as fl: for cycle in fl: …`.

    `evaluate(model, split)` answers evaluations: a dict of numbers, of which `num_examples` is the count of records.
    Without it they are reported as unsupported. The model must be the same at every silo when it is handed over: what
    is not trained is never sent. Raises Garbage for a model with nothing to train.
    """
    return Federation(model, evaluate)


def _rank() -> int:
    """Of this process, in the words of torchrun, which an agent that starts several takes over."""
    return int(os.environ.get("RANK", "0"))


def _saves(request: Train) -> Path:
    return Path(request["out"]).parent / "cycles"


def run(script: Path, place: Place) -> None:
    """Run a script as `python script` would, in `place`. Raises what the script raises."""
    global _place
    _place = place
    saved.seed_all(seed_of("model", place.file.job.seed))
    sys.argv = [str(script)]
    sys.path.insert(0, str(script.parent))
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        _place = None


class Alone:
    """One dry cycle from the model as it is, for a script that a person started by hand."""

    def __init__(self) -> None:
        script = Path(sys.argv[0])
        beside = script.parent / "job.toml"
        self.file = (
            parse_job_file(beside.read_text("utf-8"), str(beside))
            if beside.is_file()
            else JobFile(job=Job(name="try", task="train.py"))
        )
        self.data = SiloData(Path(os.environ.get(DATA, ".")), {})
        self._folder = tempfile.TemporaryDirectory(prefix="anabranch-")
        self._requests: list[Request] = []

    def enter(self, model: torch.nn.Module, manifest: Manifest) -> None:
        folder = Path(self._folder.name)
        self._manifest, self._out = manifest, folder / "update.safetensors"
        tensors.save_values(model, folder / "base.safetensors", manifest)
        train: Train = {
            "do": "train",
            "cycle": "dry-run",
            "version": 0,
            "parameters": str(folder / "base.safetensors"),
            "steps": self.file.training.local_steps,
            "out": str(self._out),
        }
        self._requests.append(train)

    def receive(self) -> Request | None:
        if self._requests:
            return self._requests.pop()
        self._folder.cleanup()
        return None

    def leaving(self) -> bool:
        return False

    def send(self, message: Message) -> None:
        if message["is"] == "trained" and _rank() == 0:
            size, norm = self._manifest.file_bytes, check_values(self._out, self._manifest)
            print(
                f"anabranch: dry run, nothing was sent. One cycle: {message['steps']} optimizer steps, "
                f"an update of {size} bytes, norm {norm:.4g}. To federate this script: anabranch job submit",
                file=sys.stderr,
            )
