"""A program of its own: what each silo would get without the federation, and what the federation's models are worth.

    python -m console.demo.local PLAN.json RESULT.json

It is the demo's only code that imports torch, and no other module imports it. It runs the job's own task on the same
records the silos trained on, outside any silo, which only a demo can do. Local training is given every advantage: at
least `Plan.steps` steps, and of all the points it passed the one that did best on the silo's own held-out records, in
hindsight. The federated model is simply the last one.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader

from console.demo.plan import Plan, SiloPlan
from silo_agent.training.task import SiloData, load_task

LOOKS = 40  # points of a local training at which it is evaluated


def evaluate_all(plan: Plan) -> dict[str, Any]:
    """`{"versions": {n: accuracy}, "ema": accuracy, "silos": {name: {"local", "federated", "tuned"}}}`.

    Every accuracy is a fraction; "own" is on the silo's held-out records, "all" on all silos' held-out records.
    """
    torch.set_num_threads(1)
    torch.manual_seed(plan.seed)
    task: Any = load_task(Path(plan.folder), plan.task, {})
    model = task.model()
    everything = _batches(task, plan.together, "validation", 512)
    curve = {}
    for number, path in plan.versions.items():
        model.load_state_dict(load_file(path), strict=False)
        curve[number] = _accuracy(task, model, everything)
    ema = None
    if plan.ema is not None:
        model.load_state_dict(load_file(plan.ema), strict=False)
        ema = _accuracy(task, model, everything)
    return {
        "versions": curve,
        "ema": ema,
        "silos": {silo.name: _silo(plan, task, model, silo, everything) for silo in plan.silos},
    }


def _silo(plan: Plan, task: Any, model: nn.Module, silo: SiloPlan, everything: Any) -> dict[str, Any]:
    own = _batches(task, silo.data, "validation", 512)
    model.load_state_dict(load_file(plan.initial), strict=False)
    path = _train(plan, task, model, silo, plan.steps, plan.learning_rate, LOOKS, (own, everything))
    best = max(path, key=lambda point: (point["own"], point["steps"]))
    model.load_state_dict(load_file(plan.head), strict=False)
    federated = {"own": _accuracy(task, model, own), "all": _accuracy(task, model, everything)}
    tuned = _train(plan, task, model, silo, plan.tune_steps, plan.tune_learning_rate, 1, (own, everything))[
        -1
    ]
    return {
        "local": {**best, "trained_steps": plan.steps, "path": path},
        "federated": federated,
        "tuned": tuned,
    }


def _train(
    plan: Plan,
    task: Any,
    model: nn.Module,
    silo: SiloPlan,
    steps: int,
    rate: float,
    looks: int,
    on: tuple[Any, Any],
) -> list[dict[str, Any]]:
    """Train `model` in place for `steps` batches; the accuracies at `looks` evenly spaced points."""
    torch.manual_seed(plan.seed)
    batches = _batches(task, silo.data, "train", plan.batch_size, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    at = {round(steps * look / looks) for look in range(1, looks + 1)}
    points: list[dict[str, Any]] = []
    done = 0
    while done < steps:
        for batch in batches:
            optimizer.zero_grad()
            task.loss(model, batch).backward()
            optimizer.step()
            done += 1
            if done in at:
                own, everything = (_accuracy(task, model, records) for records in on)
                points.append({"steps": done, "own": own, "all": everything})
            if done == steps:
                break
    return points


def _accuracy(task: Any, model: nn.Module, batches: Any) -> float:
    model.eval()
    with torch.no_grad():
        score = task.evaluate(model, batches)["accuracy"]
    model.train()
    return float(score)


def _batches(task: Any, data: str, split: str, size: int, shuffle: bool = False) -> Any:
    return DataLoader(task.dataset(SiloData(Path(data), {}), split), batch_size=size, shuffle=shuffle)


def main(arguments: list[str]) -> None:
    plan, result = Path(arguments[0]), Path(arguments[1])
    found: Mapping[str, Any] = evaluate_all(Plan.model_validate_json(plan.read_bytes()))
    result.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
