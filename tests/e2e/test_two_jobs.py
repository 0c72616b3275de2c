"""Two jobs at once on the same silos: each with its own versions, neither starved, by real processes."""

from itertools import pairwise
from pathlib import Path

import pytest

from tests.e2e.federation import JOB, TASK, Federation

EVERY = JOB.replace('name = "tiny"', 'name = "{name}"').replace("every = 2", "every = 100")
pytestmark = pytest.mark.timeout(560)  # a training process that starts imports torch, and several do

# A task that makes no step before somebody puts a file beside the data.
GATED = TASK.replace(
    "        time.sleep(self.pause)", "        while not self.gate.exists():\n            time.sleep(0.05)"
).replace("        self.pause =", "        self.gate = data.path / 'go'\n        self.pause =")


def submit(federation: Federation, name: str, task: str, silos: list[str], versions: int) -> str:
    """Approved by all of `silos`; a version takes an update of as many."""
    count = len(silos)
    job = federation.submit(task=task, text=EVERY, name=name, silos=count, buffer=count, versions=versions)
    for silo in silos:
        federation.approve(silo, job)
    return job


@pytest.mark.soak
def test_a_fast_job_starts_and_finishes_while_a_slow_one_goes_on(federation: Federation) -> None:
    """On the same two silos; the slow one cannot finish a step before the fast one has ended."""
    names = ["hospital-a", "hospital-b"]
    for seed, name in enumerate(names):
        federation.enrol(name, seed)
        federation.agent(name)
    slow = submit(federation, "slow", GATED, names, 2)
    federation.until(lambda: federation.silo(slow, "hospital-a")["training"], "the slow job trains")
    fast = submit(federation, "fast", TASK, names, 3)
    assert federation.finish(fast)["head"] == 3
    assert federation.status(slow)["head"] == 0
    assert federation.silo(slow, "hospital-a")["state"] == "training"
    [going_on] = federation.call("anabranch", "job", "watch", "--once")["jobs"]
    assert going_on["job"] == slow
    for name in names:
        (federation.root / "data" / name / "go").touch()
    assert federation.finish(slow)["head"] == 2
    for job, versions in ((fast, 3), (slow, 2)):
        assert sum(silo["merged"] for silo in federation.status(job)["silos"]) == 2 * versions
    federation.verified()


def training_processes(agent: int) -> int:
    """How many children of an agent run job code now."""
    found = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            found += parent == agent and b"training.runner" in (folder / "cmdline").read_bytes()
        except OSError:
            continue  # it has just ended
    return found


def test_a_silo_that_works_on_one_job_at_once_lets_them_take_turns(federation: Federation) -> None:
    federation.enrol("hospital-a", policy='jobs_at_once = 1\nturn = "0s"\n')
    federation.agent("hospital-a")
    agent = federation.processes["hospital-a"].pid
    jobs = [submit(federation, name, GATED, ["hospital-a"], 3) for name in ("one", "other")]
    federation.until(
        lambda: federation.logs().count("approved; ready for its tasks") == 2, "the agent has both jobs"
    )
    (federation.root / "data" / "hospital-a" / "go").touch()
    most = 0

    def both_done() -> bool:
        nonlocal most
        most = max(most, training_processes(agent))
        return all(federation.status(job)["status"] == "completed" for job in jobs)

    federation.until(both_done, "both jobs complete")
    assert most == 1
    order: list[str] = []
    holder = None
    for entry in federation.entries():
        if entry["type"] == "lease.issued":
            assert holder is None, "a lease was issued while the silo worked on another"
            holder = entry["job"]
            order.append(holder)
        elif entry["type"] in ("update.received", "update.refused", "model.evaluated", "lease.released"):
            holder = None
    turns = sum(one != other for one, other in pairwise(order))
    assert turns >= 2, order  # neither was put off until the other had ended
    federation.verified()
