"""`cycle.train(trainer)`: a transformers.Trainer inside script mode, killed, stopped, and used for cycle after cycle."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from silo_agent.training.huggingface import _last_save
from silo_agent.training.isolation import Isolation
from silo_agent.training.launcher import Launcher

SCRIPT = """
import time
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from silo_agent import federated

config = GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
model = GPT2LMHeadModel(config)
args = TrainingArguments(per_device_train_batch_size=4, learning_rate=1e-2, report_to=[], disable_tqdm=True, use_cpu=True)

class Rows:
    def __len__(self):
        return 40
    def __getitem__(self, index):
        time.sleep(fl.data.params.get("seconds", 0))
        row = torch.randint(0, 64, (8,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": row, "labels": row}

def own():
    return torch.optim.SGD(model.parameters(), lr=0.1), None

with federated(model) as fl:
    trainer = Trainer(model, args, train_dataset=Rows(), optimizers=own() if fl.data.params.get("own") else (None, None))
    for cycle in fl:
        cycle.train(trainer)
"""


@pytest.fixture
def job(tools: Any, job_folder: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "job.toml").write_text('[job]\nname = "trainer"\ntask = "train.py"\n')
    (tmp_path / "code" / "train.py").write_text(SCRIPT)
    return tools.make_job(job_folder(request.node.name), tmp_path / "code", save_every="0s")


def test_one_trainer_serves_every_cycle(job: Any, tools: Any, start: Any, tmp_path: Path) -> None:
    process = start(job, tools.bound(tmp_path))
    assert tools.wait_for(process, "ready")["kind"] == "script"
    updates = []
    for cycle in ("l-1", "l-2", "l-1"):
        process.request(job.train(cycle, 12))
        trained = tools.wait_for(process, "trained")
        assert (trained["is"], trained["steps"], trained["num_examples"]) == ("trained", 12, 40)
        assert trained["metrics"]["loss"] < 5
        updates.append(job.update(cycle))
        saves = job.folder / "work" / "cycles"
        assert [folder.name for folder in saves.iterdir()] == [cycle]
        assert len(list((saves / cycle).glob("checkpoint-*"))) == 1
        (job.folder / "work" / f"{cycle}.safetensors").unlink()
    # A cycle does not know what the trainer did before, and each has an order of its own.
    assert updates[0] == updates[2]
    assert updates[0] != updates[1]


def test_a_killed_cycle_goes_on_and_ends_as_if_it_had_not_been_killed(
    job: Any, tools: Any, start: Any, tmp_path: Path
) -> None:
    killed = start(job, tools.bound(tmp_path, {"seconds": 0.02}))
    tools.wait_for(killed, "ready")
    killed.request(job.train("l-1", 15))
    next(m for m in killed.messages(60) if m["is"] == "progress" and m["step"] >= 4)
    os.kill(killed.pid, signal.SIGKILL)
    assert not [m for m in killed.messages(30) if m["is"] == "trained"]

    stopped = start(job, tools.bound(tmp_path, {"seconds": 0.02}))
    tools.wait_for(stopped, "ready")
    stopped.request(job.train("l-1", 15))
    reached = tools.wait_for(stopped, "progress")["step"]
    assert reached >= 4
    stopped.stop(20)  # with time to save itself

    process = start(job, tools.bound(tmp_path))
    tools.wait_for(process, "ready")
    process.request(job.train("l-1", 15))
    assert tools.wait_for(process, "progress")["step"] > reached
    assert tools.wait_for(process, "trained")["steps"] == 15
    resumed = job.update("l-1")

    for save in (job.folder / "work" / "cycles" / "l-1").iterdir():
        (save / "trainer_state.json").unlink()  # not whole: the cycle begins again
    process.request(job.train("l-1", 15))
    assert tools.wait_for(process, "progress")["step"] == 1
    assert tools.wait_for(process, "trained")["steps"] == 15
    assert job.update("l-1") == resumed
    assert "Traceback" not in (job.folder / "training.log").read_text()


def test_a_trainer_with_its_own_optimizer_serves_one_cycle(
    job: Any, tools: Any, start: Any, tmp_path: Path
) -> None:
    process = start(job, tools.bound(tmp_path, {"own": True}))
    tools.wait_for(process, "ready")
    process.request(job.train("l-1", 2))
    assert tools.wait_for(process, "trained")["is"] == "trained"
    process.request(job.train("l-2", 2))
    assert tools.wait_for(process, "trained")["exception"] == "ValueError"
    until = time.monotonic() + 20
    while "make it inside the loop" not in (job.folder / "training.log").read_text():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_save_that_was_cut_off_is_not_gone_on_from(tmp_path: Path) -> None:
    assert _last_save(tmp_path) is None
    for step, state in ((9, "{}"), (10, "{}"), (11, '{"global_st'), (12, None)):
        save = tmp_path / f"checkpoint-{step}"
        save.mkdir()
        if state is not None:
            (save / "trainer_state.json").write_text(state)
    assert _last_save(tmp_path) == str(tmp_path / "checkpoint-10")


def test_two_ranks_save_at_the_same_step_and_go_on(
    job: Any, tools: Any, home: Path, isolated: Isolation, tmp_path: Path
) -> None:
    slow, fast = tools.bound(tmp_path, {"seconds": 0.02}), tools.bound(tmp_path)
    with Launcher(home, processes=2) as launcher:
        stopped = launcher.start(job.folder, job.terms, slow, isolated)
        process = None
        try:
            tools.wait_for(stopped, "ready")
            stopped.request(job.train("l-1", 12))
            reached = next(m["step"] for m in stopped.messages(60) if m["is"] == "progress" and m["step"] > 3)
            stopped.stop(20)
            process = launcher.start(job.folder, job.terms, fast, isolated)
            tools.wait_for(process, "ready")
            process.request(job.train("l-1", 12))
            assert tools.wait_for(process, "progress")["step"] > reached
            updates = []
            for cycle in ("l-2", "l-1"):
                assert tools.wait_for(process, "trained")["steps"] == 12
                updates.append(job.update("l-1"))
                process.request(job.train(cycle, 12))
            assert tools.wait_for(process, "trained")["steps"] == 12
            assert job.update("l-1") == updates[0]
        finally:
            stopped.stop(0)
            if process is not None:
                process.stop(0)
    assert "Traceback" not in (job.folder / "training.log").read_text()
