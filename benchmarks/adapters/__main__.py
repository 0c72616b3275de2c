"""`python -m benchmarks.adapters`: kinds of adapters in one federation, in virtual time; a table on standard output.

Of scikit-learn's digits a network learns one half upright; eight silos adapt it to the other half, turned by 90 degrees.
"""

import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from anabranch.terms import parse_job_file
from benchmarks.adapters.job.task import Network
from simulator.comparison import Entrant, entered
from simulator.engine import Run, Trainer, silo_names
from simulator.flat import Flat
from simulator.memory import Memory
from simulator.rows import Rows
from simulator.run import Told, prepared
from simulator.scenario import Scenario, read_scenario

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)
LEARNT, TESTED = 700, 397  # records of the base, and that models are measured on; the others are the silos'
LOW = {f"silo-{number:05}": 2 for number in range(4)}  # half of the silos train 2 of 16 components

WAYS: Mapping[str, dict[str, Any]] = {
    "LoRA, rank 16": {},
    "A frozen, rank 16": {"freeze_a": True},
    "rank 16, half of the silos 2": {"ranks": LOW},
    "A frozen, rank 16, half of the silos 2": {"freeze_a": True, "ranks": LOW},
    "LoRA, rank 2": {"rank": 2, "alpha": 2.0},
    "head alone": {"kind": "head", "heads": ["head"]},
}
Matrices = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Result:
    accuracy: float
    up: int  # bytes of an update without [link]
    of_product: float  # what averaging A and B misses, relative to the mean of BA
    of_step: float  # relative to what silos changed of BA


def main() -> int:
    torch.set_num_threads(1)
    job, found = parse_job_file((HERE / "job/job.toml").read_text()), {}
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        records(place)
        for name, adapter in WAYS.items():
            # A head's keys stand alone; those of LoRA are added to the job's.
            like = job.model_copy(update={"adapter": None}) if "kind" in adapter else job
            file = entered(like, Entrant(name="way", adapter=adapter), {})
            found[name] = [one(Told(file, HERE / "job"), place, seed) for seed in SEEDS]
            print(name, *found[name], file=sys.stderr, flush=True)
    print(table(found))
    return 0


def records(place: Path) -> None:
    """train.npz, test.npz, and base/, which has seen neither."""
    digits = load_digits()
    x, y = (digits.images / 16).astype(np.float32), digits.target
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(y))
    upright, test, train = np.split(order, [LEARNT, LEARNT + TESTED])
    turned = np.rot90(x, axes=(1, 2)).reshape(len(y), 64)
    np.savez(place / "train.npz", x=turned[train], y=y[train])
    np.savez(place / "test.npz", x=turned[test], y=y[test])
    torch.manual_seed(0)
    model = Network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    inputs, labels = torch.from_numpy(x[upright].reshape(LEARNT, 64)), torch.from_numpy(y[upright])
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    (place / "base").mkdir()
    save_file(model.state_dict(), place / "base/model.safetensors")
    shutil.copy(HERE / "scenario.toml", place / "scenario.toml")


def one(job: Told, place: Path, seed: int) -> Result:
    """A run, and from its head one more task of every silo, to see what averaging it misses."""
    scenario: Scenario = read_scenario(place / "scenario.toml").model_copy(update={"seed": seed})
    with tempfile.TemporaryDirectory() as scratch:
        planned, trainer = prepared(job, scenario, Path(scratch))
        names = silo_names(scenario)
        server = Memory([planned], names, Rows())
        Run(scenario, server, trainer, Rows()).play()
        head = server.parameters(planned.name, server.head(planned.name))
        accuracy = trainer.measure(planned.name, head, "test")[0]["accuracy"]
        updates = [update(trainer, job, silo, head) for silo in range(len(names))]
    return Result(accuracy, planned.manifest.file_bytes, *missed(head, updates))


def update(trainer: Trainer, job: Told, silo: int, head: Flat) -> Flat:
    steps = job.file.training.local_steps
    return trainer.train(job.file.job.name, silo, "last", head, 0, steps).delta


def missed(head: Flat, updates: list[Flat]) -> tuple[float, float]:
    """Of all pairs together, by Frobenius norms. Where no A travels averages are exact, and there is nothing to measure."""
    base, deltas = matrices(head), [matrices(one) for one in updates]
    squares = np.zeros(3)
    for name in [name for name in base if "lora_A" in name]:
        a, b = (
            [base[key] + delta[key] for delta in deltas] for key in (name, name.replace("lora_A", "lora_B"))
        )
        mean = np.mean([left @ right for left, right in zip(b, a, strict=True)], axis=0)
        error = np.mean(b, axis=0) @ np.mean(a, axis=0) - mean
        step = mean - base[name.replace("lora_A", "lora_B")] @ base[name]
        squares += [np.sum(error**2), np.sum(mean**2), np.sum(step**2)]
    error, mean, step = np.sqrt(squares)
    return (float(error / mean), float(error / step)) if mean else (0.0, 0.0)


def matrices(flat: Flat) -> Matrices:
    found = {}
    for spec in flat.manifest.specs:
        values = np.empty(spec.elements, np.float32)
        flat.read(spec.name, 0, spec.elements, values)
        found[spec.name] = values.reshape(spec.shape).astype(np.float64)
    return found


def table(found: Mapping[str, list[Result]]) -> str:
    lines = [
        "| | accuracy | an update, kB | missed of BA | missed of a step |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, results in found.items():
        scores = [one.accuracy for one in results]
        accuracy = f"{fmean(scores):.1%} ± {stdev(scores):.1%}"
        parts = [fmean(getattr(one, key) for one in results) for key in ("of_product", "of_step")]
        of = " | ".join(f"{part:.1%}" if part else "exact" for part in parts)
        lines.append(f"| {name} | {accuracy} | {results[0].up / 1000:.1f} | {of} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
