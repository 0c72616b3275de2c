"""The two lines everyone asks for: each silo by itself, and all records in one place.

The same task, loop and optimizer as in the federation. What is tuned is for how long.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

from anabranch.terms import JobFile, parse_job_file
from silo_agent.training.task import load_task
from simulator.flat import Flat
from simulator.managed import ManagedTrainer

Told = dict[str, float]  # by the names of the task's metrics


@dataclass(frozen=True)
class Trial:
    """As the comparison beside it."""

    job: Path
    tuning_seed: int
    seeds: Sequence[int]


@dataclass(frozen=True)
class Line:
    tasks: int  # of local_steps steps, chosen on validation records
    runs: list[Told]  # of the test records, one for each seed


def local(trial: Trial, place: Path, tasks: Sequence[int]) -> Line:
    """Each silo trains on its own records and is measured on its own."""
    return _line(trial, sorted((place / "silos").iterdir()), tasks)


def pooled(trial: Trial, place: Path, tasks: Sequence[int]) -> Line:
    """One model for everyone, trained on everything."""
    return _line(trial, [place / "all.npz"], tasks)


def _line(trial: Trial, data: Sequence[Path], tasks: Sequence[int]) -> Line:
    file = parse_job_file(trial.job.read_text(), str(trial.job))
    sign = 1 if file.evaluation.mode == "max" else -1
    grown = partial(_grown, trial.job.parent, file, data)
    tuned = grown(tasks, trial.tuning_seed, "validation")
    best = max(tasks, key=lambda count: sign * tuned[count]["mean"])
    return Line(best, [grown([best], seed, "test")[best] for seed in trial.seeds])


def _grown(
    folder: Path, file: JobFile, data: Sequence[Path], tasks: Sequence[int], seed: int, split: str
) -> dict[int, Told]:
    """What models know after so many tasks; one for each file of `data`."""
    seeded = file.model_copy(update={"job": file.job.model_copy(update={"seed": seed})})
    task = partial(load_task, folder, file.job.task, file.job.params)
    found: dict[int, list[Told]] = {count: [] for count in tasks}
    with tempfile.TemporaryDirectory() as scratch:
        trainer = ManagedTrainer(task, seeded, data, None, Path(scratch))
        for silo in range(len(data)):
            model, done = trainer.initial, 0
            for count in tasks:
                steps = (count - done) * file.training.local_steps
                trained = trainer.train("", silo, f"{silo}-{done}", model, done, steps)
                model, done = Flat(model.manifest, model.values + trained.delta.values), count
                found[count].append(dict(trainer.evaluate("", silo, "look", model, done, split)[0]))
    return {count: _together(told, file.evaluation.mode) for count, told in found.items()}


def _together(told: Sequence[Told], mode: str) -> Told:
    """The metrics of several models, each of its own silos, as if one had made them."""
    each = {name: value for one in told for name, value in one.items() if name.startswith("of_")}
    worst = min(each.values()) if mode == "max" else max(each.values())
    return {"mean": fmean(each.values()), "worst": worst, **each}
