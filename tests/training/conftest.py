"""Jobs as the agent has them on disk, small data, and real training processes."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anabranch.terms import JobFile, JobTerms, parse_job_file
from silo_agent.training import initial, isolation
from silo_agent.training.launcher import Launcher, TrainingProcess

torch.set_num_threads(1)

EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass(frozen=True)
class Bound:
    """What a policy binds to a data name."""

    path: Path
    params: dict[str, Any] = field(default_factory=dict)
    transform: str | None = None


@dataclass(frozen=True)
class JobOnDisk:
    folder: Path
    terms: JobTerms
    base: Path

    @property
    def file(self) -> JobFile:
        return self.terms.file

    def train(self, cycle: str, steps: int = 6, version: int = 0) -> dict[str, Any]:
        return {
            "do": "train",
            "cycle": cycle,
            "version": version,
            "parameters": str(self.base),
            "steps": steps,
            "out": str(self.folder / "work" / f"{cycle}.safetensors"),
        }

    def evaluate(self, cycle: str) -> dict[str, Any]:
        return {
            "do": "evaluate",
            "cycle": cycle,
            "version": 0,
            "parameters": str(self.base),
            "split": "validation",
        }

    def update(self, cycle: str) -> bytes:
        return (self.folder / "work" / f"{cycle}.safetensors").read_bytes()


def make_job(folder: Path, code: Path, model: Path | None = None, **changes: Any) -> JobOnDisk:
    """Unpacked code, version 0 and terms, as approval leaves them. `model`: the base. `changes`: of `[training]`."""
    archive = folder / "archive"
    shutil.copytree(code, archive, ignore=shutil.ignore_patterns("__pycache__"))
    file = parse_job_file((archive / "job.toml").read_text("utf-8"))
    file = file.model_copy(update={"training": file.training.model_copy(update=changes)})
    (folder / "models").mkdir()
    base = folder / "models" / "0.safetensors"
    made = initial.build(archive, file, base, model)
    terms = JobTerms(
        file=file,
        archive_sha256="0" * 64,
        initial_sha256="0" * 64,
        manifest_sha256=made.manifest.digest(),
        base_sha256=made.base_sha256,
    )
    return JobOnDisk(folder, terms, base)


def wait_for(process: TrainingProcess, kind: str, seconds: float = 60) -> dict[str, Any]:
    """The next message of a kind; one that says "failed" ends the wait too."""
    for message in process.messages(seconds):
        if message["is"] in (kind, "failed"):
            return dict(message)
    raise AssertionError(f"no {kind!r} from the training process")


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten noisy prototypes in the form of the digits data: x (400, 64) float32 in 0..1, y (400,) int64."""
    rng = np.random.default_rng(0)
    prototypes = rng.random((10, 64), dtype=np.float32)
    y = rng.integers(0, 10, 400)
    x = np.clip(prototypes[y] + rng.normal(0, 0.1, (400, 64)).astype(np.float32), 0, 1)
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(path, x=x, y=y)
    return path


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An agent's folder with a key."""
    home = tmp_path_factory.mktemp("agent")
    (home / "jobs").mkdir()
    (home / "identity").mkdir(mode=0o700)
    key = home / "identity" / "update.key"
    key.write_text("the agent's key")
    key.chmod(0o600)
    return home


@pytest.fixture(scope="session")
def isolated(home: Path) -> isolation.Isolation:
    found = isolation.available(home, [home / "jobs"])
    if not found.holds:
        pytest.skip(f"this machine isolates nothing: {found.detail}")
    return found


@pytest.fixture(scope="session")
def launcher(home: Path) -> Iterator[Launcher]:
    with Launcher(home) as launcher:
        yield launcher


Start = Callable[[JobOnDisk, Bound], TrainingProcess]


@pytest.fixture(scope="module")
def start(launcher: Launcher, isolated: isolation.Isolation) -> Iterator[Start]:
    """Starts processes that the end of the module stops."""
    started: list[TrainingProcess] = []

    def start(job: JobOnDisk, data: Bound) -> TrainingProcess:
        started.append(launcher.start(job.folder, job.terms, data, isolated))
        return started[-1]

    yield start
    for process in started:
        process.stop(0)


@pytest.fixture(scope="session")
def job_folder(home: Path) -> Callable[[str], Path]:
    def folder(name: str) -> Path:
        path = home / "jobs" / name
        path.mkdir(parents=True)
        os.chmod(path, 0o755)
        return path

    return folder


@pytest.fixture(scope="session")
def tools() -> Any:
    """The helpers above, for test modules, which cannot import this file by name."""

    class Tools:
        examples = EXAMPLES
        bound = Bound
        make_job = staticmethod(make_job)
        wait_for = staticmethod(wait_for)

    return Tools
