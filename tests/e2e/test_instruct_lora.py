"""examples/instruct-lora: one kind of instruction at each silo; the script as one process and as two ranks."""

import runpy
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.e2e.federation import Federation

EXAMPLE = Path(__file__).parents[2] / "examples" / "instruct-lora"


@pytest.mark.timeout(400)
def test_one_adapter_from_two_silos(federation: Federation) -> None:
    """As it stands but for fewer silos, steps and versions, of which each takes both silos."""
    data = federation.root / "instructions"
    runpy.run_path(str(EXAMPLE / "data.py"))["write"](data, rows=60)
    silos = {"reverse": "", "twice": "processes = 2\n"}
    for kind, run in silos.items():
        federation.enrol(kind)
        (federation.silo_dir(kind) / "policy.toml").write_text(
            f'[data.instructions]\npath = "{data / kind}.jsonl"\n[run]\nisolation = "allowed-without"\n{run}'
        )
        federation.agent(kind)
    folder = federation.root / "job"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    text = (folder / "job.toml").read_text()
    changes = {"min = 3": "min = 2", "buffer = 3": "", "every = 5": "every = 2"}
    changes |= {'strategy = "fedbuff"': 'strategy = "fedavg"'}
    changes |= {"local_steps = 20": "local_steps = 3", "versions = 20": "versions = 2"}
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "job.toml").write_text(text)
    job = str(federation.call("anabranch", "job", "submit", folder)["job"])
    for kind in silos:
        federation.approve(kind, job)
    federation.until(lambda: federation.status(job)["head"] >= 1, "a version")
    status = federation.finish(job)
    assert status["head"] == 2, federation.logs()
    assert [silo["merged"] for silo in status["silos"]] == [2, 2], federation.logs()
    log = federation.silo_dir("twice") / "jobs" / job / "training.log"
    assert log.read_text().count("isolation: ") == 2  # a fence for each rank
    federation.verified()
    model = federation.root / "adapter.safetensors"
    federation.call("anabranch", "job", "export", job, "--version", "head", "-o", model)
    assert all(".lora_A." in name or ".lora_B." in name for name in load_file(model))
