"""The fence, tried from inside: keys, the agent's memory, the network, privileges. No torch here."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from silo_agent.training import isolation, landlock
from silo_agent.training.isolation import Fence

ROOT = Path(__file__).parents[2]
SYSTEM_PYTHON = Path("/usr/bin/python3")

# What code of a job could try, each answered with the kind of exception or "done".
TRY = r"""
import ctypes, json, os, socket, sys, threading
from silo_agent.training import isolation
fence = isolation.Fence(**json.load(sys.stdin))
detail = isolation.enter(fence)
libc = ctypes.CDLL(None, use_errno=True)

def attempt(action):
    try:
        action()
    except OSError as error:
        return type(error).__name__
    return "done"

def trace():
    if libc.ptrace(16, fence.parent, 0, 0) < 0:  # PTRACE_ATTACH
        raise OSError(ctypes.get_errno(), "ptrace")
    libc.ptrace(17, fence.parent, 0, 0)

def connect(family, address):
    with socket.socket(family, socket.SOCK_DGRAM if family == socket.AF_INET else socket.SOCK_STREAM) as s:
        s.connect(address)

def mount():
    if libc.mount(b"none", b"/mnt", b"tmpfs", 0, None) < 0:
        raise OSError(ctypes.get_errno(), "mount")

def name_thread():
    # as NVIDIA's driver does when CUDA starts
    ends = threading.Event()
    other = threading.Thread(target=ends.wait)
    other.start()
    try:
        open(f"/proc/self/task/{other.native_id}/comm", "w").write("cuda")
    finally:
        ends.set()

def become_root():
    os.setresuid(0, 0, 0)
    os.setgroups([0])

key = os.path.join(fence.keys, "update.key")
tries = {
    "read key": lambda: open(key).read(),
    "read key by link": lambda: (os.symlink(key, "link"), open("link").read()),
    "list keys": lambda: os.listdir(fence.keys),
    "overwrite key": lambda: open(key, "w"),
    "replace keys": lambda: os.rename(fence.keys, fence.keys + "2"),
    "agent memory": lambda: open(f"/proc/{fence.parent}/mem", "rb").read(1),
    "agent environment": lambda: open(f"/proc/{fence.parent}/environ").read(),
    "agent files": lambda: os.readlink(f"/proc/{fence.parent}/fd/0"),
    "agent root": lambda: os.listdir(f"/proc/{fence.parent}/root/"),
    "trace agent": trace,
    "stop agent": lambda: os.kill(fence.parent, 0),
    "password hashes": lambda: open("/etc/shadow").read(),
    "network": lambda: connect(socket.AF_INET, ("192.0.2.1", 53)),
    "write elsewhere": lambda: open(os.path.join(fence.home, "new"), "w"),
    "regain privileges": become_root,
    "mount": mount,
    "device": lambda: os.mknod("device", 0o600 | 0o060000, os.makedev(1, 0)),
    "read job": lambda: open(os.path.join(fence.readable[0], "task.py")).read(),
    "write work": lambda: open("result", "w").write("x"),
    "rename work": lambda: os.rename("result", "renamed"),
    "own status": lambda: os.listdir("/proc/self/fd"),
    "name a thread": name_thread,
    "change the machine": lambda: open("/proc/sys/kernel/core_pattern", "r+"),
}
status = dict(line.split(":\t") for line in open("/proc/self/status").read().splitlines() if ":\t" in line)
answers = {name: attempt(action) for name, action in tries.items()}
print(json.dumps({"detail": detail, "uid": os.getuid(), "caps": status["CapEff"], "nnp": status["NoNewPrivs"], **answers}))
"""

ALLOWED = ("read job", "write work", "rename work", "own status", "name a thread")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    """An agent's folder that others may pass through but not read, with a key and a job."""
    tmp_path.chmod(0o711)
    home = tmp_path / "agent"
    for folder in ("identity", "jobs/j/work"):
        (home / folder).mkdir(parents=True)
    (home / "identity" / "update.key").write_text("the agent's key")
    (home / "identity").chmod(0o700)
    (home / "jobs" / "j" / "task.py").write_text("pass")
    blocking = [p for p in tmp_path.parents if not p.stat().st_mode & stat.S_IXOTH]
    for parent in blocking:
        parent.chmod(0o711)
    yield home
    for parent in blocking:
        parent.chmod(0o700)


def fence(home: Path, kind: isolation.Kind, uid: int | None = None) -> Fence:
    job = home / "jobs" / "j"
    return Fence(kind, uid, os.getpid(), str(home), str(home / "identity"), (str(job),), (str(job / "work"),))


def inside(closed: Fence, interpreter: Path = Path(sys.executable), program: str = TRY) -> dict[str, Any]:
    done = subprocess.run(
        [interpreter, "-s", "-B", "-c", program],
        input=json.dumps(asdict(closed)),
        capture_output=True,
        text=True,
        cwd=closed.writable[0],
        env={"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def check(answers: dict[str, Any]) -> None:
    tried = {name: answer for name, answer in answers.items() if name not in ("detail", "uid", "caps", "nnp")}
    assert {name: answer for name, answer in tried.items() if name in ALLOWED} == dict.fromkeys(
        ALLOWED, "done"
    )
    assert [name for name, answer in tried.items() if answer == "done" and name not in ALLOWED] == []
    assert answers["nnp"] == "1"
    assert int(answers["caps"], 16) == 0


@pytest.mark.skipif(landlock.abi() < 4, reason="no Landlock here, or an old one")
def test_landlock_keeps_the_keys_from_a_process_of_the_same_user(site: Path) -> None:
    answers = inside(fence(site, "landlock"))
    assert answers["uid"] == os.getuid()
    check(answers)


@pytest.mark.skipif(
    os.geteuid() != 0 or not SYSTEM_PYTHON.exists(), reason="needs root and an interpreter for all"
)
@pytest.mark.parametrize("with_landlock", [True, False])
def test_a_user_of_its_own_keeps_the_keys_also_without_landlock(site: Path, with_landlock: bool) -> None:
    closed = fence(site, "uid", 61300)
    os.chown(closed.writable[0], 61300, 61300)
    without = "from silo_agent.training import landlock\nlandlock.abi = lambda: 0\n"
    answers = inside(closed, SYSTEM_PYTHON, TRY if with_landlock else without + TRY)
    assert answers["uid"] == 61300
    check(answers)


def test_reports_the_stronger_way_that_works_here(site: Path) -> None:
    found = isolation.available(site, [site / "jobs"])
    assert found.kind in ("uid", "landlock", "none")
    assert found.holds == (found.kind != "none")
    if os.geteuid() == 0 and SYSTEM_PYTHON.exists() and (ROOT.stat().st_mode & stat.S_IXOTH):
        os.environ["PYTHONPATH"] = str(ROOT)
        try:
            ours = isolation.available(site, [site / "jobs"], SYSTEM_PYTHON)
            site.chmod(0o700)  # now only root gets to the jobs
            closed = isolation.available(site, [site / "jobs"], SYSTEM_PYTHON)
        finally:
            del os.environ["PYTHONPATH"]
        assert (ours.kind, ours.uid is not None) == ("uid", True)
        assert closed.kind != "uid"
        assert "own user not possible" in closed.detail


def test_says_not_isolated_when_nothing_works(site: Path) -> None:
    found = isolation.available(site, [], interpreter=site / "no-such-python")
    assert found.kind == "none"
    assert "NOT ISOLATED" in found.detail


def test_refuses_to_go_on_when_the_keys_can_be_read_after_all(site: Path) -> None:
    # As if Landlock had been asked for and did nothing.
    broken = "from silo_agent.training import landlock\nlandlock.restrict = lambda *a, **k: None\n" + TRY
    done = subprocess.run(
        [sys.executable, "-c", broken],
        input=json.dumps(asdict(fence(site, "landlock"))),
        capture_output=True,
        text=True,
        cwd=site,
        env={"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode != 0
    if landlock.abi():
        assert "can be read from inside" in done.stderr


@pytest.mark.skipif(landlock.abi() < 4, reason="no Landlock here, or an old one")
def test_a_readable_folder_that_contains_the_agents_does_not_open_it(site: Path) -> None:
    venv = site.parent / "venv"
    venv.mkdir()
    (venv / "data.txt").write_text("x")
    (site.parent / "detour").symlink_to(site)
    closed = fence(site, "landlock")
    paths = [venv / "data.txt", site / "identity/update.key", site.parent / "detour/identity/update.key"]
    program = f"""
import json, sys
sys.path.append({str(site.parent)!r})  # as if modules came from the folder around the agent's
from silo_agent.training import isolation
isolation.enter(isolation.Fence(**json.load(sys.stdin)))
def works(path):
    try: open(path).close()
    except OSError: return False
    return True
print(json.dumps([works(path) for path in {[str(path) for path in paths]!r}]))
"""
    assert inside(closed, program=program) == [True, False, False]


def test_the_agent_is_closed_to_processes_of_its_own_user() -> None:
    program = """
import os, subprocess, sys
from silo_agent.training import isolation
isolation.protect_agent()
import ctypes
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert done.stdout == "0\n"


def test_the_agents_side_never_imports_torch() -> None:
    program = """
import sys
import silo_agent, silo_agent.training.launcher, silo_agent.training.archive, silo_agent.training.task
assert "torch" not in sys.modules and "numpy" not in sys.modules, "imported"
"""
    subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": str(ROOT)}, check=True)
