"""A reviver and jobs that adapt a base model: it needs the folder, or rests and says so; with it LoRA's models teach."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anabranch.errors import Refused
from anabranch.terms import JobTerms, parse_job_file
from anabranch.wire.tensors import write_tensors
from reviver.lessons import Lessons, lessons_of
from reviver.main import _bases
from silo_agent.training import initial
from silo_agent.training.channel import Revive
from silo_agent.training.task import Garbage

TASK = """
import numpy as np
import torch
from silo_agent import Images

class Task:
    def model(self, base):
        layers = [torch.nn.Flatten(), torch.nn.Linear(16, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)]
        model = torch.nn.Sequential(*layers)
        with torch.no_grad():
            model[1].weight.copy_(torch.from_numpy(np.load(base / "weight.npy")))
        return model
    def inputs(self):
        return Images((1, 4, 4))
    def dataset(self, data, split):
        return []
    def loss(self, model, batch):
        return model(batch).sum()
"""
JOB = """
[job]
name = "j"
task = "task.py:Task"
base = "tiny"
[adapter]
rank = 2
targets = ["1"]
heads = ["3"]
[revival]
freeze = 0
warmup = 0
synthesis = "noise"
"""
CPU = torch.device("cpu")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    np.save(folder / "weight.npy", np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32))
    return folder


@pytest.fixture
def job(tmp_path: Path, base: Path) -> tuple[Path, JobTerms, Any]:
    torch.set_num_threads(1)
    code = tmp_path / "code"
    code.mkdir()
    (code / "task.py").write_text(TASK)
    file = parse_job_file(JOB)
    made = initial.build(code, file, tmp_path / "initial", base)
    digests = {"archive_sha256": "0" * 64, "initial_sha256": "0" * 64}
    manifest = made.manifest.digest()
    return code, JobTerms(file=file, manifest_sha256=manifest, base_sha256=made.base_sha256, **digests), made


def request(folder: Path, manifest: Any) -> Revive:
    """Two silos, each of them sure of a class of its own."""
    teachers = []
    for sure, silo in enumerate(("hospital-a", "hospital-b")):
        arrays = {spec.name: np.zeros(spec.shape, np.float32) for spec in manifest.specs}
        arrays["base_model.model.3.modules_to_save.default.bias"][sure] = 9.0
        write_tensors(folder / silo, manifest, arrays)
        head = str(folder / "initial")
        teachers.append({"silo": silo, "base": head, "delta": str(folder / silo)})
    return {
        "do": "revive",
        "cycle": "1",
        "version": 5,
        "head": str(folder / "initial"),
        "teachers": teachers,  # type: ignore[typeddict-item]
        "seconds": 0.0,
        "task_seconds": 0.0,
        "out": str(folder / "distilled"),
    }


def test_without_the_folder_it_rests_and_says_what_to_give(
    job: tuple[Path, JobTerms, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, terms, made = job
    answer = lessons_of(code, terms, CPU).revive(request(tmp_path, made.manifest))
    assert answer == {"is": "rested", "cycle": "1", "reason": "unsupported", "why": "no_base"}
    assert "start the reviver with --base tiny=PATH" in capsys.readouterr().out


def test_with_it_adapted_models_teach(job: tuple[Path, JobTerms, Any], base: Path, tmp_path: Path) -> None:
    code, terms, made = job
    lessons = lessons_of(code, terms, CPU, base)
    assert isinstance(lessons, Lessons)
    answer = lessons.revive(request(tmp_path, made.manifest))
    assert answer["is"] == "revived", answer
    assert (tmp_path / "distilled").stat().st_size == made.manifest.file_bytes


def test_another_base_is_refused(job: tuple[Path, JobTerms, Any], base: Path) -> None:
    code, terms, _ = job
    np.save(base / "weight.npy", np.zeros((8, 16), np.float32))
    with pytest.raises(Garbage, match=f"model folder {base}"):
        lessons_of(code, terms, CPU, base)


def test_how_bases_are_given(tmp_path: Path) -> None:
    assert _bases([f"tiny={tmp_path}"]) == {"tiny": tmp_path}
    with pytest.raises(Refused, match="write NAME=PATH"):
        _bases([str(tmp_path)])
    with pytest.raises(Refused, match="does not exist"):
        _bases([f"tiny={tmp_path}/none"])
