"""A GPU that is too small for a job is no bug of its code: it is told as such, with what to do."""

from pathlib import Path
from typing import Any

import pytest
import torch

from anabranch.errors import Reason
from anabranch.v1 import admin_pb2
from console.board import alarms
from silo_agent.policy import Bound
from silo_agent.trainer import TaskFailed, Trainer, Watch

MANAGED = """
import torch

class Large:
    def model(self):
        return torch.nn.Linear(1, 1)

    def dataset(self, data, split):
        return [torch.ones(1)] * 8

    def loss(self, model, batch):
        raise {error}
"""
SCRIPT = """
import torch
from silo_agent import federated

model = torch.nn.Linear(1, 1)
with federated(model) as fl:
    for cycle in fl:
        raise {error}
"""
CUDA = 'torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")'


ON_A_GPU = 'torch.empty(1 << 50, dtype=torch.uint8, device="cuda")'
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")


@pytest.mark.parametrize(
    ("name", "code", "task", "error"),
    [
        ("managed", MANAGED, "task.py:Large", CUDA),
        pytest.param("real", SCRIPT, "task.py", ON_A_GPU, marks=cuda),
        ("script", SCRIPT, "task.py", CUDA),
        ("machine", SCRIPT, "task.py", "MemoryError()"),
    ],
)
def test_out_of_memory_is_a_reason_of_its_own(
    name: str,
    code: str,
    task: str,
    error: str,
    tools: Any,
    job_folder: Any,
    launcher: Any,
    isolated: Any,
    tmp_path: Path,
) -> None:
    (tmp_path / "task.py").write_text(code.format(error=error))
    (tmp_path / "job.toml").write_text(f'[job]\nname = "large"\ntask = "{task}"\n')
    job = tools.make_job(job_folder(f"large-{name}"), tmp_path)
    trainer = Trainer(launcher, job.folder, job.terms, Bound(tools.bound(tmp_path), None), isolated)
    try:
        with pytest.raises(TaskFailed, match="smaller batch_size") as failed:
            trainer.train(job.train("l-1"), Watch(lambda: None, lambda *_: None))  # type: ignore[arg-type]
    finally:
        trainer.stop()
    assert failed.value.code is Reason.TASK_OUT_OF_MEMORY
    assert failed.value.exception in ("OutOfMemoryError", "MemoryError")
    line = next(n for n, text in enumerate(code.splitlines(), 1) if "raise" in text)
    assert failed.value.code_line == f"task.py:{line}"


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("task_out_of_memory: OutOfMemoryError at task.py:31", True),
        ("task_failed: OutOfMemory at task.py:31", False),
    ],
)
def test_job_watch_says_what_to_do(reason: str, told: bool) -> None:
    silo = admin_pb2.SiloStatus(silo="drava", state="idle", last_reason=reason)
    sentence = alarms(admin_pb2.JobStatus(job="j", silos=[silo]))["j", "drava", "last"]
    assert sentence.startswith(f"drava: last failure: {reason}")
    assert ("smaller batch_size" in sentence) is told
