"""A language model adapted with LoRA by real server and agents: the base stays where it is, and has to be the same."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification

from tests.e2e.federation import Federation

TASK = """
import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

class Task:
    def model(self, base):
        return AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)

    def dataset(self, data, split):
        with np.load(data.path / "records.npz") as file:
            x, y = file["x"], torch.from_numpy(file["y"])
        return torch.utils.data.TensorDataset(torch.from_numpy((x * 4).astype(np.int64) % 50), y)

    def loss(self, model, batch):
        return model(input_ids=batch[0], labels=batch[1]).loss

    def evaluate(self, model, batches):
        right = [(model(input_ids=x).logits.argmax(1) == y).float().mean() for x, y in batches]
        return {"accuracy": float(sum(right) / len(right))}
"""
JOB = """
[job]
name = "sentences"
task = "task.py:Task"
data = "records"
base = "tiny"
[silos]
min = 1
[training]
local_steps = 2
batch_size = 8
[adapter]
rank = 2
heads = ["classifier"]
[aggregation]
buffer = 1
[stop]
versions = 3
"""


def bert(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        vocab_size=50,
        max_position_embeddings=32,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def bound(folder: Path) -> str:
    return f'[models.tiny]\npath = "{folder}"\n'


def submitted(federation: Federation, base: Path) -> str:
    folder = federation.root / "sentences"
    folder.mkdir()
    (folder / "job.toml").write_text(JOB)
    (folder / "task.py").write_text(TASK)
    missing = federation.call("anabranch", "job", "submit", folder, expect=1)
    assert "add --base PATH" in str(missing)
    return str(federation.call("anabranch", "job", "submit", folder, "--base", base)["job"])


def test_lora_through_to_a_published_version(federation: Federation) -> None:
    base, other = bert(federation.root / "tiny", 0), bert(federation.root / "other", 1)
    federation.enrol("hospital-a", 0, policy=bound(base))
    federation.enrol("hospital-b", 1, policy=bound(other))
    for name in ("hospital-a", "hospital-b"):
        federation.agent(name)
    job = submitted(federation, base)
    federation.approve("hospital-b", job)
    federation.until(lambda: "OtherBase" in reason(federation, job, "hospital-b"), "another base is refused")
    assert federation.status(job)["head"] == 0
    log = (federation.silo_dir("hospital-b") / "jobs" / job / "training.log").read_text()
    assert f"model folder {other}" in log
    assert "not the one the job was submitted with" in (federation.root / "hospital-b.log").read_text()

    federation.call("anabranch-silo", "withdraw", job, "--yes", "--dir", federation.silo_dir("hospital-b"))
    federation.approve("hospital-a", job)
    assert federation.finish(job)["head"] == 3
    federation.verified()
    merged = {entry["detail"]["silo"] for entry in federation.entries("update.received")}
    assert merged == {"hospital-a"}
    path = federation.root / "model.safetensors"
    done = federation.call("anabranch", "job", "export", job, "-o", path)
    assert Path(done["adapter"], "adapter_config.json").is_file()
    assert "frozen weights" in path.with_suffix(".md").read_text()
    kinds = {name.split(".")[-3] for name in load_file(path)}
    assert kinds == {"lora_A", "lora_B", "modules_to_save"}


def reason(federation: Federation, job: str, silo: str) -> str:
    found: dict[str, Any] = federation.silo(job, silo)
    return str(found["last_reason"])
