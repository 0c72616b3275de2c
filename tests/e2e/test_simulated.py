"""The simulator against reality: a federation of real processes, and its run in virtual time in the order of its log."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from tests.e2e.federation import JOB, Federation

NAMES = ("hospital-a", "hospital-b", "hospital-c")
# Draws from every generator, walks a set, keeps something of its own records, and uses an operation that torch calls not
# deterministic. It makes no step before all silos can.
TASK = """
import random
import time
import numpy as np
import torch
from torch.utils.data import TensorDataset

class Tiny:
    def model(self):
        layers = [torch.nn.Linear(8, 8) for _ in range(4)]
        for layer, name in zip(layers, {"left", "right", "up", "downwards"}):
            torch.nn.init.normal_(layer.weight, std=len(name) / 10)
        return torch.nn.Sequential(*layers, torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 2))

    def dataset(self, data, split):
        with np.load(data.path / "records.npz") as file:
            x, y = torch.from_numpy(file["x"]), torch.from_numpy(file["y"])
        self.gate, self.pause = data.path / "go", float(data.params.get("seconds_per_batch", 0))
        mine = [place for place in range(len(x)) if (data.split(place) == "train") == (split == "train")]
        if split == "train":
            self.mean = x[mine].mean(0)
        return TensorDataset(x[mine] + 0.1 * torch.randn(len(mine), 8), y[mine])

    def loss(self, model, batch):
        while not self.gate.exists():
            time.sleep(0.05)
        time.sleep(self.pause)
        x, y = batch
        x = x.clone().put_(torch.tensor([0]), torch.tensor([0.5]))
        noise = np.random.normal(0, 0.1) + random.gauss(0, 0.1) + 0.1 * torch.randn(x.shape)
        return torch.nn.functional.cross_entropy(model(x - self.mean + noise), y)

    def evaluate(self, model, batches):
        right = total = 0
        for x, y in batches:
            right += int((model(x).argmax(1) == y).sum())
            total += len(y)
        return {"accuracy": right / total}
"""
SCENARIO = """horizon = "1h"
[data.records]
path = "data"
deal = { kind = "files" }
[[silos]]
count = 3
train = { kind = "constant", seconds = 1 }
"""


@pytest.mark.timeout(300)  # three training processes and two simulations import torch
def test_a_simulation_in_the_order_of_an_export_makes_its_versions(federation: Federation) -> None:
    for seed, name in enumerate(NAMES):
        federation.enrol(name, seed, pause=0.1 if name == "hospital-c" else 0.0)
        federation.agent(name)
    text = JOB.replace("batch_size = 8", 'batch_size = 8\nbuffers = "average"')
    job = federation.submit(task=TASK, text=text, silos=3, buffer=2, versions=12)
    for name in NAMES:
        federation.approve(name, job)
    federation.until(
        lambda: all(one["training"] for one in federation.status(job)["silos"]), "all silos train"
    )
    for name in NAMES:
        (federation.root / "data" / name / "go").touch()
    federation.finish(job)
    export = federation.root / "export"
    federation.call("anabranch-server", "export", federation.server_dir, "-o", export)
    (federation.root / "scenario.toml").write_text(SCENARIO)
    again = simulated(federation, federation.root / "job", export)
    every = {"versions": 12, "equal": 12, "first_different": None}
    assert again["like"] == {"same_terms": True, "left_out": 0, **every}
    assert again["jobs"][0]["status"] == "completed"
    merged = [row for row in updates(federation) if row["outcome"] == "merged"]
    assert by_version(merged) == merged_in_reality(federation.entries())
    assert any(row["staleness"] > 0 for row in merged)


def simulated(federation: Federation, job: Path, export: Path) -> Any:
    root = federation.root
    flags = ("--scenario", root / "scenario.toml", "--like", export, "-o", root / "out")
    [run] = federation.call("anabranch", "simulate", job, *flags)["runs"]
    return run


def updates(federation: Federation) -> list[dict[str, Any]]:
    return list(parquet.read_table(federation.root / "out" / "seed-0" / "updates.parquet").to_pylist())


def by_version(rows: list[dict[str, Any]]) -> dict[int, list[str]]:
    """The leases whose updates went into each, in the order they came."""
    found = defaultdict(list)
    for row in rows:
        if row["version"] is not None:
            found[row["version"]].append(row["update"])
    return dict(found)


def merged_in_reality(entries: list[dict[str, Any]]) -> dict[int, list[str]]:
    told = [(one["type"], one["detail"]) for one in entries]
    lease = {detail["update"]: detail["lease"] for type, detail in told if type == "update.received"}
    return {
        detail["version"]: [lease[taken["update"]] for taken in detail["inputs"]]
        for type, detail in told
        if type == "aggregation.performed"
    }
