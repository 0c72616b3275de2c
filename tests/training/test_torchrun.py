"""A script as one writes it for torchrun: started by torchrun itself, by hand, and as the ranks of a silo."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from silo_agent.training.isolation import Isolation
from silo_agent.training.launcher import Launcher

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json
import os

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record
from torch.nn.parallel import DistributedDataParallel
from silo_agent import federated


@record
def main():
    rank, local = int(os.environ.get("RANK", 0)), int(os.environ.get("LOCAL_RANK", 0))
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        dist.init_process_group("gloo", init_method="env://")
        assert dist.is_torchelastic_launched()
        assert (dist.get_rank(), dist.get_node_local_rank(), dist.get_world_size()) == (rank, local, world)
    device = torch.device(f"cuda:{local}" if torch.cuda.device_count() > local else "cpu")
    model = torch.nn.Linear(4, 1).to(device)
    with federated(model) as fl:
        wrapped = DistributedDataParallel(model) if world > 1 else model
        with open(f"environment-{rank}.json", "w") as file:
            json.dump(dict(os.environ), file)
        for cycle in fl:
            optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
            for _ in range(cycle.steps):
                optimizer.zero_grad()
                wrapped(torch.full((2, 4), rank + 1.0, device=device)).pow(2).mean().backward()
                optimizer.step()
            cycle.submit(num_examples=2)
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
"""
# What differs from run to run, and what leads to torchrun itself, which is not there.
OTHERWISE = {
    "MASTER_PORT": str.isdigit,
    "TORCHELASTIC_RUN_ID": bool,
    "TORCHELASTIC_USE_AGENT_STORE": lambda value: value == "False",
}
ABSENT = {"TORCHELASTIC_ERROR_FILE", "TORCHELASTIC_SIGNALS_TO_HANDLE"}


@pytest.fixture
def code(tmp_path: Path) -> Path:
    code = tmp_path / "code"
    code.mkdir()
    (code / "job.toml").write_text(
        '[job]\nname = "elastic"\ntask = "train.py"\n[training]\nlocal_steps = 2\n'
    )
    (code / "train.py").write_text(SCRIPT)
    return code


def by_torchrun(code: Path, folder: Path) -> list[dict[str, str]]:
    """What torchrun adds to the environment of each rank."""
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    program = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    alone = ["--master-addr", "127.0.0.1", "--master-port", port]
    environment = {
        **{name: text for name, text in os.environ.items() if "RANK" not in name},
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    done = subprocess.run(
        [*program, *alone, code / "train.py"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("dry run, nothing was sent. One cycle: 2 optimizer steps") == 1
    ranks = [json.loads((folder / f"environment-{rank}.json").read_text()) for rank in (0, 1)]
    return [{n: v for n, v in rank.items() if environment.get(n) != v} for rank in ranks]


def test_ranks_of_a_silo_find_what_torchrun_sets(
    code: Path, tools: Any, job_folder: Any, home: Path, isolated: Isolation, tmp_path: Path
) -> None:
    job = tools.make_job(job_folder("torchrun"), code)
    with Launcher(home, processes=2) as launcher:
        process = launcher.start(job.folder, job.terms, tools.bound(tmp_path), isolated)
        try:
            assert tools.wait_for(process, "ready")["kind"] == "script"
            for cycle in ("l-1", "l-2"):
                process.request(job.train(cycle, 2))
                assert tools.wait_for(process, "trained")["steps"] == 2
            process.stop(20)
        finally:
            process.stop(0)
    assert "Traceback" not in (job.folder / "training.log").read_text()
    for rank, theirs in enumerate(by_torchrun(code, tmp_path / "by-hand")):
        ours = json.loads((job.folder / "work" / f"environment-{rank}.json").read_text())
        assert theirs["RANK"] == str(rank)
        for name, value in theirs.items():
            if name not in ABSENT:
                fits = OTHERWISE.get(name, lambda found, value=value: found == value)
                assert fits(ours[name]), (name, value, ours[name])
