"""Silos of lower rank in one job: what trains there, what stays, and that nothing of it shows in what travels."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anabranch.errors import Refused
from anabranch.terms import JobFile, parse_job_file
from anabranch.wire.tensors import check_values, read_tensors, write_tensors
from silo_agent.policy import Bound
from silo_agent.training import tensors
from silo_agent.training.launcher import Launcher
from silo_agent.training.managed import Managed, build_model, optimizer_for
from silo_agent.training.padding import pad
from silo_agent.training.task import SiloData, load_task
from silo_agent.trial import try_job

RANK, LOW = 4, 1
TASK = """
import torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.layer = torch.nn.Embedding(20, 6), torch.nn.Linear(6, 6)
        self.conv, self.head = torch.nn.Conv1d(6, 6, 3), torch.nn.Linear(6, 2)
    def forward(self, x):
        return self.head(self.conv(torch.tanh(self.layer(self.words(x))).transpose(1, 2)).mean(-1))

class Task:
    def model(self):
        return Model()
    def dataset(self, data, split):
        x = torch.randint(0, 20, (24, 5), generator=torch.Generator().manual_seed(0))
        return torch.utils.data.TensorDataset(x, (x[:, 0] > 9).long())
    def loss(self, model, batch):
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
    def evaluate(self, model, batches):
        return {"loss": sum(torch.nn.functional.cross_entropy(model(x), y) for x, y in batches)}
"""
JOB = """
[job]
name = "t"
task = "task.py:Task"
[training]
local_steps = 4
batch_size = 8
optimizer = { name = "adamw", lr = 0.05, weight_decay = 0.1 }
[adapter]
rank = 4
targets = ["words", "layer", "conv"]
heads = ["head"]
"""
RANKS = "[adapter.ranks]\nlow = 1\n"
AXIS = {"A": 0, "B": 1}


@pytest.fixture
def make(tools: Any, tmp_path: Path) -> Callable[..., Any]:
    def make(name: str, job: str = JOB) -> Any:
        code = tmp_path / name / "code"
        code.mkdir(parents=True)
        (code / "task.py").write_text(TASK)
        (code / "job.toml").write_text(job)
        made = tools.make_job(tmp_path / name, code)
        (made.folder / "work").mkdir()
        advance(made)
        return made

    return make


def advance(job: Any) -> None:
    """A version in which no component is zero any more: one in which others have trained."""
    room = managed(job)
    drawn = np.random.default_rng(0)
    values = read_tensors(job.base, room.manifest)
    moved = {n: v + 0.3 * drawn.standard_normal(v.shape).astype(np.float32) for n, v in values.items()}
    write_tensors(job.base, room.manifest, moved)


def managed(job: Any, rank: int | None = None) -> Managed:
    task = load_task(job.folder / "archive", "task.py:Task", {})
    return Managed(task, job.file, SiloData(Path("/dev/null"), {}), job.folder / "work", rank=rank)


def quiet(_: Any) -> None:
    """Nobody wants to know about progress."""


def pairs(update: dict[str, Any]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of each matrix what the first LOW components became, and the others."""
    found = {}
    for name, values in update.items():
        for half, axis in AXIS.items():
            if f"lora_{half}" in name or f"lora_embedding_{half}" in name:
                first, others = np.split(values, [LOW], axis)
                found[name] = first, others
    return found


def test_it_trains_the_first_components_and_its_update_is_zero_elsewhere(make: Any) -> None:
    """Also with AdamW, whose decay moves whatever it is given. The manifest is the job's."""
    job = make("job")
    room = managed(job, LOW)
    assert room.manifest == managed(job).manifest
    room.train(job.train("one", 4), quiet)
    update = read_tensors(job.folder / "work" / "one.safetensors", room.manifest)
    found = pairs(update)
    assert len(found) == 6  # A and B of an embedding, a linear layer and a convolution
    for first, others in found.values():
        assert np.all(first != 0)
        assert np.all(others == 0)
    assert all(np.any(values != 0) for name, values in update.items() if name not in found)  # the head


def test_the_model_there_is_the_jobs_whole(make: Any) -> None:
    """Components that do not train go on adding what they add, under the job's alpha / rank."""
    job = make("job")
    low, whole = managed(job, LOW), managed(job)
    assert low.evaluate(job.evaluate("e"), quiet) == whole.evaluate(job.evaluate("e"), quiet)


def test_the_first_step_is_the_one_of_whoever_trains_all(make: Any) -> None:
    """Of plain gradient descent: the gradient of what trains is that of the whole model."""
    plain = JOB.replace('"adamw"', '"sgd"').replace(", weight_decay = 0.1", "")
    updates = []
    for name, rank in (("low", LOW), ("all", None)):
        job = make(name, plain)
        room = managed(job, rank)
        room.train(job.train("one", 1), quiet)
        updates.append(pairs(read_tensors(job.folder / "work" / "one.safetensors", room.manifest)))
    for (first, _), (of_all, others) in zip(updates[0].values(), updates[1].values(), strict=True):
        np.testing.assert_allclose(first, of_all, atol=1e-7)
        assert np.any(others != 0)


def test_gradients_and_the_optimizer_take_the_memory_of_the_lower_rank() -> None:
    file, model = _built()
    sizes = {}
    for rank in (RANK, LOW):
        pad(model, rank)
        trained = {
            name: one for name, one in model.named_parameters() if one.requires_grad and "lora" in name
        }
        optimizer = optimizer_for(model, file.training.optimizer)
        model(torch.zeros(2, 5, dtype=torch.long)).sum().backward()
        optimizer.step()
        states = [optimizer.state[one]["exp_avg"].numel() for one in trained.values()]
        sizes[rank] = sum(states), sum(one.grad.numel() for one in trained.values())
        model.zero_grad()
    assert sizes[LOW][0] * RANK == sizes[RANK][0] * LOW
    assert sizes[LOW][1] * RANK == sizes[RANK][1] * LOW


def _built() -> tuple[JobFile, torch.nn.Module]:
    namespace: dict[str, Any] = {}
    exec(TASK, namespace)
    file = parse_job_file(JOB)
    return file, build_model(namespace["Task"](), file)


def test_with_a_frozen_only_b_is_split(make: Any) -> None:
    job = make("job", JOB + "freeze_a = true\n")
    room = managed(job, LOW)
    room.train(job.train("one", 3), quiet)
    found = pairs(read_tensors(job.folder / "work" / "one.safetensors", room.manifest))
    assert {name.split(".lora_")[1][:1] for name in found if ".layer." in name} == {"B"}
    assert all(np.all(others == 0) and np.all(first != 0) for first, others in found.values())


def test_a_killed_cycle_resumes_to_the_same_bytes(make: Any) -> None:
    whole, parts = make("whole"), make("parts")
    managed(whole, LOW).train(whole.train("one", 5), quiet)
    steps = iter([False, False, False, True])
    assert managed(parts, LOW).train(parts.train("one", 5), quiet, lambda: next(steps)) is None
    managed(parts, LOW).train(parts.train("one", 5), quiet)
    assert parts.update("one") == whole.update("one")


def test_the_process_of_the_silo_that_is_named_and_no_other(
    make: Any, home: Path, isolated: Any, tools: Any, tmp_path: Path
) -> None:
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)  # a process of another user reads it
    zero = {}
    for silo in ("low", "high"):
        job = make(silo, JOB + RANKS)
        with Launcher(home, silo=silo) as launcher:
            process = launcher.start(job.folder, job.terms, tools.bound(tmp_path), isolated)
            try:
                tools.wait_for(process, "ready")
                process.request(job.train("one", 2))
                assert tools.wait_for(process, "trained")["is"] == "trained"
            finally:
                process.stop(0)
        update = read_tensors(job.folder / "work" / "one.safetensors", managed(job).manifest)
        zero[silo] = {bool(np.all(others == 0)) for _, others in pairs(update).values()}
    assert zero == {"low": {True}, "high": {False}}


def test_a_try_is_as_the_silo_that_is_named(make: Any, tools: Any, tmp_path: Path) -> None:
    job = make("job", JOB + RANKS)
    bound = Bound(tools.bound(tmp_path), None)
    tried = try_job(job.folder / "code", bound, Path(sys.executable), 3, lambda *_: None, silo="low")
    norms = {}
    for rank in (LOW, None):
        room = managed(job, rank)
        tensors.save_values(room.model, job.base, room.manifest)  # version 0, from which a try begins
        room.train(job.train("try", 3), quiet)
        norms[rank] = check_values(job.folder / "work" / "try.safetensors", room.manifest)
    assert tried.norm == pytest.approx(norms[LOW], rel=1e-6)
    assert tried.norm != pytest.approx(norms[None], rel=1e-3)


def test_a_rank_above_the_jobs_is_an_error_and_an_unsaid_one_is_not_in_the_terms() -> None:
    with pytest.raises(Refused, match=r"ranks\.low is 5, above rank = 4"):
        parse_job_file(JOB + "[adapter.ranks]\nlow = 5\n")
    with pytest.raises(Refused, match=r"ranks is a key of lora"):
        parse_job_file('[job]\nname = "t"\ntask = "t.py:T"\n[adapter]\nkind = "full"\nranks = { a = 1 }\n')
    for bad in ('"Not A Name" = 1', "low = 0"):
        with pytest.raises(Refused, match="ranks"):
            parse_job_file(JOB + f"[adapter.ranks]\n{bad}\n")
    assert "ranks" not in parse_job_file(JOB).model_dump(mode="json")["adapter"]
    adapter = parse_job_file(JOB + RANKS).adapter
    assert adapter is not None
    assert [adapter.rank_at(silo) for silo in ("low", "other", None)] == [1, 4, 4]
