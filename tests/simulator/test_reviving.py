"""Revival in virtual time: when it is asked for, when it counts, and what it adds."""

import math
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anabranch.terms import JobTerms, parse_job_file
from anabranch.wire.canonical import sha256
from auditor.export import Export
from auditor.pin import pin
from auditor.replay import replay
from auditor.verify import verify
from reviver import worth
from server.core.revival import Ending
from simulator.engine import RevivalTask, Run, silo_names
from simulator.flat import Flat
from simulator.memory import Memory, Planned
from simulator.results import files
from simulator.rooms import Rooms
from simulator.rows import Rows
from simulator.run import Told, play
from simulator.scenario import Scenario
from simulator.trainers import SyntheticTrainer

JOB = """[job]
name = "vector"
task = "task.py:Vector"
[evaluation]
every = 1000000
[stop]
versions = 1000000
[aggregation]
buffer = 1
ema = 0
[aggregation.server_optimizer]
lr = 0.5
"""
FAST = {"train": {"kind": "constant", "seconds": 1.0}}
SLOW = {"train": {"kind": "constant", "seconds": 4.1}}


@dataclass
class Ones:
    """Adds 1 to everything, and remembers what it was asked."""

    before: bool = False
    tasks: list[RevivalTask] = field(default_factory=list)
    fastest: float = 0.0

    def revive(self, task: RevivalTask, task_seconds: float) -> Flat:
        self.tasks.append(task)
        self.fastest = task_seconds
        return Flat(task.head.manifest, np.ones_like(task.head.values))


@dataclass
class Warming:
    """Adds the head's own values, a hundredth of them; like the real one nothing before version 5."""

    before: bool = False
    tasks: list[RevivalTask] = field(default_factory=list)

    def revive(self, task: RevivalTask, task_seconds: float) -> Flat | Ending:
        self.tasks.append(task)
        if task.version < 5:
            return "warmup"
        return Flat(task.head.manifest, (task.head.values * 0.01).astype(np.float32))


def planned(trainer: SyntheticTrainer, revival: str) -> Planned:
    terms = JobTerms(
        file=parse_job_file(JOB + revival),
        archive_sha256=sha256(b""),
        initial_sha256=trainer.initial.digest(),
        manifest_sha256=trainer.manifest.digest(),
    )
    return Planned("vector", terms, trainer.manifest, b"", trainer.initial)


def played(revival: str, reviver: Ones | None, horizon: str = "12s", **scenario: Any) -> Memory:
    settings = Scenario.model_validate(
        {"horizon": horizon, "silos": [FAST, SLOW], "synthetic": {"parameters": 5}, **scenario}
    )
    assert settings.synthetic is not None
    trainer = SyntheticTrainer(settings.synthetic, 0)
    server = Memory([planned(trainer, revival)], silo_names(settings), Rows())
    revivers = {"vector": reviver} if reviver is not None else {}
    Run(settings, server, trainer, server.rows, revivers).play()
    return server


def test_what_was_distilled_joins_the_next_version() -> None:
    plain = played("", None, horizon="2s").jobs["vector"].versions
    revived = played("[revival]\nfreeze = 0\ngain = 0.25\n", Ones(), horizon="2s").jobs["vector"].versions
    assert np.array_equal(plain[1].parameters.values, revived[1].parameters.values)
    moved = revived[2].parameters.values - plain[2].parameters.values
    assert np.allclose(moved, 0.25, atol=1e-6)


def test_teachers_are_the_newest_merged_models_one_of_each_silo() -> None:
    reviver = Ones()
    played("[revival]\nfreeze = 0\n", reviver)
    assert set(reviver.tasks[0].teachers) == {"silo-00000"}
    assert set(reviver.tasks[-1].teachers) == {"silo-00000", "silo-00001"}
    assert [task.version for task in reviver.tasks] == list(range(1, len(reviver.tasks) + 1))
    assert reviver.fastest == pytest.approx(1.0)


def test_a_reviver_at_work_is_left_alone() -> None:
    """It takes two and a half versions: what comes in the meantime is skipped, not queued."""
    reviver = Ones()
    server = played("[revival]\nfreeze = 0\n", reviver, revival_seconds=2.5)
    versions = [task.version for task in reviver.tasks]
    assert len(versions) < 7
    told = server.rows.revivals
    assert told["version"] == versions[: len(told["version"])]
    assert set(told["outcome"]) == {"revived"}
    assert all(later - earlier >= 2 for earlier, later in pairwise(versions))


@pytest.mark.parametrize(("late", "counts"), [(2, False), (4, True)])
def test_a_result_that_is_too_late_is_dropped(late: int, counts: bool) -> None:
    """It was made for version 1 and is there when three more have been published."""
    plain = played("", None, horizon="5s").jobs["vector"].newest
    revived = played(f"[revival]\nfreeze = 0\nlate = {late}\n", Ones(), horizon="5s", revival_seconds=2.7)
    same = np.array_equal(plain.parameters.values, revived.jobs["vector"].newest.parameters.values)
    assert same is not counts


def test_mode_paper_blends_as_published() -> None:
    """theta + lr * ((1 - beta) * delta + beta * distilled), beta = (1 - cos(pi * staleness / (2 * s_max))) / 2."""
    reviver, s_max = Ones(before=True), 6.0
    server = played(f'[revival]\nfreeze = 0\nmode = "paper"\ns_max = {s_max}\n', reviver, horizon="4.5s")
    job, rows = server.jobs["vector"], server.rows
    staleness = dict(zip(rows.updates["version"], rows.updates["staleness"], strict=True))
    assert [task.version for task in reviver.tasks] == [job.head - 1]  # the one that was late
    assert staleness[job.head] == 4
    update = job.returned[-1]
    beta = 0.5 * (1 - math.cos(math.pi * 4 / (2 * s_max)))
    before = job.versions[job.head - 1].parameters.values.astype(np.float64)
    expected = before + 0.5 * (1 - beta) * update.delta.values + 0.5 * beta
    assert np.allclose(job.newest.parameters.values, expected, atol=1e-6)


def test_mode_paper_revives_the_model_that_has_just_come() -> None:
    reviver = Ones(before=True)
    server = played('[revival]\nfreeze = 0\nmode = "paper"\ns_max = 2.0\n', reviver, horizon="4.5s")
    assert server.jobs["vector"].returned[-1].id in reviver.tasks[-1].teachers


@pytest.mark.parametrize("takes", [0.0, 0.8, 2.5])
@pytest.mark.parametrize(
    "rule", ["freeze = 2\nwarmup = 4\n", "freeze = 0\nwarmup = 0\nlate = 2\ngain = 1.0\n"]
)
def test_the_real_server_revives_the_same(takes: float, rule: str, tmp_path: Path) -> None:
    """Claims, results that come in time or not, and what they add; and an auditor recomputes it."""
    scenario = Scenario.model_validate(
        {"horizon": "25s", "silos": [FAST, SLOW], "synthetic": {"parameters": 5}, "revival_seconds": takes}
    )
    assert scenario.synthetic is not None
    trainer = SyntheticTrainer(scenario.synthetic, 0)
    jobs = [planned(trainer, f"[revival]\n{rule}")]
    memory = Memory(jobs, silo_names(scenario), Rows())
    rooms = Rooms(jobs, silo_names(scenario), Rows(), tmp_path, scenario.seed)
    light, full = Warming(), Warming()
    Run(scenario, memory, trainer, memory.rows, {"vector": light}).play()
    Run(scenario, rooms, trainer, rooms.rows, {"vector": full}).play()
    assert [task.version for task in full.tasks] == [task.version for task in light.tasks]
    assert [set(task.teachers) for task in full.tasks] == [set(task.teachers) for task in light.tasks]
    head = memory.head("vector")
    assert rooms.head("vector") == head > 5
    assert rooms.parameters("vector", head).digest() == memory.parameters("vector", head).digest()
    rooms.export(tmp_path / "export")
    rooms.close()
    exported = Export(tmp_path / "export")
    verified = verify(exported, pin(exported, None))
    assert verified.report.verified
    found = replay(exported, verified.history)
    assert found.ok
    assert found.exact == head


TASK = '''
import torch
from silo_agent import Images
from torch.utils.data import TensorDataset


class Stripes:
    """Silo 0 sees stripes of two kinds, the others of a third."""

    def model(self):
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))

    def inputs(self):
        return Images((1, 8, 8))

    def dataset(self, data, split):
        kinds = torch.tensor([0, 1] if data.params["silo"] == 0 else [2])
        chance = torch.Generator().manual_seed(7)
        labels = kinds[torch.randint(0, len(kinds), (60,), generator=chance)]
        pictures = 0.2 * torch.rand(60, 1, 8, 8, generator=chance)
        for place, label in enumerate(labels.tolist()):
            pictures[place, :, 3 * label : 3 * label + 2] += 0.7
        return TensorDataset(pictures, labels)

    def loss(self, model, batch):
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
'''


def managed(folder: Path, revival: str, task: str = TASK, **scenario: Any) -> dict[str, bytes]:
    """What a run of real training with the real reviver leaves."""
    folder.mkdir(exist_ok=True)
    (folder / "task.py").write_text(task)
    (folder / "data").write_text("")
    job = JOB.replace("task.py:Vector", "task.py:Stripes") + "[training]\nlocal_steps = 3\n" + revival
    settings = Scenario.model_validate(
        {
            "horizon": "12s",
            "silos": [FAST, SLOW],
            "data": {"default": {"path": folder / "data"}},
            **scenario,
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worth, "EVENEST", 0.0)  # three steps of training hardly tell what a silo holds
        found = files(play([Told(parse_job_file(job), folder)], settings))
    return {name: data for name, data in found.items() if name != "speed.json"}


REVIVAL = "[revival]\nfreeze = 1\nwarmup = 3\nsynthesis_batch = 16\n"


def test_the_real_reviver_gives_the_same_bytes_again(tmp_path: Path) -> None:
    first = managed(tmp_path / "job", REVIVAL)
    assert managed(tmp_path / "job", REVIVAL) == first
    assert _head(managed(tmp_path / "job", "")) != _head(first)


def _head(found: dict[str, bytes]) -> str:
    return next(line for line in found["run.json"].decode().split(",") if "parameters_sha256" in line)


@pytest.mark.parametrize("why", ["slow", "no inputs"])
def test_without_a_reviver_that_pays_the_job_runs_as_if_there_were_none(tmp_path: Path, why: str) -> None:
    plain = managed(tmp_path / "job", "")
    if why == "slow":
        found = managed(tmp_path / "job", REVIVAL, revival_seconds=0.6)
    else:
        found = managed(tmp_path / "job", REVIVAL, TASK.replace("def inputs", "def no_inputs"))
    assert _head(found) == _head(plain)
