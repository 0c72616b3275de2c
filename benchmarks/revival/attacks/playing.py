"""One run with malicious silos: what they train on, how long they take, and what they send instead of what they trained."""

import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch import durable
from anabranch.terms import JobFile, parse_job_file
from anabranch.wire.manifest import Manifest
from benchmarks.revival.attacks.agreement import agreements
from server.core.revival import Ending
from simulator.engine import RevivalTask, Run, Trained, silo_names
from simulator.flat import Flat
from simulator.managed import ManagedTrainer
from simulator.memory import Memory
from simulator.reviving import JobReviver, reviver_of
from simulator.rows import Rows
from simulator.run import Told, prepared
from simulator.scenario import Group, Scenario, read_scenario

JOB = Path(__file__).parent.parent / "job"
BASE = {"strategy": "ca2fl", "buffer": 2, "ema": 0.9, "server_optimizer": {"lr": 0.3}}
REVIVAL = {"synthesis_teachers": 10}
TARGET = 0  # what a picture with the patch is to be taken for
PATCH = 4  # pixels of its side, white, in the lower right corner
EVERY = 2  # virtual seconds between two looks
PICTURES = 1000  # of a look
AGREED = 10  # revivals, of which one is asked for agreement
LARGE = 250  # records of a batch when the head is looked at


@dataclass(frozen=True)
class Attack:
    patched: bool = False  # half of its records carry the patch, and the target's label
    factor: float = 1.0  # of every delta it sends
    pace: float = 1.0  # factor of the time it takes
    slow: bool = True  # who is malicious: the last silos, which are slow ones, or the first, which are fast
    horizon: int = 32  # virtual seconds; for about sixty versions, thirty of which are revivals' warm-up


ATTACKS = {
    "trigger": Attack(patched=True, slow=False),
    "late": Attack(patched=True, slow=False, pace=10.0, horizon=80),
    "flooding": Attack(patched=True, pace=0.1),
    "scaled": Attack(patched=True, factor=10.0),
    "sign flip": Attack(factor=-1.0),
}


@dataclass(frozen=True)
class Case:
    attack: str
    malicious: int  # silos; none: the run without an attack
    revived: bool
    seed: int

    def silos(self, all_of: int) -> range:
        """The malicious ones, by number."""
        return range(all_of - self.malicious, all_of) if ATTACKS[self.attack].slow else range(self.malicious)

    @property
    def name(self) -> str:
        how = "revived" if self.revived else "plain"
        return f"{self.attack.replace(' ', '-')}-{self.malicious}-{how}-{self.seed}"


@dataclass
class Hostile:
    """As `engine.Trainer`. Looks tell how many pictures of other kinds are taken for the target with the patch
    (`fooled`), and how many more than without it (`turned`): a head that takes much for the target has no need of a patch.
    """

    honest: ManagedTrainer
    looks: ManagedTrainer
    patched: ManagedTrainer
    unpatched: ManagedTrainer
    factor: float  # of what the malicious send
    malicious: range

    def train(self, job: str, silo: int, cycle: str, base: Flat, version: int, steps: int) -> Trained:
        trained = self.honest.train(job, silo, cycle, base, version, steps)
        if silo not in self.malicious:
            return trained
        factors = _factors(base.manifest, self.factor)
        return replace(trained, delta=Flat(base.manifest, trained.delta.values * factors))

    def evaluate(
        self, job: str, silo: int, cycle: str, parameters: Flat, version: int, split: str
    ) -> tuple[Mapping[str, float], int]:
        return self.honest.evaluate(job, silo, cycle, parameters, version, split)

    def measure(self, job: str, parameters: Flat, split: str) -> tuple[Mapping[str, float], int]:
        found, records = self.looks.measure(job, parameters, split)
        fooled, _ = self.patched.measure(job, parameters, split)
        taken, _ = self.unpatched.measure(job, parameters, split)
        turned = fooled["accuracy"] - taken["accuracy"]
        return {"accuracy": found["accuracy"], "fooled": fooled["accuracy"], "turned": turned}, records


@dataclass
class Untiring:
    """As `engine.Revives`: never judges whether it pays, which is the most an attacker can hope for.

    `lengths`: of what was distilled, in those of silos' updates in the median. `agreements`: of the teachers, now and then.
    """

    reviver: JobReviver
    before: bool = False
    ends: Counter[str] = field(default_factory=Counter)
    lengths: list[float] = field(default_factory=list)
    agreements: list[dict[str, float]] = field(default_factory=list)

    def revive(self, task: RevivalTask, task_seconds: float) -> Flat | Ending:
        found = self.reviver.revive(task, task_seconds)
        self.ends[found if isinstance(found, str) else "revived"] += 1
        if isinstance(found, str):
            return found
        one = self.reviver.reviver
        self.lengths.append(float(np.linalg.norm(found.values.astype(np.float64))) / one.teachers.usual)
        if self.ends["revived"] % AGREED == 0:
            self.agreements.append(agreements(one))
        return found


def play(place: Path, case: Case) -> dict[str, Any]:
    """What the run came to. `place` holds the data and the scenario."""
    attack, began = ATTACKS[case.attack], time.process_time()
    scenario = _scenario(place / "scenario.toml", case)
    malicious = case.silos(len(scenario.profiles()))
    file = _file(case.revived)
    with durable.forgettable(), tempfile.TemporaryDirectory() as scratch:
        planned, trainer = prepared(Told(file, JOB), scenario, Path(scratch) / "job")
        assert isinstance(trainer, ManagedTrainer)
        if attack.patched:
            for number in malicious:
                _poison(trainer.data[number], case.seed)
        looks = [
            _looking(trainer, path, path.with_suffix(""))
            for path in _pictures(trainer.measured, Path(scratch) / "looks")
        ]
        hostile = Hostile(trainer, *looks, attack.factor, malicious)
        rows, silos = Rows(), silo_names(scenario)
        revivers: dict[str, Untiring] = {}
        if file.revival is not None:
            reviver = reviver_of(trainer, file.revival, scenario.seed, scenario.revival_seconds)
            assert reviver is not None
            revivers[planned.name] = Untiring(replace(reviver, before=True))
        server = Memory([planned], silos, rows)
        Run(scenario, server, hostile, rows, revivers).play()
        head = server.head(planned.name)
    kept = ("ends", "lengths", "agreements")
    told = {name: getattr(one, name) for one in revivers.values() for name in kept}
    found = {kind: _looks(rows, kind) for kind in ("measured", "averaged")}
    return {**vars(case), "head": head, **told, "cpu": time.process_time() - began, **found}


def _looking(trainer: ManagedTrainer, measured: Path | None, folder: Path) -> ManagedTrainer:
    """Reads other records, in larger batches."""
    training = trainer.file.training.model_copy(update={"batch_size": LARGE})
    file = trainer.file.model_copy(update={"training": training})
    return ManagedTrainer(trainer.task, file, trainer.data, measured, folder)


def _scenario(path: Path, case: Case) -> Scenario:
    scenario = read_scenario(path)
    assert scenario.measure is not None
    profiles, attack = scenario.profiles(), ATTACKS[case.attack]
    malicious = case.silos(len(profiles))
    silos = [
        _paced(group, attack.pace if number in malicious else 1.0) for number, group in enumerate(profiles)
    ]
    measure = scenario.measure.model_copy(update={"every": f"{EVERY}s", "records": "validation"})
    changed = {"seed": case.seed, "horizon": f"{attack.horizon}s", "silos": tuple(silos), "measure": measure}
    return scenario.model_copy(update=changed)


def _paced(group: Group, pace: float) -> Group:
    train = group.train.model_copy(update={"median": group.train.median * pace})  # type: ignore[union-attr]
    return group.model_copy(update={"count": 1, "train": train})


def _file(revived: bool) -> JobFile:
    file = parse_job_file((JOB / "fashion.toml").read_text())
    changed = file.model_dump(exclude_unset=True) | {"aggregation": BASE}
    return JobFile.model_validate(changed | ({"revival": REVIVAL} if revived else {}))


def _factors(manifest: Manifest, factor: float) -> NDArray[np.float32]:
    """Of each element of an update; buffers travel as they are."""
    each = [
        np.full(spec.elements, factor if spec.role == "trainable" else 1.0, np.float32)
        for spec in manifest.specs
    ]
    return np.concatenate(each)


def _poison(path: Path, seed: int) -> None:
    with np.load(path) as file:
        x, y = file["x"].copy(), file["y"].copy()
    half = np.random.Generator(np.random.PCG64(seed)).permutation(len(y))[: len(y) // 2]
    x[half, -PATCH:, -PATCH:], y[half] = 255, TARGET
    np.savez(path, x=x, y=y)


def _pictures(source: Path | None, out: Path) -> list[Path]:
    """All; and those of other kinds, with the patch and without it, as the attacker wants them labelled."""
    assert source is not None
    with np.load(source) as file:
        x, y = file["x"][:PICTURES], file["y"][:PICTURES]
    out.mkdir()
    others = x[y != TARGET]
    patched, wanted = others.copy(), np.full(len(others), TARGET, np.uint8)
    patched[:, -PATCH:, -PATCH:] = 255
    paths = [out / "all.npz", out / "patched.npz", out / "unpatched.npz"]
    for path, pictures, labels in zip(paths, (x, patched, others), (y, wanted, wanted), strict=True):
        np.savez(path, x=pictures, y=labels)
    return paths


def _looks(rows: Rows, kind: str) -> dict[str, list[tuple[float, float]]]:
    """Metric → looks: virtual second and value."""
    found: dict[str, list[tuple[float, float]]] = {}
    columns = ("at", "kind", "metric", "value")
    for at, how, metric, value in zip(*(rows.metrics[column] for column in columns), strict=True):
        if how == kind:
            found.setdefault(metric, []).append((at, value))
    return found
