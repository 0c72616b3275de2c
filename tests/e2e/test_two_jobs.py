"""Two jobs at once on the same silos: each with its own versions, neither starved, by real processes."""

from itertools import pairwise
from pathlib import Path

from tests.e2e.federation import JOB, TASK, Federation

EVERY = JOB.replace('name = "tiny"', 'name = "{name}"').replace("every = 2", "every = 100")
PAUSE = 'float(data.params.get("seconds_per_batch", 0))'


def submit(federation: Federation, name: str, pause: float, silos: list[str], versions: int) -> str:
    """Approved by all of `silos`; a version takes an update of as many."""
    task = TASK.replace(PAUSE, str(pause))
    count = len(silos)
    job = federation.submit(task=task, text=EVERY, name=name, silos=count, buffer=count, versions=versions)
    for silo in silos:
        federation.approve(silo, job)
    return job


def test_two_jobs_of_different_speed_on_two_silos(federation: Federation) -> None:
    """The slow one is going on while the fast one starts and finishes; heads and buffers have nothing in common."""
    names = ["hospital-a", "hospital-b"]
    for seed, name in enumerate(names):
        federation.enrol(name, seed)
        federation.agent(name)
    slow = submit(federation, "slow", 1.0, names, 3)
    federation.until(lambda: federation.silo(slow, "hospital-a")["training"], "the slow job trains")
    fast = submit(federation, "fast", 0.0, names, 6)
    assert federation.finish(fast)["head"] == 6
    assert federation.status(slow)["head"] < 3
    assert federation.finish(slow)["head"] == 3
    for job, versions in ((fast, 6), (slow, 3)):
        assert sum(silo["merged"] for silo in federation.status(job)["silos"]) == 2 * versions
    federation.verified()
    ended = federation.call("anabranch", "job", "watch", slow, "--once")
    assert [job["job"] for job in ended["jobs"]] == [slow]
    assert ended["server"]["memory_bytes"] > 0
    assert federation.call("anabranch", "job", "watch", "--once")["jobs"] == []


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
    federation.enrol("hospital-a", policy='jobs_at_once = 1\nturn = "1s"\n')
    federation.agent("hospital-a")
    agent = federation.processes["hospital-a"].pid
    slow = submit(federation, "slow", 0.3, ["hospital-a"], 4)
    fast = submit(federation, "fast", 0.05, ["hospital-a"], 16)
    most = 0

    def both_done() -> bool:
        nonlocal most
        most = max(most, training_processes(agent))
        return all(federation.status(job)["status"] == "completed" for job in (slow, fast))

    federation.until(both_done, "both jobs complete")
    assert most == 1
    order: list[str] = []
    holder = None
    for entry in federation.entries():
        if entry["type"] == "lease.issued":
            assert holder is None, "a lease was issued while the silo worked on another"
            holder = entry["job"]
            order.append(holder)
        elif entry["type"] in ("update.received", "model.evaluated"):
            holder = None
    turns = sum(one != other for one, other in pairwise(order))
    assert turns >= 2, order  # neither was put off until the other had ended
    federation.verified()
