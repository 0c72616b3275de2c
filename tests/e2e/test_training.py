"""Whole jobs over real processes and mTLS, and what kills them."""

import time
from pathlib import Path

import pytest

from tests.e2e.federation import TASK, Federation


def torch_is_loaded(pid: int) -> bool:
    return "torch" in Path(f"/proc/{pid}/maps").read_text()


def test_two_silos_train_and_the_log_verifies(federation: Federation) -> None:
    for seed, name in enumerate(("hospital-a", "hospital-b")):
        federation.enrol(name, seed)
        federation.agent(name)
    job = federation.submit(strategy="fedavg", silos=2, versions=4)
    for name in ("hospital-a", "hospital-b"):
        federation.approve(name, job)
    status = federation.finish(job)
    assert status["head"] == 4
    assert [silo["merged"] for silo in status["silos"]] == [4, 4]
    federation.verified()
    for name in ("server", "hospital-a"):
        assert not torch_is_loaded(federation.processes[name].pid)
    model = federation.root / "model.safetensors"
    federation.call("anabranch", "job", "export", job, "--version", "head", "-o", model)
    from safetensors.torch import load_file

    assert load_file(model)["weight"].shape == (2, 8)
    assert 'anabranch_updates_merged_total{job="' in federation.metrics()


def test_an_unapproved_job_never_runs(federation: Federation) -> None:
    federation.enrol("hospital-a")
    federation.agent("hospital-a")
    job = federation.submit()
    time.sleep(4)
    assert federation.status(job)["status"] == "waiting"
    assert not (federation.silo_dir("hospital-a") / "jobs" / job / "archive").exists()
    assert not federation.entries("lease.issued")


def test_server_killed_in_the_middle(federation: Federation) -> None:
    """Agents reconnect by themselves, the job resumes by itself, nothing acknowledged is lost or merged twice."""
    federation.enrol("hospital-a", pause=0.02)
    federation.agent("hospital-a")
    job = federation.submit(versions=8)
    federation.approve("hospital-a", job)
    federation.until(lambda: federation.status(job)["head"] >= 2, "two versions")
    federation.kill("server")
    federation.serve()
    assert federation.finish(job)["head"] == 8
    federation.verified()
    assert len(federation.entries("server.started")) == 2


@pytest.mark.parametrize("moment", ["training", "outbox"])
def test_agent_killed(federation: Federation, moment: str) -> None:
    """In the middle of a task, and with an update that is in the outbox but not acknowledged."""
    federation.enrol("hospital-a", pause=0.1)
    federation.agent("hospital-a")
    job = federation.submit(versions=3, steps=20)
    federation.approve("hospital-a", job)
    if moment == "training":
        federation.until(lambda: federation.silo(job, "hospital-a")["step"] >= 1, "it trains")
    else:
        federation.until(lambda: federation.silo(job, "hospital-a")["step"] >= 1, "it trains")
        federation.kill("server")
        outbox = federation.silo_dir("hospital-a") / "outbox"
        federation.until(lambda: any(outbox.iterdir()), "an update waits in the outbox")
    federation.kill("hospital-a")
    if moment == "outbox":
        federation.serve()
    federation.agent("hospital-a")
    assert federation.finish(job)["head"] == 3
    federation.verified()
    leases = [entry["detail"]["lease"] for entry in federation.entries("update.received")]
    assert len(leases) == len(set(leases)) == 3


def test_revoked_while_training(federation: Federation) -> None:
    federation.enrol("hospital-a", pause=0.05)
    federation.enrol("hospital-b", pause=0.01)
    for name in ("hospital-a", "hospital-b"):
        federation.agent(name)
    job = federation.submit(silos=2, versions=6, steps=10)
    for name in ("hospital-a", "hospital-b"):
        federation.approve(name, job)
    federation.until(lambda: federation.silo(job, "hospital-a")["training"], "hospital-a trains")
    federation.call("anabranch", "silo", "revoke", "hospital-a")
    agent = federation.processes["hospital-a"]
    federation.until(lambda: agent.poll() is not None, "the revoked agent stops")
    assert agent.returncode == 1
    assert "revoked" in (federation.root / "hospital-a.log").read_text()
    assert federation.finish(job)["head"] == 6
    federation.verified()
    revoked = next(e for e in federation.entries("silo.revoked"))
    after = [e for e in federation.entries("update.received") if e["time"] > revoked["time"]]
    assert {entry["detail"]["silo"] for entry in after} <= {"hospital-b"}


FAULTY = {
    "raises": (
        "        x, y = batch\n",
        "        raise ValueError('bad record')\n",
        "task_failed",
        "ValueError",
    ),
    "garbage": ("        x, y = batch\n", "        return 'not a loss'\n", "task_garbage", None),
    "hangs": ("        x, y = batch\n", "        time.sleep(3600)\n", "task_hung", None),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_faulty_task(federation: Federation, fault: str) -> None:
    """The job's owner learns the reason code, the exception's type and the job's own line; the traceback stays."""
    line, bad, reason, exception = FAULTY[fault]
    federation.enrol("hospital-a")
    federation.agent("hospital-a")
    from tests.e2e.federation import JOB

    patience = "3s" if fault == "hangs" else "1m"
    text = JOB.replace("batch_size = 8", f'batch_size = 8\nprogress_timeout = "{patience}"')
    job = federation.submit(task=TASK.replace(line, bad), text=text)
    federation.approve("hospital-a", job)
    federation.until(
        lambda: federation.silo(job, "hospital-a")["last_reason"].startswith(reason), f"{reason} is reported"
    )
    [entry, *_] = federation.entries("lease.released")
    assert entry["detail"]["reason"] == reason
    if exception:
        assert entry["detail"]["exception"] == exception
        assert entry["detail"]["code_line"].startswith("task.py:")
    assert "bad record" not in federation.root.joinpath("server.log").read_text()
    assert federation.ready()
