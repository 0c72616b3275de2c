"""Jobs that cannot be revived, and processes that fail in the middle of it: real models, and the real process."""

import resource
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from anabranch.errors import Refused
from anabranch.terms import JobTerms, parse_job_file
from anabranch.wire.manifest import Manifest
from anabranch.wire.tensors import write_tensors
from reviver.child import Child
from reviver.device import Device
from reviver.lessons import Lessons, lessons_of
from reviver.reviver import Reviver
from silo_agent.trainer import TaskFailed
from silo_agent.training import tensors
from silo_agent.training.building import build_model
from silo_agent.training.channel import Revive, Teaching
from silo_agent.training.isolation import Isolation
from silo_agent.training.launcher import Launcher
from silo_agent.training.task import load_task
from simulator.managed import ManagedTrainer
from simulator.reviving import reviver_of

pytestmark = pytest.mark.timeout(560)  # processes import torch
JOB = """[job]
name = "odd"
task = "task.py:Odd"
[revival]
freeze = 0
warmup = 0
synthesis_every = 1
synthesis_steps = 2
synthesis_batch = 8
"""
# `fault`, a file beside the task, says what the model does; it is not there yet when the model is tried.
TASK = """
import os, signal, time
from pathlib import Path
import torch
from silo_agent import Images

FAULT = Path(__file__).with_name("fault")

class Layer(torch.nn.Module):
    def forward(self, x):
        fault = FAULT.read_text() if FAULT.exists() else ""
        if fault == "memory":
            kept = []
            while True:
                kept.append(bytearray(1 << 24))
        if fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when the machine has no memory left
        if fault == "hangs":
            time.sleep(3600)
        return x

class Refuses(torch.nn.Module):
    def forward(self, x):
        if not self.training:
            raise NotImplementedError("only in training")
        return x

class Rows(torch.nn.Module):
    def forward(self, x):
        return x[:, 0]

class Rounds(torch.nn.Module):
    def forward(self, x):
        return x.detach().round()

KINDS = {
    "fine": lambda: [torch.nn.Flatten(), torch.nn.Linear(16, 4), Layer()],
    "normalised": lambda: [
        torch.nn.BatchNorm2d(1, track_running_stats=False), torch.nn.Flatten(), torch.nn.Linear(16, 4)
    ],
    "raises": lambda: [torch.nn.Flatten(), torch.nn.Linear(16, 4), Refuses()],
    "regression": lambda: [torch.nn.Flatten(), torch.nn.Linear(16, 1), Rows()],
    "one score": lambda: [torch.nn.Flatten(), torch.nn.Linear(16, 1)],
    "words": lambda: [torch.nn.Flatten(), torch.nn.Embedding(10, 4), torch.nn.Flatten(), torch.nn.Linear(64, 4)],
    "steps": lambda: [torch.nn.Flatten(), torch.nn.Linear(16, 4), Rounds()],
    "another size": lambda: [torch.nn.Flatten(), torch.nn.Linear(9, 4)],
}

class Odd:
    def __init__(self, kind):
        self.kind = kind

    def model(self):
        return torch.nn.Sequential(*KINDS[self.kind]())

    def inputs(self):
        return Images((1, 4, 4))

    def dataset(self, data, split):
        return []  # a reviver has none

    def loss(self, model, batch):
        return model(batch).sum()
"""


def job(folder: Path, kind: str) -> tuple[JobTerms, Manifest]:
    """Its code is in `folder/archive`."""
    (folder / "archive").mkdir(parents=True)
    (folder / "archive" / "task.py").write_text(TASK)
    params = f'[job.params]\nkind = "{kind}"\n'
    file = parse_job_file(JOB + params)
    model = build_model(load_task(folder / "archive", file.job.task, file.job.params), file)
    manifest = tensors.manifest_of(model, file.training.buffers)
    digest, none = manifest.digest(), "0" * 64
    terms = JobTerms(file=file, archive_sha256=none, initial_sha256=none, manifest_sha256=digest)
    return terms, manifest


def request(folder: Path, manifest: Manifest, cycle: str, broken: str = "") -> Revive:
    """Two silos, each of them sure of a class of its own; `broken` sends what is no number."""

    def written(name: str, sure: int | None, value: float) -> str:
        arrays = {spec.name: np.zeros(spec.shape, np.float32) for spec in manifest.specs}
        for array in arrays.values():
            if sure is not None and array.shape == (4,):  # the scores' offsets
                array[sure] = value
        write_tensors(folder / name, manifest, arrays)
        return str(folder / name)

    head, teachers = written("head", None, 0.0), list[Teaching]()
    for sure, silo in enumerate(("hospital-a", "hospital-b")):
        value = float("nan") if silo == broken else 9.0
        teachers.append({"silo": silo, "base": head, "delta": written(silo, sure, value)})
    (folder / "work").mkdir(exist_ok=True)
    return {
        "do": "revive",
        "cycle": cycle,
        "version": 5,
        "head": head,
        "teachers": teachers,
        "seconds": 0.0,
        "task_seconds": 0.0,
        "out": str(folder / "work" / "distilled.safetensors"),
    }


def revive(folder: Path, kind: str, broken: str = "") -> tuple[Lessons, dict[str, object]]:
    torch.set_num_threads(1)
    terms, manifest = job(folder, kind)
    lessons = lessons_of(folder / "archive", terms, torch.device("cpu"))
    return lessons, dict(lessons.revive(request(folder, manifest, "1", broken)))


@pytest.mark.parametrize(
    ("kind", "why", "said"),
    [
        (
            "raises",
            "NotImplementedError",
            "does not take the task's inputs (NotImplementedError: only in training)",
        ),
        ("regression", "no_classes", "scores over classes are (2, classes) for 2 inputs, not (2,)"),
        ("one score", "no_classes", "not (2, 1)"),
        ("words", "RuntimeError", "in evaluation mode it does not take the task's inputs"),
        ("another size", "RuntimeError", "in evaluation mode it does not take the task's inputs"),
        ("steps", "no_gradient", "do not depend smoothly on what the generator makes"),
    ],
)
def test_a_model_that_cannot_be_revived_is_told_so(
    kind: str, why: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, answer = revive(tmp_path, kind)
    assert answer == {"is": "rested", "cycle": "1", "reason": "unsupported", "why": why}
    assert "this job cannot be revived: " in (printed := capsys.readouterr().out)
    assert said in printed


def test_normalising_without_statistics_is_revived_by_answers_alone(tmp_path: Path) -> None:
    _, answer = revive(tmp_path, "normalised")
    assert answer["is"] == "revived"


def test_a_teacher_that_is_no_number_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lessons, answer = revive(tmp_path, "fine", broken="hospital-b")
    assert answer["is"] == "revived"
    assert isinstance(lessons.reviver, Reviver)
    assert set(lessons.reviver.teachers.slots) == {"hospital-a"}
    assert "a model of hospital-b does not teach: nonfinite" in capsys.readouterr().out


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    with Launcher(tmp_path, gpus=(), module="reviver.runner") as running:
        yield running


def test_after_every_fault_a_fresh_process_revives(launcher: Launcher, tmp_path: Path) -> None:
    """Out of memory, killed, hung past the deadline: the daemon is told, and the next process begins anew."""
    folder = tmp_path / "job"
    terms, manifest = job(folder, "fine")
    child = Child(launcher, folder, terms, Isolation("none", "a test"), Device("cpu", {}), threading.Event())
    for fault, named in (("memory", "MemoryError"), ("killed", "ProcessEnded"), ("hangs", "Hung")):
        child.start(time.monotonic() + 400)
        assert child._process is not None
        pid = child._process.pid
        if fault == "memory":
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
            most = pages * resource.getpagesize() + (256 << 20)
            resource.prlimit(pid, resource.RLIMIT_AS, (most, most))
        (folder / "archive" / "fault").write_text(fault)
        patience = 5 if fault == "hangs" else 400
        with pytest.raises(TaskFailed) as failed:
            child.revive(request(folder, manifest, fault), time.monotonic() + patience)
        assert failed.value.exception == named
        (folder / "archive" / "fault").unlink()
        child.stop()
        assert not Path(f"/proc/{pid}").exists()
    child.start(time.monotonic() + 400)
    answer = child.revive(request(folder, manifest, "last"), time.monotonic() + 400)
    assert answer["is"] == "revived"
    child.stop()


def test_a_simulation_says_what_it_cannot_revive(tmp_path: Path) -> None:
    terms, _ = job(tmp_path, "regression")
    trainer = ManagedTrainer(
        partial(load_task, tmp_path / "archive", terms.file.job.task, terms.file.job.params),
        terms.file,
        (),
        None,
        tmp_path / "silos",
    )
    assert terms.file.revival is not None
    with pytest.raises(
        Refused, match=r"this job cannot be revived: scores over classes .*; leave \[revival\] out"
    ):
        reviver_of(trainer, terms.file.revival, 0, 0.0)
