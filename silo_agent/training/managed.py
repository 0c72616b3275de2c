"""Managed training: the platform owns the loop, so what a silo does in a cycle is what the job terms say.

One `Managed` lives as long as its process. Every cycle starts from the base version with a fresh optimizer and random
state drawn from (seed, lease); only the position in the data goes on. So a cycle's result depends on the lease, the
base, the data and the position, and a cycle that was killed and resumed gives the same bytes as one that was not.

Two files in the work folder hold what that takes: `cycle.safetensors`, the cycle in progress as of its last save, and
`between.safetensors`, written when a cycle ends, with the position before and after it: the same lease again starts
from "before".
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from anabranch.terms import JobFile, Optimizer, seconds
from silo_agent.training import saved, tensors
from silo_agent.training.adapters import adapted, base_digest
from silo_agent.training.channel import Evaluate, Evaluated, Progress, Train, Trained
from silo_agent.training.course import Course, Position, seed_of, shuffled
from silo_agent.training.padding import pad
from silo_agent.training.speed import Meter, counts
from silo_agent.training.task import Dataset, Garbage, SiloData, Task, metrics_of, records

Report = Callable[[Progress], None]
Values = dict[str, torch.Tensor]


@dataclass
class _Run:
    """A cycle in progress."""

    optimizer: torch.optim.Optimizer
    course: Course
    start: Position
    base: Values  # trainable parameters of the base version, where a proximal term pulls towards them
    meter: Meter
    step: int = 0
    loss: float = 0.0  # sum over the steps so far


class Managed:
    """A task, its model and its data in this process. Runs the job's code: may raise anything it raises, and
    Garbage."""

    def __init__(
        self,
        task: Task,
        file: JobFile,
        data: SiloData,
        work: Path,
        base: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        rank: int | None = None,
    ) -> None:
        """`base`: the folder that the job's model binding names, if it names one. `rank`: what this silo trains of
        LoRA's pairs; None: all.
        """
        self._task, self._file, self._data, self._clock = task, file, data, clock
        self._cycle_file, self._between_file = work / "cycle.safetensors", work / "between.safetensors"
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._datasets: dict[str, Dataset] = {}
        model = build_model(task, file, base)
        self.manifest = tensors.manifest_of(model, file.training.buffers)
        self.base_sha256 = base_digest(model, file.training.buffers)
        self.model = model.to(self._device)
        if rank is not None:
            pad(self.model, rank)
        self._pristine = {name: buffer.detach().clone() for name, buffer in self.model.named_buffers()}

    def train(
        self, request: Train, report: Report, leaving: Callable[[], bool] = lambda: False
    ) -> Trained | None:
        """Run the cycle, or the rest of it, and write the update to `request["out"]`.

        None when `leaving` became true first: the cycle is saved and the same lease resumes it.
        """
        cycle, steps, save_every = request["cycle"], request["steps"], seconds(self._file.training.save_every)
        run = self._begin(request)
        saved_at = self._clock()
        while run.step < steps:
            if leaving():
                self._save(request, run)
                return None
            loss = self._step(run)
            speed = run.meter.speed()
            report(
                {"is": "progress", "cycle": cycle, "step": run.step, "steps": steps, "loss": loss, **speed}
            )
            if self._clock() - saved_at >= save_every:
                self._save(request, run)
                saved_at = self._clock()
        tensors.save_update(self.model, Path(request["parameters"]), Path(request["out"]), self.manifest)
        self._conclude(cycle, run)
        return {
            "is": "trained",
            "cycle": cycle,
            "num_examples": len(self._dataset("train")),
            "steps": steps,
            "metrics": {"loss": run.loss / steps},
        }

    def evaluate(self, request: Evaluate, report: Report) -> Evaluated:
        """Metrics of a version on one split. Leaves nothing behind."""
        evaluate = getattr(self._task, "evaluate", None)
        if evaluate is None:
            raise Garbage("NoEvaluate", "the task has no method evaluate(model, batches)")
        dataset = self._dataset(request["split"])
        if not len(dataset):
            raise Garbage("EmptySplit", f"there are no records in split {request['split']!r}")
        self._load(request["cycle"], Path(request["parameters"]))
        self.model.eval()
        saved.seed_all(seed_of(self._file.job.seed, request["cycle"]))
        with torch.no_grad():
            metrics = metrics_of(evaluate(self.model, self._batches(dataset, request, report)), evaluate)
        return {
            "is": "evaluated",
            "cycle": request["cycle"],
            "metrics": metrics,
            "num_examples": len(dataset),
        }

    def _begin(self, request: Train) -> _Run:
        seed, cycle = self._file.job.seed, request["cycle"]
        between = saved.read(self._between_file) or {}
        place = between.get("start" if between.get("cycle") == cycle else "end", {})
        start = Position(**place.get("position", {}))
        self._load(cycle, Path(request["parameters"]))
        base = {} if self._file.training.proximal is None else self._trainable()
        self.model.train()
        state = saved.read(self._cycle_file) or {}
        resumed = state.get("key") == _key(request)
        position = Position(**state["position"]) if resumed else start
        run = _Run(self._optimizer(), Course(seed, self._order(), position), start, base, Meter(self._clock))
        # Random state comes last: whether anything above draws depends on what this process did before.
        if not resumed:
            saved.seed_all(seed_of(seed, cycle))
            return run
        run.step, run.loss = state["step"], state["loss"]
        _copy_into(dict(self.model.named_parameters()), state["parameters"])
        _copy_into(dict(self.model.named_buffers()), state["buffers"])
        run.optimizer.load_state_dict(state["optimizer"])
        saved.restore_random_state(state["random"])
        return run

    def _step(self, run: _Run) -> float:
        dataset = self._dataset("train")
        indices = run.course.take(min(self._file.training.batch_size, len(dataset)))
        batch = self._batch(dataset, indices)
        run.meter.count(len(indices), counts(batch)[1])
        run.optimizer.zero_grad(set_to_none=True)
        loss = _checked(self._task.loss(self.model, batch), self._task.loss)
        loss.backward()  # type: ignore[no-untyped-call]
        self._pull(run.base)
        run.optimizer.step()
        run.step += 1
        run.loss += (value := loss.item())
        return value

    @torch.no_grad()
    def _pull(self, base: Values) -> None:
        """FedProx: the gradient of (mu/2) * |w - base|^2. The reported loss stays the task's own."""
        for name, parameter in self.model.named_parameters():
            if name in base and parameter.grad is not None:
                parameter.grad.add_(parameter - base[name], alpha=self._file.training.proximal or 0.0)

    def _trainable(self) -> Values:
        named = self.model.named_parameters()
        return {name: parameter.detach().clone() for name, parameter in named if parameter.requires_grad}

    def _save(self, request: Train, run: _Run) -> None:
        try:
            saved.write(
                self._cycle_file,
                {
                    "key": _key(request),
                    "step": run.step,
                    "loss": run.loss,
                    "position": asdict(run.course.position),
                    "parameters": {n: p for n, p in self.model.named_parameters() if p.requires_grad},
                    "buffers": dict(self.model.named_buffers()),
                    "optimizer": run.optimizer.state_dict(),
                    "random": saved.random_state(),
                },
            )
        except (
            TypeError
        ) as error:  # an optimizer of the job's own: training goes on, a kill costs the whole cycle
            print(f"this cycle cannot be saved: {error}", file=sys.stderr)

    def _conclude(self, cycle: str, run: _Run) -> None:
        """After the update is written. Killed before: the lease is done again, from the same position."""
        start: dict[str, Any] = {"position": asdict(run.start)}
        end: dict[str, Any] = {"position": asdict(run.course.position)}
        if self._file.training.buffers == "local":
            start["buffers"], end["buffers"] = self._own_buffers(cycle), dict(self.model.named_buffers())
        saved.write(self._between_file, {"cycle": cycle, "start": start, "end": end})
        self._cycle_file.unlink(missing_ok=True)

    def _load(self, cycle: str, parameters: Path) -> None:
        """The base version into the model. Buffers that do not travel: this silo's own, or as the model was made."""
        own = self._own_buffers(cycle) if self._file.training.buffers == "local" else self._pristine
        _copy_into(dict(self.model.named_buffers()), own)
        tensors.load(self.model, parameters, self.manifest)

    def _own_buffers(self, cycle: str) -> Values:
        between = saved.read(self._between_file) or {}
        place = between.get("start" if between.get("cycle") == cycle else "end", {})
        buffers: Values = place.get("buffers", self._pristine)
        return buffers

    def _optimizer(self) -> torch.optim.Optimizer:
        make = getattr(self._task, "optimizer", None)
        if make is None:
            return optimizer_for(self.model, self._file.training.optimizer)
        optimizer = make(self.model)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise Garbage("NotAnOptimizer", f"optimizer(model) returned {type(optimizer).__name__}", make)
        return optimizer

    def _order(self) -> Callable[[torch.Generator], Any]:
        dataset, sampler = self._dataset("train"), getattr(self._task, "sampler", None)
        if sampler is None:
            return shuffled(len(dataset))
        return lambda generator: sampler(dataset, generator)

    def _dataset(self, split: str) -> Dataset:
        if split not in self._datasets:
            saved.seed_all(seed_of(self._file.job.seed, split))
            dataset = self._task.dataset(self._data, split)
            if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
                kind = type(dataset).__name__
                raise Garbage(
                    "NotADataset",
                    f"dataset() returned {kind}; it needs a length and an index",
                    self._task.dataset,
                )
            self._datasets[split] = dataset
        return self._datasets[split]

    def _batches(self, dataset: Dataset, request: Evaluate, report: Report) -> Iterator[Any]:
        size, count = self._file.training.batch_size, len(dataset)
        for start in range(0, count, size):
            yield self._batch(dataset, range(start, min(start + size, count)))
            done = min(start + size, count)
            report({"is": "progress", "cycle": request["cycle"], "step": done, "steps": count})

    def _batch(self, dataset: Dataset, indices: Any) -> Any:
        collate = getattr(self._task, "collate", torch.utils.data.default_collate)
        return _to(collate(records(dataset, indices, self._data.transform)), self._device)


def build_model(task: Task, file: JobFile, base: Path | None = None) -> torch.nn.Module:
    """`Task.model()` under the job's seed, then the job's adapter: the same model at the submitter and at every silo.

    Raises Garbage, also when the job names a base model and none is given.
    """
    saved.seed_all(seed_of("model", file.job.seed))
    if file.job.base is None:
        model = task.model()
    elif base is None:
        raise Garbage(
            "NoBase", f"the job reads the base model {file.job.base!r}: give its folder with --base PATH"
        )
    else:
        model = task.model(base)
    if not isinstance(model, torch.nn.Module):
        raise Garbage(
            "NotAModel", f"model() returned {type(model).__name__}, not a torch.nn.Module", task.model
        )
    saved.seed_all(seed_of("adapter", file.job.seed))  # whatever making the model drew
    return adapted(model, file.adapter)


def optimizer_for(model: torch.nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """The job file's optimizer over the parameters that require a gradient."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if settings.name == "sgd":
        return torch.optim.SGD(
            parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
    kind = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
    return kind(parameters, lr=settings.lr, weight_decay=settings.weight_decay)


def _key(request: Train) -> dict[str, Any]:
    """What must be equal for a saved cycle to be the rest of this one."""
    return {"cycle": request["cycle"], "version": request["version"], "steps": request["steps"]}


def _checked(loss: Any, culprit: Callable[..., Any]) -> torch.Tensor:
    if not isinstance(loss, torch.Tensor):
        raise Garbage("LossNotATensor", f"loss() returned {type(loss).__name__}, not a tensor", culprit)
    if loss.numel() != 1:
        raise Garbage("LossNotAScalar", f"loss() returned a tensor of shape {tuple(loss.shape)}", culprit)
    if not loss.requires_grad:
        raise Garbage("LossWithoutGradient", "loss() returned a tensor that no parameter leads to", culprit)
    if not torch.isfinite(loss):
        raise Garbage(
            "LossNotFinite", f"the loss is {loss.item()}; lower the learning rate or check the data", culprit
        )
    return loss


@torch.no_grad()
def _copy_into(live: Values, values: Values) -> None:
    for name, value in values.items():
        live[name].copy_(value)


def _to(batch: Any, device: torch.device) -> Any:
    """Every tensor in nested containers, and anything else that knows `.to`, onto the device."""
    if hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: _to(item, device) for key, item in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_to(item, device) for item in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(_to(item, device) for item in batch)
    return batch
