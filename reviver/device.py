"""What a job's process computes on: the CPU or a GPU, tried before it is relied on. The trial is a process of its own:

    python -m reviver.device

Only the standard library is imported before it has fenced itself in; the daemon that starts it knows no torch.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from anabranch.errors import Reason, Refused, Unavailable
from silo_agent.training import isolation
from silo_agent.training.isolation import Fence, Isolation

if TYPE_CHECKING:
    import torch

CHOICE = r"auto|cpu|cuda(:[0-9]{1,3})?"
DEV = Path("/dev")
GPUS = ("nvidia*", "nvhost*", "kfd", "dxg")  # device files: NVIDIA's, Jetson's, AMD's, Windows' in WSL
TRIAL_SECONDS = 120.0  # a GPU that was idle may take long to wake
NAME = 60  # characters of a GPU's name

logger = structlog.get_logger("device")


@dataclass(frozen=True)
class Device:
    name: str  # as torch calls it: cpu, cuda:0
    libraries: Mapping[str, str]  # that compute there, and their versions
    model: str = ""  # of a GPU: NVIDIA H100 80GB HBM3

    def __str__(self) -> str:
        return f"{self.name} {self.model}".strip()


def choose(asked: str, home: Path, isolated: Isolation) -> tuple[Device, ...]:
    """What jobs' processes compute on, and with `auto`, after a GPU, what they go on with where it fails them.

    `asked`: auto, cpu, cuda, cuda:N. Starts a process unless that is cpu, or auto on a machine without a GPU. Raises
    Refused(MALFORMED) for another word, Unavailable saying what to do when a GPU that was asked for cannot be used.
    """
    if not re.fullmatch(CHOICE, asked):
        raise Refused(
            Reason.MALFORMED, f"--device {asked}: say auto, cpu, cuda, or cuda:1 for the second GPU"
        )
    cpu = Device("cpu", {"torch": version("torch")})
    if asked == "cpu":
        return (cpu,)
    if asked == "auto" and not any(next(DEV.glob(kind), None) for kind in GPUS):
        logger.info("no GPU is used", why=f"no GPU has a device file in {DEV}")
        return (cpu,)
    name = asked if ":" in asked else "cuda:0"
    found = _trial(name, home, isolated)
    if isinstance(found, Device):
        return (found, cpu) if asked == "auto" else (found,)
    if asked != "auto":
        raise Unavailable(f"--device {asked} cannot be used: {found}; or say --device cpu")
    logger.info("no GPU is used", why=found)
    return (cpu,)


def settle(name: str) -> "torch.device":
    """Before anything computes: the same seed is to give the same bytes, on the same kind of GPU and libraries.

    Where a model has an operation that CUDA has no such form of, torch warns and goes on: nobody recomputes a revival.
    """
    if name != "cpu":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # is read when CUDA starts
    import torch

    device = torch.device(name)
    if device.type == "cuda":
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
        torch.cuda.set_device(device)
    return device


def _trial(name: str, home: Path, isolated: Isolation) -> Device | str:
    """Fenced in as jobs' processes are. A text says why not, and what to do."""
    fence = Fence(isolated.kind, isolated.uid, os.getpid(), str(home), str(home / "identity"))
    try:
        done = subprocess.run(
            isolation.command(Path(sys.executable), "reviver.device"),
            input=json.dumps({"fence": asdict(fence), "device": name}),
            capture_output=True,
            text=True,
            timeout=TRIAL_SECONDS,
            env=isolation.environment(),
            cwd="/",
            check=False,
        )
        found: dict[str, Any] = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return f"trying it gave no answer ({type(error).__name__}): see whether nvidia-smi answers"
    if "why" in found:
        return str(found["why"])
    return Device(name, found["libraries"], found["model"])


def main() -> None:
    asked = json.load(sys.stdin)
    try:
        isolation.enter(Fence(**asked["fence"]))
        answer = _used(asked["device"])
    except (OSError, RuntimeError, ImportError) as error:
        answer = {"why": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    print(json.dumps(answer))


def _used(name: str) -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        if torch.version.cuda is None and torch.version.hip is None:
            return {"why": f"torch {torch.__version__} is built without CUDA: install one that has it"}
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            reason = str(error).splitlines()[0][:200]
            return {"why": f"{reason} (see whether nvidia-smi finds it, and CUDA_VISIBLE_DEVICES)"}
    count = torch.cuda.device_count()
    if int(name.partition(":")[2]) >= count:
        return {"why": f"the last GPU here is cuda:{count - 1}"}
    device = settle(name)
    ones = torch.ones(64, 64, device=device)
    assert float((ones @ ones).sum()) == 64.0**3
    model = re.sub(r"[^A-Za-z0-9._()/+-]+", " ", torch.cuda.get_device_name(device))[:NAME].strip()
    libraries = {"torch": str(torch.__version__), "cuda": torch.version.cuda}
    return {"model": model, "libraries": {key: text for key, text in libraries.items() if text}}


if __name__ == "__main__":
    main()
