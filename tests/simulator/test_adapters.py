"""Jobs that adapt a base model, in virtual time."""

from pathlib import Path

import numpy as np
import pytest

from anabranch.errors import Refused
from anabranch.terms import parse_job_file
from simulator.contest import key
from simulator.run import Told, play, prepared
from simulator.scenario import read_scenario
from simulator.work import Plan

TASK = """
import numpy as np
import torch

class Task:
    def model(self, base):
        model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        with torch.no_grad():
            model[0].weight.copy_(torch.from_numpy(np.load(base / "weight.npy")))
        return model
    def dataset(self, data, split):
        x = torch.rand(16, 8, generator=torch.Generator().manual_seed(data.params["silo"]))
        return torch.utils.data.TensorDataset(x, (x[:, 0] > x[:, 1]).long())
    def loss(self, model, batch):
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
    def evaluate(self, model, batches):
        return {"accuracy": 0.5}
"""
JOB = """
[job]
name = "adapted"
task = "task.py:Task"
base = "tiny"
[training]
local_steps = 2
[adapter]
rank = 2
targets = ["0"]
heads = ["2"]
[aggregation]
buffer = 1
[evaluation]
every = 1000000
[stop]
versions = 4
"""
SCENARIO = """
horizon = "1h"
[data.default]
path = "records"
[[silos]]
count = 2
train = { kind = "constant", seconds = 1.0 }
"""


@pytest.fixture
def job(tmp_path: Path) -> Told:
    code = tmp_path / "code"
    code.mkdir()
    (code / "task.py").write_text(TASK)
    (tmp_path / "records").touch()
    (tmp_path / "tiny").mkdir()
    np.save(tmp_path / "tiny" / "weight.npy", np.eye(8, dtype=np.float32))
    (tmp_path / "scenario.toml").write_text(SCENARIO + '[models.tiny]\npath = "tiny"\n')
    return Told(parse_job_file(JOB), code)


def test_it_is_played_and_only_the_adapter_travels(job: Told, tmp_path: Path) -> None:
    scenario = read_scenario(tmp_path / "scenario.toml")
    [outcome] = play([job], scenario).outcomes
    assert outcome.status == "completed"
    assert outcome.terms.base_sha256 is not None
    planned, _ = prepared(job, scenario, tmp_path / "scratch")
    assert planned.terms == outcome.terms
    assert [spec.shape for spec in planned.manifest.specs] == [(2, 8), (8, 2), (2,), (2, 8)]


def test_a_scenario_without_the_base_says_what_is_missing(job: Told, tmp_path: Path) -> None:
    (tmp_path / "scenario.toml").write_text(SCENARIO)
    with pytest.raises(Refused, match=r"adapts the base model 'tiny'; the scenario has no \[models\.tiny\]"):
        play([job], read_scenario(tmp_path / "scenario.toml"))


def test_a_run_with_another_base_is_another_run(job: Told, tmp_path: Path) -> None:
    """Or a comparison would go on with what an older base gave."""
    plan = Plan((job,), read_scenario(tmp_path / "scenario.toml"))
    before = key(plan, {})
    np.save(tmp_path / "tiny" / "weight.npy", 2 * np.eye(8, dtype=np.float32))
    assert key(plan, {}) != before


def test_silos_of_lower_rank_train_as_many_components_as_the_job_says(job: Told, tmp_path: Path) -> None:
    lower = parse_job_file(JOB.replace("rank = 2", "rank = 2\nranks = { silo-00000 = 1 }"))
    scenario = read_scenario(tmp_path / "scenario.toml")
    planned, trainer = prepared(Told(lower, job.folder), scenario, tmp_path / "scratch")
    (name,) = [spec.name for spec in planned.manifest.specs if "lora_B" in spec.name]
    trained = {}
    for silo in (0, 1):
        update = trainer.train("adapted", silo, "c", planned.initial, 0, 2).delta
        b = np.empty(16, np.float32)
        update.read(name, 0, 16, b)
        trained[silo] = list(np.any(b.reshape(8, 2) != 0, axis=0))
    assert trained == {0: [True, False], 1: [True, True]}
