"""Seconds and memory of a revival on CPU and GPU, beside one silo's job on the same device.

    python -m benchmarks.revival.device OUT.json [--on cpu:1 --on cpu:8 --on cuda:0] [--seconds 20]

Two models with ten teachers each under the job file's defaults: a network of 34,000 parameters for 28 × 28 grey pictures,
and a ResNet-18 without normalisation for 32 × 32 in colour. A revival is what a task costs once its files are read: one
silo's newer model is taken, and the head distilled; every fourth one makes inputs first. A silo's job is 25 steps of
Adam on batches of 32. Each line is a process of its own, the first of several readings is dropped, medians of the rest.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from anabranch.terms import Optimizer, Revival, parse_job_file
from benchmarks.gauge import forget_peak, peak_memory
from reviver.device import settle
from reviver.inputs import Pictures
from reviver.reviver import Reviver
from silo_agent.training.building import optimizer_for
from silo_agent.training.inputs import Images
from silo_agent.training.task import load_task

JOB = Path(__file__).parent / "job"
TEACHERS, STEPS, BATCH, CLASSES = 10, 25, 32, 10
SETTINGS = Revival(freeze=0, warmup=0)
MOST = 40  # readings

Values = dict[str, Tensor]


def small() -> nn.Module:
    job = parse_job_file((JOB / "fashion.toml").read_text()).job
    return load_task(JOB, job.task, job.params).model()


class Block(nn.Module):
    """Without normalisation: what a block adds begins small."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(into, out, 3, stride=stride, padding=1)
        self.two = nn.Conv2d(out, out, 3, padding=1)
        self.past = nn.Conv2d(into, out, 1, stride=stride) if stride > 1 else nn.Identity()
        self.share = nn.Parameter(torch.tensor(0.2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.past(x) + self.share * self.two(torch.relu(self.one(x))))


def resnet() -> nn.Module:
    widths = [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)]
    blocks = [
        block for into, out, stride in widths for block in (Block(into, out, stride), Block(out, out, 1))
    ]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, CLASSES))
    return nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), *blocks, *head)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "small": (small, (1, 28, 28)),
    "resnet18": (resnet, (3, 32, 32)),
}


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("out", type=Path)
    asked.add_argument("--on", action="append", help="cpu:THREADS, cuda:N")
    asked.add_argument("--seconds", type=float, default=20.0, help="of each reading, about")
    asked.add_argument("--case", nargs=2, metavar=("MODEL", "ON"), help="this one only, in this process")
    said = asked.parse_args()
    if said.case:
        said.out.write_text(json.dumps(measured(*said.case, said.seconds)))
        return
    places = said.on or ["cpu:1", "cpu:8", *(["cuda:0"] if torch.cuda.is_available() else [])]
    cases = []
    print(
        f"{'':10}{'':8}{'revival':>10}{'plain':>10}{'makes':>10}{'job':>10}{'share':>8}{'MiB':>8}  n",
        flush=True,
    )
    for model in MODELS:
        for on in places:
            command = [sys.executable, "-m", "benchmarks.revival.device", str(said.out)]
            subprocess.run([*command, "--seconds", str(said.seconds), "--case", model, on], check=True)
            cases.append(one := json.loads(said.out.read_text()))
            figures = (one["revival_s"], one["plain_s"], one["synthesis_s"], one["silo_job_s"])
            print(
                f"{model:10}{on:8}"
                + "".join(f"{seconds:10.4f}" for seconds in figures)
                + f"{one['revival_s'] / one['silo_job_s']:8.2f}{one['peak_mib']:8.0f}  {one['readings']}",
                flush=True,
            )
    found = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count(), "cases": cases}
    said.out.write_text(json.dumps(found, indent=1))


def measured(model: str, on: str, seconds: float, settings: Revival = SETTINGS) -> dict[str, Any]:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    kind, _, number = on.partition(":")
    threads, name = (int(number), "cpu") if kind == "cpu" else (1, on)
    torch.set_num_threads(threads)
    job = _silo_job(model, torch.device(name), seconds / 4)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    reviver, head, newer = _taught(model, settle(name), settings)
    torch.set_num_threads(threads)
    if name == "cpu":
        forget_peak(os.getpid())
    else:
        torch.cuda.reset_peak_memory_stats()
    every = settings.synthesis_every
    makes, plain = _readings(reviver, head, newer, every, seconds)
    return {
        "model": model,
        "on": on,
        "device": "cpu" if name == "cpu" else torch.cuda.get_device_name(name),
        "torch": torch.__version__,
        "parameters": sum(one.numel() for one in MODELS[model][0]().parameters()),
        "revival_s": (_typical(makes) + (every - 1) * _typical(plain)) / every,
        "plain_s": _typical(plain),
        "synthesis_s": _typical(makes),
        "silo_job_s": job,
        "readings": len(makes) + len(plain),
        "peak_mib": (peak_memory(os.getpid()) if name == "cpu" else torch.cuda.max_memory_allocated())
        / 2**20,
    }


def _typical(readings: list[float]) -> float:
    return median(readings[1:] or readings)


def _readings(
    reviver: Reviver, head: Values, newer: list[Values], every: int, seconds: float
) -> tuple[list[float], list[float]]:
    """Of revivals that make inputs first, and of others."""
    makes: list[float] = []
    plain: list[float] = []
    until = time.perf_counter() + seconds
    while not plain or (time.perf_counter() < until and len(makes) + len(plain) < MOST):
        number = len(makes) + len(plain)
        silo = number % TEACHERS
        begun = time.perf_counter()
        reviver.learn(str(silo), head, newer[silo])
        revived = reviver.revive(head, number + 1)
        taken = time.perf_counter() - begun
        assert not isinstance(revived, str), revived
        (plain if number % every else makes).append(taken)
    return makes, plain


def _taught(model: str, device: torch.device, settings: Revival) -> tuple[Reviver, Values, list[Values]]:
    """A reviver with its teachers, each probed as often as it ever is; a head, and what each silo sends."""
    build, shape = MODELS[model]
    torch.manual_seed(1)
    head = {name: tensor.detach().clone() for name, tensor in build().state_dict().items()}
    kept = {name for name, _ in build().named_buffers()}
    newer = [
        {
            name: tensor if name in kept else 0.1 * tensor.std(unbiased=False) * torch.randn_like(tensor)
            for name, tensor in head.items()
        }
        for _ in range(TEACHERS)
    ]
    reviver = Reviver(build(), Pictures(Images(shape, -2.0, 2.0)), settings, 1, device)
    for silo in [*range(TEACHERS), *range(TEACHERS)]:
        assert reviver.learn(str(silo), head, newer[silo]) == ""
    return reviver, head, newer


def _silo_job(model: str, device: torch.device, seconds: float) -> float:
    """Seconds of the steps a silo takes for one update; no data is read."""
    build, shape = MODELS[model]
    torch.manual_seed(1)
    network = build().to(device).train()
    optimizer = optimizer_for(network, Optimizer(name="adam", lr=0.001))
    inputs, labels = torch.randn(BATCH, *shape), torch.randint(0, CLASSES, (BATCH,))
    taken: list[float] = []
    until = time.perf_counter() + seconds
    while len(taken) < 3 or (time.perf_counter() < until and len(taken) < 10 * MOST):
        begun = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(network(inputs.to(device)), labels.to(device))
        loss.backward()
        optimizer.step()
        loss.item()
        taken.append(time.perf_counter() - begun)
    return STEPS * _typical(taken)


if __name__ == "__main__":
    main()
