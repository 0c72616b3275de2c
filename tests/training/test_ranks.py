"""A script as several processes: two ranks over gloo, on CPU, inside the fence."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anabranch.wire.tensors import read_manifest, read_tensors
from silo_agent.training.isolation import Isolation
from silo_agent.training.launcher import Launcher
from tests.training.processes import eventually, members

ROOT = Path(__file__).parents[2]

# A global batch of 8 in each step, cut into equal parts of the ranks; `data.path/do` says what else happens.
SCRIPT = """
import os, signal, time
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from silo_agent import federated

model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))

def evaluate(model, split):
    return {"rank": rank, "num_examples": 1}

with federated(model, evaluate=evaluate) as fl:
    kind = fl.data.params.get("kind", "ddp")
    if world > 1:
        dist.init_process_group("gloo")
        if kind == "ddp":
            wrapped = DistributedDataParallel(model)
        else:
            wrapped = fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (world,)))
    else:
        wrapped = model
    for cycle in fl:
        do = (fl.data.path / "do").read_text()
        rows = torch.randn(8 * cycle.steps, 4, generator=torch.Generator().manual_seed(3))
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9)
        for batch in rows.split(8):
            mine = batch[rank * 8 // world : (rank + 1) * 8 // world]
            if rank == 1 and do == "raise":
                raise KeyError("patient 12")
            if rank == 1 and do == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if rank == 1 and do == "hang":
                os.system("sleep 600 &")
                time.sleep(600)
            optimizer.zero_grad()
            wrapped(mine).pow(2).mean().backward()
            optimizer.step()
        if kind == "ddp":
            torch.save([p.detach() for p in model.parameters()], f"rank-{rank}.pt")
        cycle.submit(num_examples=len(rows), metrics={"rank": rank})
"""


@pytest.fixture(scope="module")
def begin(tools: Any, job_folder: Any, home: Path, isolated: Isolation) -> Iterator[Any]:
    """`begin(name, processes, do, kind)`: job and process of the script, ready."""
    running: list[Any] = []

    def begin(
        name: str, tmp_path: Path, processes: int, do: str = "train", kind: str = "ddp", script: str = SCRIPT
    ) -> Any:
        code = tmp_path / name
        code.mkdir()
        (code / "job.toml").write_text('[job]\nname = "ranks"\ntask = "train.py"\n')
        (code / "train.py").write_text(script)
        (tmp_path / "do").write_text(do)
        job = tools.make_job(job_folder(name), code, save_every="0s")
        launcher = Launcher(home, processes=processes)
        process = launcher.start(job.folder, job.terms, tools.bound(tmp_path, {"kind": kind}), isolated)
        running.append((process, launcher))
        assert tools.wait_for(process, "ready") == {"is": "ready", "kind": "script"}
        return job, process

    yield begin
    for process, launcher in running:
        process.stop(0)
        launcher.close()


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_ranks_make_the_update_of_one(begin: Any, tools: Any, tmp_path: Path, kind: str) -> None:
    updates = {}
    for processes in (1, 2):
        job, process = begin(f"{kind}-{processes}", tmp_path, processes, kind=kind)
        process.request(job.evaluate("e-1"))
        assert tools.wait_for(process, "evaluated")["metrics"] == {"rank": 0}
        for cycle in ("l-1", "l-2"):
            process.request(job.train(cycle, 6))
            trained = tools.wait_for(process, "trained")
            assert (trained["steps"], trained["num_examples"], trained["metrics"]) == (6, 48, {"rank": 0})
        assert job.update("l-1") == job.update("l-2")  # the same base and data
        updates[processes] = read_tensors(job.folder / "work" / "l-2.safetensors", read_manifest(job.base))
    for name, one in updates[1].items():
        np.testing.assert_allclose(updates[2][name], one, rtol=1e-4, atol=1e-6)
        assert np.abs(one).max() > 0.01
    if kind == "ddp":
        ranks = [torch.load(job.folder / "work" / f"rank-{rank}.pt") for rank in (0, 1)]
        assert all(torch.equal(a, b) for a, b in zip(*ranks, strict=True))
    process.stop(20)
    assert "Traceback" not in (job.folder / "training.log").read_text()


@pytest.mark.parametrize(("do", "told"), [("raise", "KeyError"), ("die", "SIGKILL")])
def test_a_rank_that_dies_fails_the_task(begin: Any, tools: Any, tmp_path: Path, do: str, told: str) -> None:
    job, process = begin(f"rank-{do}", tmp_path, 2, do)
    process.request(job.train("l-1", 6))
    failed = tools.wait_for(process, "trained")
    assert (failed["is"], failed["reason"], failed["exception"]) == ("failed", "task_failed", told)
    if do == "raise":
        line = next(n for n, text in enumerate(SCRIPT.splitlines(), 1) if "patient 12" in text)
        assert failed["code_line"] == f"train.py:{line}"
    assert list(process.messages(30)) == []
    eventually(lambda: members(process.pid) == 0)
    assert not process.alive


def test_a_failure_of_all_ranks_is_told_once(begin: Any, tools: Any, tmp_path: Path) -> None:
    script = SCRIPT.replace('if rank == 1 and do == "raise"', 'if do == "raise"')
    job, process = begin("rank-all", tmp_path, 2, "raise", script=script)
    process.request(job.train("l-1", 6))
    assert tools.wait_for(process, "trained")["exception"] == "KeyError"
    assert list(process.messages(30)) == []


SPY = """
import json, os, socket
import torch
from silo_agent import federated

def attempt(action):
    try:
        action()
    except OSError as error:
        return type(error).__name__
    return "done"

with federated(torch.nn.Linear(1, 1)) as fl:
    for cycle in fl:
        answers = {
            "key": attempt(lambda: open((fl.data.path / "do").read_text())),
            "memory": attempt(lambda: open(f"/proc/{os.getppid()}/mem", "rb").read(1)),
            "network": attempt(lambda: socket.create_connection(("192.0.2.1", 9), 5)),
            "cuda": torch.cuda.is_available() and torch.ones(2, device="cuda").sum().item(),
        }
        with open(f"answers-{os.environ['RANK']}.json", "w") as file:
            json.dump(answers, file)
        cycle.submit(num_examples=1)
"""


def test_no_rank_reaches_the_agent_and_each_starts_cuda_where_there_is_one(
    begin: Any, tools: Any, home: Path, tmp_path: Path
) -> None:
    key = home / "identity" / "update.key"
    job, process = begin("rank-spy", tmp_path, 2, str(key), script=SPY)
    process.request(job.train("l-1", 1))
    assert tools.wait_for(process, "trained")["is"] == "trained"
    assert key.read_text() == "the agent's key"
    for rank in (0, 1):
        answers = json.loads((job.folder / "work" / f"answers-{rank}.json").read_text())
        cuda = 2.0 if torch.cuda.is_available() else False
        assert answers == {
            "key": "PermissionError",
            "memory": "PermissionError",
            "network": "OSError",
            "cuda": cuda,
        }


def test_stopping_ends_a_rank_that_hangs_and_what_it_started(begin: Any, tools: Any, tmp_path: Path) -> None:
    job, process = begin("rank-hang", tmp_path, 2, "hang")
    process.request(job.train("l-1", 6))
    eventually(lambda: members(process.pid) > 3)
    assert [m for m in process.messages(0.2) if m["is"] != "progress"] == []
    process.stop(0.2)
    eventually(lambda: members(process.pid) == 0)


def test_the_ranks_die_with_the_agent(
    tools: Any, job_folder: Any, isolated: Isolation, tmp_path: Path
) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "job.toml").write_text('[job]\nname = "ranks"\ntask = "train.py"\n')
    (tmp_path / "code" / "train.py").write_text(SCRIPT)
    job = tools.make_job(job_folder("rank-orphan"), tmp_path / "code")
    program = """
import json, sys, time
from pathlib import Path
from silo_agent.training.isolation import Isolation
from silo_agent.training.launcher import Launcher
from anabranch.terms import JobTerms
home, job_dir, terms, data, isolated = json.loads(sys.argv[1])
class Data:
    path, params, transform = Path(data), {}, None
terms = JobTerms.model_validate_json(terms)
process = Launcher(Path(home), processes=2).start(Path(job_dir), terms, Data, Isolation(**isolated))
next(process.messages(60))
print(process.pid, flush=True)
time.sleep(600)
"""
    fence = {"kind": isolated.kind, "detail": "", "uid": isolated.uid}
    home = str(job.folder.parents[1])
    arguments = json.dumps([home, str(job.folder), job.terms.model_dump_json(), str(tmp_path), fence])
    agent = subprocess.Popen(
        [sys.executable, "-c", program, arguments], env={"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    )
    try:
        assert agent.stdout is not None
        pid = int(agent.stdout.readline())
        assert members(pid) >= 3  # two ranks and the process that minds them
    finally:
        agent.kill()
        agent.communicate()
    eventually(lambda: members(pid) == 0)
