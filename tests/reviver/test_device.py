"""What a job's process computes on: real processes of a real job, on the CPU everywhere and on a GPU where there is one."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from anabranch.errors import Refused, Unavailable
from anabranch.terms import JobTerms, parse_job_file
from anabranch.wire.tensors import read_tensors, write_tensors
from reviver import device
from reviver.child import Child
from reviver.device import Device, choose
from server.core.revival import Report
from silo_agent.trainer import TaskFailed
from silo_agent.training import isolation, tensors
from silo_agent.training.building import build_model
from silo_agent.training.channel import Revive
from silo_agent.training.isolation import Isolation
from silo_agent.training.launcher import Launcher
from silo_agent.training.task import load_task

pytestmark = pytest.mark.timeout(300)
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
CPU = "cpu"
NAMES = [CPU, pytest.param("cuda:0", marks=cuda)]

TASK = '''
"""A model that does once, in its first revival's distillation, what it is told to."""
import os, time
import torch
from silo_agent import Images

class Net(torch.nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how, self.calls = how, 0
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(1, 8, 3, stride=2, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
            torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
            torch.nn.Flatten(), torch.nn.Linear(32, 3))

    def forward(self, x):
        self.calls += 1
        if self.how and self.calls > 2 and not os.path.exists("once"):
            open("once", "w").close()
            if self.how == "lost":
                raise torch.AcceleratorError("CUDA error: unspecified launch failure")
            if self.how == "library":
                raise RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR")
            if self.how == "full":
                torch.empty(1 << 50, dtype=torch.uint8, device=x.device)
            if self.how == "waits":
                time.sleep(3600)
        return self.body(x)

class Task:
    def __init__(self, how=""):
        self.how = how

    def model(self):
        return Net(self.how)

    def inputs(self):
        return Images((1, 8, 8))

    def dataset(self, data, split): ...

    def loss(self, model, batch): ...
'''
REVIVAL = "freeze = 0\nwarmup = 0\nsynthesis_every = 1\nsynthesis_batch = 16\nlr = 0.01"


@dataclass
class Job:
    """Two silos' models over a head, as files, and the processes that revive it."""

    folder: Path
    terms: JobTerms
    launcher: Launcher
    isolated: Isolation

    def child(self, device: str) -> Child:
        at = Device(device, {})
        return Child(self.launcher, self.folder, self.terms, self.isolated, at, threading.Event())

    def request(self, version: int) -> Revive:
        models = self.folder / "models"
        return {
            "do": "revive",
            "cycle": f"task-{version}",
            "version": version,
            "head": str(models / "head"),
            "teachers": [
                {"silo": silo, "base": str(models / "head"), "delta": str(models / silo)} for silo in "ab"
            ],
            "seconds": 0.0,
            "task_seconds": 0.0,
            "out": str(self.folder / "work" / "out"),
        }

    def revived(self, child: Child, version: int = 5) -> bytes:
        child.start(time.monotonic() + 120)
        answer = child.revive(self.request(version), time.monotonic() + 120)
        assert answer["is"] == "revived", answer
        return (self.folder / "work" / "out").read_bytes()

    def once(self, device: str) -> bytes:
        child = self.child(device)
        try:
            return self.revived(child)
        finally:
            child.stop()

    def values(self, data: bytes) -> torch.Tensor:
        (self.folder / "values").write_bytes(data)
        arrays = read_tensors(self.folder / "values", self.manifest)
        return torch.cat([torch.from_numpy(array).flatten() for array in arrays.values()])

    def __post_init__(self) -> None:
        job = self.terms.file.job
        model = build_model(load_task(self.folder / "archive", job.task, job.params), self.terms.file)
        self.manifest = tensors.manifest_of(model, "average")
        self.terms = self.terms.model_copy(update={"manifest_sha256": self.manifest.digest()})
        chance, models = torch.Generator().manual_seed(1), self.folder / "models"
        models.mkdir()
        head = {name: tensor.detach() for name, tensor in tensors.travelling(model, "average").items()}
        write_tensors(models / "head", self.manifest, {name: one.numpy() for name, one in head.items()})
        for place, silo in enumerate("ab"):
            delta = {}
            for spec in self.manifest.specs:
                drawn = 0.1 * torch.randn(spec.shape, generator=chance)
                delta[spec.name] = (drawn if spec.role == "trainable" else head[spec.name]).clone()
            delta["body.7.bias"][place] += 3.0  # each knows a class of its own
            arrays = {name: one.numpy() for name, one in delta.items()}
            write_tensors(models / silo, self.manifest, arrays)


Make = Callable[..., Job]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    home = tmp_path / "home"
    (home / "jobs").mkdir(parents=True)
    (home / "identity").mkdir(mode=0o700)
    isolated = isolation.available(home, [home / "jobs"])
    with Launcher(home, module="reviver.runner") as launcher:

        def made(how: str = "", revival: str = REVIVAL) -> Job:
            folder = home / "jobs" / "job"
            (folder / "archive").mkdir(parents=True)
            (folder / "archive" / "task.py").write_text(TASK)
            text = f'[job]\nname = "j"\ntask = "task.py:Task"\nparams = {{ how = "{how}" }}\n[revival]\n{revival}\n'
            digest = "0" * 64
            terms = JobTerms(
                file=parse_job_file(text),
                archive_sha256=digest,
                initial_sha256=digest,
                manifest_sha256=digest,
            )
            return Job(folder, terms, launcher, isolated)

        yield made


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("revival", [REVIVAL, REVIVAL + '\nsynthesis = "noise"'])
def test_the_same_seed_gives_the_same_bytes_in_another_process(make: Make, name: str, revival: str) -> None:
    job = make(revival=revival)
    assert job.once(name) == job.once(name)


@cuda
def test_a_gpu_says_nearly_what_the_cpu_says(make: Make) -> None:
    job = make(revival=REVIVAL + '\nsynthesis = "noise"')
    one, other = job.values(job.once(CPU)), job.values(job.once("cuda:0"))
    assert float(one.norm()) > 0
    assert float((one - other).norm()) < 0.05 * float(one.norm())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("how", "said"),
    [("lost", "AcceleratorError"), ("library", "RuntimeError"), ("full", "OutOfMemoryError")],
)
def test_a_device_that_fails_in_mid_task_fails_the_task_and_not_the_next(
    make: Make, name: str, how: str, said: str
) -> None:
    """The process says what it was and ends; its successor does what it should have done."""
    job = make(how)
    child = job.child(name)
    with pytest.raises(TaskFailed) as failed:
        job.revived(child)
    # Without a GPU it is the machine's memory that is full, and torch has no word of its own for that.
    assert failed.value.exception == ("RuntimeError" if (name, how) == (CPU, "full") else said)
    child.stop()
    assert job.revived(child) == job.once(name)
    child.stop()


@pytest.mark.parametrize("name", NAMES)
def test_a_process_killed_in_mid_task_is_replaced(make: Make, name: str) -> None:
    job = make("waits")
    child = job.child(name)
    child.start(time.monotonic() + 120)
    assert child._process is not None
    pid = child._process.pid

    def kill() -> None:
        while not (job.folder / "work" / "once").exists():
            time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(TaskFailed) as failed:
        child.revive(job.request(5), time.monotonic() + 120)
    killer.join()
    assert failed.value.exception == "ProcessEnded"
    child.stop()
    assert job.revived(child) == job.once(name)
    child.stop()


NONE = Isolation("none", "a test")


def test_a_gpu_that_is_not_there_is_named_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"--device cuda:99 cannot be used: .*; or say --device cpu"):
        choose("cuda:99", tmp_path, NONE)
    with pytest.raises(Refused, match="say auto, cpu, cuda, or cuda:1"):
        choose("gpu", tmp_path, NONE)


def test_the_cpu_is_taken_where_it_is_asked_for_or_nothing_else_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(device, "DEV", tmp_path)
    (tmp_path / "nvidia0").touch()
    [cpu] = choose("cpu", tmp_path, NONE)
    assert (str(cpu), list(cpu.libraries)) == ("cpu", ["torch"])
    assert choose("auto", tmp_path, NONE) == (cpu,)
    with pytest.raises(Unavailable, match="torch"):
        choose("cuda", tmp_path, NONE)


@pytest.mark.parametrize(("file", "tried"), [("null", 0), ("nvidia0", 1), ("dxg", 1), ("kfd", 1)])
def test_auto_tries_a_gpu_only_where_the_machine_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, tried: int
) -> None:
    """A trial imports torch, which delayed every start on machines that have nothing to try."""
    started: list[object] = []

    def run(*command: object, **_: object) -> None:
        started.append(command)
        raise OSError

    monkeypatch.setattr(device, "DEV", tmp_path)
    monkeypatch.setattr(subprocess, "run", run)
    (tmp_path / file).touch()
    assert [one.name for one in choose("auto", tmp_path, NONE)] == ["cpu"]
    assert len(started) == tried


@cuda
def test_a_gpu_is_found_tried_and_named(tmp_path: Path) -> None:
    """From inside the fence that jobs' processes have, as the log will say it."""
    home = tmp_path / "home"
    (home / "identity").mkdir(parents=True, mode=0o700)
    isolated = isolation.available(home, [])
    gpu, cpu = choose("auto", home, isolated)
    assert (gpu.name, cpu.name) == ("cuda:0", "cpu")
    assert torch.cuda.get_device_name(0).split()[0] in gpu.model
    assert choose("cuda", home, isolated) == (gpu,)
    report = Report(seed=0, device=str(gpu), libraries=dict(gpu.libraries), seconds=1.0)
    assert report.libraries["cuda"] == torch.version.cuda
