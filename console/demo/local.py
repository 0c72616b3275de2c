"""A program of its own: what each silo would get without the federation, and what the federation's models are worth.

    python -m console.demo.local PLAN.json RESULT.json

It trains and evaluates with the very loop that silos run, `silo_agent.training.managed`, on the same records, outside
any silo, which only a demo can do. No other module imports this one, since that loop brings torch. Local training is
given every advantage: at least twice the steps of the busiest silo, and of all the points it passed the one that did
best on the silo's own held-out records, in hindsight. Of the federated model nothing is chosen.
"""

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anabranch.terms import JobFile
from anabranch.wire.tensors import read_tensors, write_tensors
from console.demo.plan import Plan, SiloPlan
from silo_agent.training.managed import Managed
from silo_agent.training.task import SiloData, load_task

SPLIT = "validation"


@dataclass(frozen=True)
class Judges:
    """Two sets of held-out records: one silo's own, and all silos' together."""

    own: Managed
    everything: Managed

    def scores(self, parameters: Path) -> dict[str, float]:
        return {"own": accuracy(self.own, parameters), "all": accuracy(self.everything, parameters)}


def evaluate_all(plan: Plan, scratch: Path) -> dict[str, Any]:
    """`{"versions": {n: accuracy}, "averages": {n: accuracy}, "silos": {name: {"local", "federated", "tuned"}}}`.

    Every accuracy is a fraction; "own" is on the silo's held-out records, "all" on all silos' held-out records.
    """
    everything = _managed(plan, plan.file, plan.together, scratch / "together")
    return {
        "versions": {number: accuracy(everything, Path(path)) for number, path in plan.versions.items()},
        "averages": {number: accuracy(everything, Path(path)) for number, path in plan.averages.items()},
        "silos": {silo.name: _silo(plan, silo, everything, scratch / silo.name) for silo in plan.silos},
    }


def accuracy(judge: Managed, parameters: Path) -> float:
    """Of the model in `parameters`, on the judge's held-out records."""
    answer = judge.evaluate(
        {"do": "evaluate", "cycle": "0", "version": 0, "parameters": str(parameters), "split": SPLIT}, _silent
    )
    return answer["metrics"]["accuracy"]


def _silo(plan: Plan, silo: SiloPlan, everything: Managed, scratch: Path) -> dict[str, Any]:
    alone = _managed(plan, plan.file, silo.data, scratch / "alone")
    judges = Judges(alone, everything)
    path = _train(alone, Path(plan.initial), plan.looks, plan.steps // plan.looks, scratch, judges)
    best = max(path, key=lambda point: (point["own"], point["steps"]))
    tuning = _managed(plan, _tuning(plan), silo.data, scratch / "tuning")
    tuned = _train(tuning, Path(plan.model), 1, plan.tune_steps, scratch, judges)[-1]
    return {
        "local": {**best, "trained_steps": path[-1]["steps"], "path": path},
        "federated": judges.scores(Path(plan.model)),
        "tuned": tuned,
    }


def _train(
    silo: Managed, start: Path, looks: int, steps: int, scratch: Path, judges: Judges
) -> list[dict[str, Any]]:
    """`looks` cycles of `steps` batches, each from where the last one ended; the accuracies after each."""
    update, current = scratch / "update.safetensors", scratch / "current.safetensors"
    base, points = start, []
    for look in range(1, looks + 1):
        silo.train(
            {
                "do": "train",
                "cycle": str(look),
                "version": 0,
                "parameters": str(base),
                "steps": steps,
                "out": str(update),
            },
            _silent,
        )
        _apply(silo, base, update, current)
        base = current
        points.append({"steps": look * steps, **judges.scores(current)})
    return points


def _apply(silo: Managed, base: Path, update: Path, out: Path) -> None:
    """What a server alone with this silo would publish: the base plus the delta, and the buffers as they came."""
    before, change = (read_tensors(path, silo.manifest) for path in (base, update))
    after = {
        spec.name: before[spec.name] + change[spec.name] if spec.role == "trainable" else change[spec.name]
        for spec in silo.manifest.specs
    }
    out.unlink(missing_ok=True)
    write_tensors(out, silo.manifest, after)


def _managed(plan: Plan, file: JobFile, data: str, work: Path) -> Managed:
    work.mkdir(parents=True)
    task = load_task(Path(plan.folder), file.job.task, file.job.params)
    return Managed(task, file, SiloData(Path(data), {}), work)


def _tuning(plan: Plan) -> JobFile:
    optimizer = plan.file.training.optimizer.model_copy(update={"lr": plan.tune_learning_rate})
    return plan.file.model_copy(
        update={"training": plan.file.training.model_copy(update={"optimizer": optimizer})}
    )


def _silent(_: object) -> None:
    return


def main(arguments: list[str]) -> None:
    plan, result = Path(arguments[0]), Path(arguments[1])
    with tempfile.TemporaryDirectory(prefix="anabranch-demo-") as scratch:
        found = evaluate_all(Plan.model_validate_json(plan.read_bytes()), Path(scratch))
    result.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
