"""Feedback between real processes: updates in two bits, some of them refused, an agent that is killed now and then."""

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anabranch.wire.tensors import read_manifest, read_tensors
from tests.e2e.federation import JOB, TASK, Federation

STEPS, LR = 4, 0.05
# The gradient is the same whatever the model and the records: every update is -LR * STEPS * slope, but for rounding. The
# second of each training process is far too large.
SLOPED = TASK.replace("torch.nn.Linear(8, 2)", "torch.nn.Linear(8, 99)").replace(
    """        x, y = batch
        return torch.nn.functional.cross_entropy(model(x), y)
""",
    """        self.asked = getattr(self, "asked", 0) + 1
        large = 1000 if 4 < self.asked <= 8 else 1
        return large * sum((p * torch.linspace(-1, 2, p.numel()).view_as(p)).sum() for p in model.parameters())
""",
)
SETTINGS = JOB.replace("[aggregation]", f'optimizer = {{{{ name = "sgd", lr = {LR} }}}}\n[aggregation]')
LINK = '[link]\nupload_density = 0.1\nupload_chunk = 64\nupload_values = "int2"\nupload_feedback = 1.0\n'
RULE = 'buffer = 1\nmax_update_norm = 60\nserver_optimizer = { name = "sgd", lr = 1.0 }'


def kept_of(federation: Federation, job: str, accepted: set[str]) -> Path:
    """What the agent, which does not run, would go on with."""
    home = federation.silo_dir("hospital-a")
    for entry in (home / "outbox").iterdir():
        beside = entry / "remainder.safetensors"
        if entry.name in accepted and beside.exists():
            return beside  # accepted, and the agent has not heard of it
    return home / "jobs" / job / "remainder.safetensors"


@pytest.mark.timeout(300)
def test_what_left_the_silo_and_what_stays_there_is_all_it_learned(federation: Federation) -> None:
    federation.enrol("hospital-a", pause=0.01)
    federation.agent("hospital-a")
    job = federation.submit(task=SLOPED, text=SETTINGS + LINK, rule=RULE, steps=STEPS, versions=1000)
    federation.approve("hospital-a", job)
    federation.until(lambda: federation.status(job)["head"] >= 3, "3 versions")
    federation.kill("hospital-a")
    federation.agent("hospital-a")
    federation.until(lambda: federation.status(job)["head"] >= 7, "7 versions")
    agent = federation.processes.pop("hospital-a")
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(30) == 0

    entries = federation.until(lambda: all_merged(federation), "all that was accepted is merged")
    refused = [e["detail"]["code"] for e in entries if e["type"] == "update.refused"]
    assert set(refused) == {"norm_exceeded"}
    accepted = {e["detail"]["update"] for e in entries if e["type"] == "update.received"}
    models = {e["detail"]["version"]: e["detail"] for e in entries if e["type"] == "model.published"}
    learned = {
        name: -LR * STEPS * len(accepted) * np.linspace(-1, 2, array.size).reshape(array.shape)
        for name, array in read(federation, models[0]["parameters_sha256"]).items()
    }
    remainder = read_tensors(*with_manifest(kept_of(federation, job, accepted)))
    first, last = (read(federation, models[version]["parameters_sha256"]) for version in (0, len(accepted)))
    for name in learned:
        np.testing.assert_allclose(last[name] - first[name] + remainder[name], learned[name], atol=1e-3)
    assert max(np.abs(array).max() for array in remainder.values()) > 0.5
    federation.verified()


def all_merged(federation: Federation) -> list[Any]:
    """The entries of the log, once there is a version for each accepted update."""
    entries = federation.entries()
    types = [entry["type"] for entry in entries]
    return entries if types.count("model.published") == types.count("update.received") + 1 else []


def with_manifest(path: Path) -> tuple[Path, Any]:
    return path, read_manifest(path)


def read(federation: Federation, digest: str) -> Any:
    (path,) = (federation.server_dir / "blobs").rglob(digest)
    return read_tensors(*with_manifest(path))
