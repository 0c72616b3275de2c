"""A job file with [privacy] through the real training process, asked as the agent asks."""

from pathlib import Path
from typing import Any

import pytest

from anabranch.errors import Reason
from anabranch.wire.tensors import check_file, read_manifest
from silo_agent.policy import Binding, Bound
from silo_agent.trainer import TaskFailed, Trainer, Watch

JOB = """
[job]
name = "private"
task = "task.py:Digits"
[training]
buffers = "none"
[privacy]
epsilon = 8.0
delta = 1e-5
cycles_max = 10
physical_batch = 16
"""
NOISE = {"noise_multiplier": 1.1, "sample_rate": 0.2}


@pytest.fixture(scope="module")
def job(tools: Any, job_folder: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    code = tmp_path_factory.mktemp("code")
    (code / "task.py").write_text((tools.examples / "digits" / "task.py").read_text())
    (code / "job.toml").write_text(JOB)
    return tools.make_job(job_folder("private"), code)


def test_a_private_job_from_its_file(job: Any, launcher: Any, isolated: Any, digits: Path) -> None:
    said: list[Any] = []
    watch = Watch(lambda: None, said.append)
    trainer = Trainer(launcher, job.folder, job.terms, Bound(Binding(path=digits), None), isolated)
    try:
        units = trainer.count(watch)
        assert 250 < units < 400  # of 400 records those in the split "train"
        with pytest.raises(TaskFailed) as failed:
            trainer.train(job.train("l-0"), watch)
        assert failed.value.exception == "Misuse"
        with pytest.raises(TaskFailed) as failed:
            trainer.evaluate(job.evaluate("e-0"), watch)
        assert (failed.value.code, failed.value.exception) == (Reason.TASK_GARBAGE, "EvaluationUnsupported")
        assert not said
        trained = trainer.train(job.train("l-1", 4) | {"privacy": NOISE}, watch)
        assert trained == {"is": "trained", "cycle": "l-1", "num_examples": 0, "steps": 4, "metrics": {}}
        assert said
        assert all(set(message) == {"is", "cycle", "step", "steps"} for message in said)
        manifest = read_manifest(job.base)
        out = job.folder / "work" / "l-1.safetensors"
        assert check_file(out, manifest).bytes == manifest.file_bytes
        assert trainer.count(watch) == units
    finally:
        trainer.stop()
