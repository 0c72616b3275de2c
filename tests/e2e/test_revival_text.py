"""Texts and LoRA revived by real processes: base models stay where they are, and adapters teach on texts without words."""

import pytest

from tests.e2e.federation import Federation
from tests.e2e.test_adapters import bert, bound
from tests.e2e.test_revival import ended

pytestmark = pytest.mark.timeout(560)  # three processes import torch and transformers
# Four kinds of texts, one at each silo; slow until somebody puts a file beside the data.
TASK = """
import time
import torch
from transformers import AutoModel
from silo_agent import Texts

class Classifier(torch.nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.head = encoder, torch.nn.Linear(32, 4)

    def forward(self, ids):
        there = ids.ne(0).long()
        return self.head(self.encoder(input_ids=ids, attention_mask=there).last_hidden_state[:, 0])

class Task:
    def model(self, base):
        return Classifier(AutoModel.from_pretrained(base, add_pooling_layer=False))

    def inputs(self):
        return Texts(12, "word_embeddings", first=2)

    def dataset(self, data, split):
        self.hurry = data.path / "hurry"
        kind = 0 if data.path.name == "hospital-a" else 3
        ids = torch.randint(3 + 10 * kind, 13 + 10 * kind, (64, 12))
        ids[:, 0] = 2
        return torch.utils.data.TensorDataset(ids, torch.full((64,), kind))

    def loss(self, model, batch):
        if not self.hurry.exists():
            time.sleep(2.0)
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
"""
JOB = """
[job]
name = "sentences"
task = "task.py:Task"
data = "records"
base = "tiny"
[silos]
min = 2
[training]
local_steps = 2
batch_size = 8
[training.optimizer]
lr = 5.0
[adapter]
rank = 2
targets = ["query", "value"]
heads = ["head"]
[aggregation]
buffer = 1
[evaluation]
every = 1000
[revival]
freeze = 0
warmup = 0
late = 30
synthesis_every = 1
synthesis_steps = 2
synthesis_batch = 8
[stop]
versions = 40
"""
SILOS = ("hospital-a", "hospital-b")


def test_adapters_teach_by_texts_that_nobody_wrote(federation: Federation) -> None:
    base = bert(federation.root / "tiny", 0)
    for name in SILOS:
        federation.enrol(name, policy=f"allow_revival = true\n{bound(base)}")
        federation.agent(name)
    bundle = federation.call("anabranch-server", "reviver", federation.server_dir, "distiller")["reviver"]
    home = federation.root / "reviver"
    given = ["--home", home, "--base", f"tiny={base}", "--unconfined"]
    federation.start("reviver", "anabranch-reviver", "run", bundle, *given)
    folder = federation.root / "sentences"
    folder.mkdir()
    (folder / "job.toml").write_text(JOB)
    (folder / "task.py").write_text(TASK)
    job = str(federation.call("anabranch", "job", "submit", folder, "--base", base)["job"])
    for name in SILOS:
        federation.approve(name, job)
    federation.until(lambda: federation.status(job)["head"] >= 2, "both silos trained")
    federation.until(lambda: ended(federation, job, "used"), "a version used a revival")
    for name in SILOS:
        (federation.root / "data" / name / "hurry").touch()
    assert federation.finish(job)["head"] == 40
    performed = federation.entries("revival.performed")
    assert {one["silo"] for entry in performed for one in entry["detail"]["teachers"]} == set(SILOS)
    federation.verified()
