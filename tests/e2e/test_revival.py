"""A reviver beside silos, all real processes: what it distils is in versions, the log proves it, nobody depends on it."""

from typing import Any

import pytest

from tests.e2e.federation import JOB, TASK, Federation

pytestmark = pytest.mark.timeout(560)  # three processes import torch
INPUTS = """
    def inputs(self):
        return Images((1, 4, 4), low=-1.0)

    def model"""
# Four kinds of records, one at each silo; slow until somebody puts a file beside the data.
SKEWED = (
    TASK.replace("import torch\n", "import torch\nfrom silo_agent import Images\n")
    .replace("    def model", INPUTS.lstrip("\n"), 1)
    .replace("torch.nn.Linear(8, 2)", "torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 4))")
    .replace(
        'x, y = torch.from_numpy(file["x"]), torch.from_numpy(file["y"])',
        "x = torch.randn(64, 1, 4, 4)\n"
        '            y = torch.full((64,), 0 if data.path.name == "hospital-a" else 3)',
    )
    .replace("        self.pause =", "        self.hurry = data.path / 'hurry'\n        self.pause =")
    .replace(
        "        time.sleep(self.pause)",
        "        if not self.hurry.exists():\n            time.sleep(self.pause)",
    )
)
REVIVED = JOB.replace("every = 2", "every = 20").replace(
    "batch_size = 8", "batch_size = 8\n[training.optimizer]\nlr = 5.0"
) + (
    "[revival]\nfreeze = 0\nwarmup = 0\nlate = 30\nsynthesis_every = 1\nsynthesis_steps = 2\nsynthesis_batch = 8\n"
)
SILOS = ("hospital-a", "hospital-b")


def ended(federation: Federation, job: str, outcome: str) -> int:
    tallies: list[dict[str, Any]] = federation.status(job)["revival"]["tallies"]
    return sum(tally["count"] for tally in tallies if tally["outcome"] == outcome)


def test_a_reviver_takes_part_and_can_be_lost(federation: Federation) -> None:
    for seed, name in enumerate(SILOS):
        federation.enrol(name, seed, pause=2.0, policy="allow_revival = true\n")
        federation.agent(name)
    bundle = federation.call("anabranch-server", "reviver", federation.server_dir, "distiller")["reviver"]
    home = federation.root / "reviver"
    federation.start("reviver", "anabranch-reviver", "run", bundle, "--home", home, "--unconfined")
    job = federation.submit(task=SKEWED, text=REVIVED, silos=2, steps=2, versions=60)
    for name in SILOS:
        federation.approve(name, job)
    federation.until(lambda: ended(federation, job, "used"), "a version used a revival")

    federation.kill("server")
    federation.serve()
    before = ended(federation, job, "used")
    federation.until(lambda: ended(federation, job, "used") > before, "the reviver found the server again")

    federation.kill("reviver")
    for name in SILOS:
        (federation.root / "data" / name / "hurry").touch()
    assert federation.finish(job)["head"] == 60

    performed = {entry["detail"]["revival"]: entry for entry in federation.entries("revival.performed")}
    used = [
        entry["detail"]["revival"]
        for entry in federation.entries("aggregation.performed")
        if "revival" in entry["detail"]
    ]
    assert len(used) == len(set(used)) == ended(federation, job, "used") > before
    assert performed.keys() >= set(used)
    for entry in performed.values():
        assert entry["actor"]["id"] == "spiffe://federation.local/reviver/distiller"
        assert {one["silo"] for one in entry["detail"]["teachers"]} <= set(SILOS)
    federation.verified()
