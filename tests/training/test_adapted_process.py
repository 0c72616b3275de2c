"""An adapted model in the real, fenced training process, with a base folder that only the binding names."""

from pathlib import Path
from typing import Any

import pytest
import torch

TASK = """
import torch

class Task:
    def model(self, base):
        model = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 10))
        model[0].load_state_dict(torch.load(base / "weights.pt", weights_only=True))
        return model
    def dataset(self, data, split):
        x = torch.rand(16, 64, generator=torch.Generator().manual_seed(0))
        return torch.utils.data.TensorDataset(x, torch.arange(16) % 10)
    def loss(self, model, batch):
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
"""
JOB = """
[job]
name = "t"
task = "task.py:Task"
base = "tiny"
[adapter]
rank = 2
targets = ["0"]
heads = ["2"]
"""


@pytest.fixture
def bases(tmp_path: Path) -> list[Path]:
    """Two folders with weights of the same shapes."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for seed, folder in enumerate(folders):
        torch.manual_seed(seed)
        folder.mkdir()
        torch.save(torch.nn.Linear(64, 8).state_dict(), folder / "weights.pt")
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)  # a process of another user reads them
    return folders


@pytest.fixture
def job(
    tools: Any, job_folder: Any, bases: list[Path], tmp_path: Path, request: pytest.FixtureRequest
) -> Any:
    code = tmp_path / "code"
    code.mkdir()
    (code / "task.py").write_text(TASK)
    (code / "job.toml").write_text(JOB)
    name = request.node.name.replace("_", "-")[:40]
    return tools.make_job(job_folder(name), code, bases[0])


def test_it_trains_behind_the_fence(
    job: Any, bases: list[Path], launcher: Any, isolated: Any, tools: Any
) -> None:
    process = launcher.start(job.folder, job.terms, tools.bound(bases[0]), isolated, base=bases[0])
    try:
        assert tools.wait_for(process, "ready")["is"] == "ready"
        process.request(job.train("one", 2))
        assert tools.wait_for(process, "trained")["steps"] == 2
    finally:
        process.stop(0)


def test_another_base_ends_before_the_first_step(
    job: Any, bases: list[Path], launcher: Any, isolated: Any, tools: Any
) -> None:
    process = launcher.start(job.folder, job.terms, tools.bound(bases[0]), isolated, base=bases[1])
    try:
        failed = tools.wait_for(process, "ready")
    finally:
        process.stop(0)
    assert (failed["is"], failed["reason"], failed["exception"]) == ("failed", "task_garbage", "OtherBase")
    log = (job.folder / "training.log").read_text()
    for part in (str(bases[1]), job.terms.base_sha256, "put the very files there"):
        assert part in log
