"""Real training processes: the channel, the fence around the job's code, kills and resumption, both kinds of jobs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from anabranch.errors import Reason, Refused, Unavailable
from anabranch.terms import parse_job_file
from anabranch.wire.tensors import check_file, check_values
from silo_agent.training import initial, launcher
from silo_agent.training.isolation import Isolation
from silo_agent.training.made import parse_made
from silo_agent.training.managed import Managed
from silo_agent.training.task import SiloData, load_task
from tests.training.processes import eventually, members

ROOT = Path(__file__).parents[2]

# A task that does in its loss what the file `data.path/do` says.
PROBE = r"""
import ctypes, json, os, subprocess, sys
import torch

print("imported")

class Probe:
    def model(self):
        return torch.nn.Linear(2, 1)

    def dataset(self, data, split):
        self.data = data
        return [torch.ones(2) for _ in range(8)]

    def loss(self, model, batch):
        order = json.loads((self.data.path / "do").read_text())
        return getattr(self, order["do"])(model(batch).sum(), order)

    def train(self, loss, order):
        return loss

    def prints(self, loss, order):
        print("to standard output" + "." * 9000)
        os.write(1, b'{"is":"ready","kind":"script"}\n')
        subprocess.run(["echo", "from a child"])
        return loss

    def raises(self, loss, order):
        raise KeyError("patient 12 has the flu")

    def odd(self, loss, order):
        raise type("the flu, patient 12", (Exception,), {})

    def nan(self, loss, order):
        return loss * float("nan")

    def leaves(self, loss, order):
        sys.exit(3)

    def hangs(self, loss, order):
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen(["sleep", "600"])
        time.sleep(600)

    def forges(self, loss, order):
        for fd in range(3, 64):
            try:
                os.write(fd, b'{"is":"trained","cycle":"x","metrics":{}}\n')
            except OSError:
                pass
        return loss

    def spies(self, loss, order):
        def attempt(action):
            try:
                return str(action())
            except OSError as error:
                return type(error).__name__
        libc = ctypes.CDLL(None)
        agent = order["agent"]
        answers = {
            "key": attempt(lambda: open(order["key"]).read()),
            "memory": attempt(lambda: open(f"/proc/{agent}/mem", "rb").read(1)),
            "trace": "allowed" if libc.ptrace(16, agent, 0, 0) == 0 else "refused",
            "child": subprocess.run(["cat", order["key"]], capture_output=True, text=True).stdout,
            "environment": sorted(os.environ),
            "files": [os.readlink(f"/proc/self/fd/{fd}") for fd in range(64) if os.path.islink(f"/proc/self/fd/{fd}")],
            "threads": torch.get_num_threads(),
        }
        with open("answers.json", "w") as file:
            json.dump(answers, file)
        return loss
"""
PROBE_JOB = '[job]\nname = "probe"\ntask = "task.py:Probe"\n'


@pytest.fixture(scope="module")
def probe(tools: Any, job_folder: Any, tmp_path_factory: Any, start: Any) -> Iterator[Any]:
    """`probe(do, **order)`: the last message of one cycle in which the task does that. One process for all of it."""
    code = tmp_path_factory.mktemp("probe")
    (code / "task.py").write_text(PROBE)
    (code / "job.toml").write_text(PROBE_JOB)
    data = tmp_path_factory.mktemp("probe-data")
    job = tools.make_job(job_folder("probe"), code)
    secret = os.open(data / "open-in-the-agent", os.O_RDWR | os.O_CREAT)
    os.set_inheritable(secret, True)
    process = start(job, tools.bound(data))
    assert tools.wait_for(process, "ready") == {"is": "ready", "kind": "managed"}

    def run(do: str, **order: Any) -> dict[str, Any]:
        (data / "do").write_text(json.dumps({"do": do, **order}))
        process.request(job.train(f"cycle-{do}", 2))
        answer: dict[str, Any] = tools.wait_for(process, "trained")
        return answer

    run.job, run.process, run.data = job, process, data  # type: ignore[attr-defined]
    yield run
    os.close(secret)


def test_a_task_that_prints_disturbs_nothing_but_its_log(probe: Any) -> None:
    assert probe("prints")["is"] == "trained"
    log = (probe.job.folder / "training.log").read_text()
    assert log.startswith("isolation: ")
    for text in ("imported", "to standard output....", '{"is":"ready","kind":"script"}', "from a child"):
        assert text in log


def test_failures_tell_the_owner_a_type_and_a_line_and_the_silo_the_rest(probe: Any) -> None:
    lines = PROBE.splitlines()
    at = next(n for n, line in enumerate(lines, 1) if "patient 12 has the flu" in line)
    failed = probe("raises")
    assert failed == {
        "is": "failed",
        "cycle": "cycle-raises",
        "reason": "task_failed",
        "exception": "KeyError",
        "code_line": f"task.py:{at}",
    }
    log, until = probe.job.folder / "training.log", time.monotonic() + 20
    while "patient 12 has the flu" not in log.read_text():  # another thread of the agent writes it down
        assert time.monotonic() < until
        time.sleep(0.05)
    assert (probe("odd")["exception"], probe("leaves")["exception"]) == ("Exception", "SystemExit")
    garbage = probe("nan")
    defined = next(n for n, line in enumerate(lines, 1) if "def loss" in line)
    assert (garbage["reason"], garbage["exception"]) == ("task_garbage", "LossNotFinite")
    assert garbage["code_line"] == f"task.py:{defined}"
    assert probe("train")["is"] == "trained"  # the process goes on


def test_job_code_cannot_reach_the_agent(probe: Any, home: Path) -> None:
    key = home / "identity" / "update.key"
    assert probe("spies", agent=os.getpid(), key=str(key))["is"] == "trained"
    answers = json.loads((probe.job.folder / "work" / "answers.json").read_text())
    assert key.read_text() == "the agent's key"
    assert answers["key"] == "PermissionError"
    assert answers["memory"] == "PermissionError"
    assert answers["trace"] == "refused"
    assert answers["child"] == ""
    allowed = {"PATH", "LANG", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"}
    allowed |= {"HOME", "TMPDIR", "OMP_NUM_THREADS", "LC_CTYPE"}
    known = {name for name in answers["environment"] if not name.startswith(("PYTHON", "TORCH"))}
    assert known <= allowed
    assert not any("open-in-the-agent" in file for file in answers["files"])
    assert sum(file.startswith("pipe:") for file in answers["files"]) == 4  # output twice, channel twice
    assert answers["threads"] == 1


def test_a_forged_message_is_garbage(probe: Any, tools: Any) -> None:
    with pytest.raises(Refused) as refused:
        probe("forges")
    assert refused.value.code == Reason.TASK_GARBAGE
    with pytest.raises(Refused):  # the second step's
        tools.wait_for(probe.process, "trained")
    assert tools.wait_for(probe.process, "trained")["cycle"] == "cycle-forges"


def test_a_hanging_task_ends_with_everything_it_started(probe: Any) -> None:
    """Last of the probe's: it takes the process with it."""
    process = probe.process
    (probe.data / "do").write_text('{"do": "hangs"}')
    process.request(probe.job.train("cycle-hangs", 2))
    eventually(lambda: members(process.pid) > 1)
    assert [m for m in process.messages(0.1) if m["is"] in ("trained", "failed")] == []
    assert process.alive
    process.stop(0.2)
    assert not process.alive
    assert members(process.pid) == 0
    with pytest.raises(Unavailable):
        process.request({"do": "stop"})
    process.stop(0.2)  # twice is once


def test_the_example_trains_evaluates_and_survives_kill(
    tools: Any, job_folder: Any, start: Any, digits: Path, tmp_path: Path
) -> None:
    job = tools.make_job(job_folder("digits"), tools.examples / "digits", save_every="0s")
    slow = tools.bound(digits, {"seconds_per_batch": 0.05})
    killed = start(job, slow)
    assert tools.wait_for(killed, "ready")["kind"] == "managed"
    killed.request(job.train("l-1", 12))
    assert next(m["step"] for m in killed.messages(30) if m["is"] == "progress" and m["step"] >= 4) < 12
    os.kill(killed.pid, signal.SIGKILL)
    assert not [m for m in killed.messages(30) if m["is"] == "trained"]
    assert not killed.alive

    process = start(job, tools.bound(digits))
    assert tools.wait_for(process, "ready")["kind"] == "managed"
    process.request(job.train("l-1", 12))
    assert tools.wait_for(process, "progress")["step"] >= 4
    assert tools.wait_for(process, "trained")["steps"] == 12

    reference = tmp_path / "work"
    reference.mkdir()
    task = load_task(job.folder / "archive", job.file.job.task, {})
    whole = Managed(task, job.file, SiloData(digits, {}), reference)
    whole.train({**job.train("l-1", 12), "out": str(reference / "out")}, lambda _: None)  # type: ignore[typeddict-item]
    assert job.update("l-1") == (reference / "out").read_bytes()
    assert check_values(job.folder / "work" / "l-1.safetensors", whole.manifest) > 0

    process.request(job.evaluate("l-2"))
    evaluated = tools.wait_for(process, "evaluated")
    assert 0 <= evaluated["metrics"]["accuracy"] <= 1
    assert evaluated["num_examples"] == len(whole._dataset("validation"))

    process.request(job.train("l-3", 10_000))
    assert tools.wait_for(process, "progress")["step"] >= 1
    process.stop(10)  # with time to save itself
    assert (job.folder / "work" / "cycle.safetensors").exists()
    assert not (job.folder / "work" / "l-3.safetensors").exists()


def test_the_script_example_in_a_federation(tools: Any, job_folder: Any, start: Any, digits: Path) -> None:
    job = tools.make_job(job_folder("script"), tools.examples / "digits-script")
    process = start(job, tools.bound(digits))
    assert tools.wait_for(process, "ready") == {"is": "ready", "kind": "script"}
    process.request(job.evaluate("e-1"))
    before = tools.wait_for(process, "evaluated")
    process.request(job.train("l-1", 15))
    messages = []
    for message in process.messages(30):
        messages.append(message)
        if message["is"] == "trained":
            break
    first = messages[0]
    assert (first["is"], first["cycle"], first["step"], first["steps"]) == ("progress", "l-1", 1, 15)
    assert first["samples_per_second"] > 0
    assert first["tokens_per_second"] == 0  # pictures
    assert (messages[-1]["cycle"], messages[-1]["steps"]) == ("l-1", 15)
    assert messages[-1]["num_examples"] > 250
    assert messages[-1]["metrics"]["loss"] < 3
    manifest = initial.build(job.folder / "archive", job.file, job.folder / "again").manifest
    assert check_file(job.folder / "work" / "l-1.safetensors", manifest).bytes == manifest.file_bytes
    process.request(job.evaluate("e-2"))  # of the same version: training left no trace in it
    assert tools.wait_for(process, "evaluated") == before | {"cycle": "e-2"}
    process.stop(10)
    assert "Traceback" not in (job.folder / "training.log").read_text()


def test_a_script_that_fails_says_where(tools: Any, job_folder: Any, start: Any, tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "job.toml").write_text('[job]\nname = "s"\ntask = "train.py"\n')
    (code / "train.py").write_text(
        "import torch\nfrom silo_agent import federated\nmodel = torch.nn.Linear(1, 1)\n"
        "with federated(model) as fl:\n    for cycle in fl:\n"
        "        if cycle.version == 1:\n            pass\n        else:\n            1 / 0\n"
    )
    job = tools.make_job(job_folder("failing"), code)
    process = start(job, tools.bound(tmp_path))
    assert tools.wait_for(process, "ready")["kind"] == "script"
    process.request(job.evaluate("e-1"))
    unsupported = {
        "is": "failed",
        "cycle": "e-1",
        "reason": "task_failed",
        "exception": "EvaluationUnsupported",
    }
    assert tools.wait_for(process, "evaluated") == unsupported
    process.request(job.train("l-1", 15, version=0))
    assert tools.wait_for(process, "trained") == {
        "is": "failed",
        "cycle": "l-1",
        "reason": "task_failed",
        "exception": "ZeroDivisionError",
        "code_line": "train.py:9",
    }
    assert list(process.messages(30)) == []  # it ends, and with it the script's state
    assert not process.alive


def test_a_script_alone_makes_one_dry_cycle(tools: Any, digits: Path) -> None:
    done = subprocess.run(
        [sys.executable, tools.examples / "digits-script" / "train.py"],
        env={"PYTHONPATH": str(ROOT), "ANABRANCH_DATA": str(digits)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "dry run" in done.stderr
    assert "20 optimizer steps" in done.stderr


def test_version_0_is_the_same_wherever_it_is_made(tools: Any, tmp_path: Path) -> None:
    """Also from a script whose `print` would spoil the manifest on standard output."""
    code = tmp_path / "code"
    code.mkdir()
    script = (tools.examples / "digits-script" / "train.py").read_text()
    (code / "train.py").write_text('print("hello")\n' + script + '\nprint("not reached")\n')
    file = parse_job_file((tools.examples / "digits-script" / "job.toml").read_text())
    (tmp_path / "file.json").write_text(file.model_dump_json())
    made = subprocess.run(
        [sys.executable, "-m", "silo_agent.training.initial", code, tmp_path / "file.json", tmp_path / "out"],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=True,
    )
    assert parse_made(made.stdout) == initial.build(
        tools.examples / "digits-script", file, tmp_path / "again"
    )
    assert (tmp_path / "out").read_bytes() == (tmp_path / "again").read_bytes()
    assert b"hello" in made.stderr
    assert b"not reached" not in made.stderr


def test_the_process_dies_with_the_agent(
    tools: Any, job_folder: Any, digits: Path, isolated: Isolation
) -> None:
    job = tools.make_job(job_folder("orphan"), tools.examples / "digits")
    program = """
import json, sys, time
from pathlib import Path
from silo_agent.training.isolation import Isolation
from silo_agent.training.launcher import Launcher
from anabranch.terms import JobTerms
home, job_dir, terms, data, isolated = json.loads(sys.argv[1])
class Data:
    path, params, transform = Path(data), {}, None
terms = JobTerms.model_validate_json(terms)
process = Launcher(Path(home)).start(Path(job_dir), terms, Data, Isolation(**isolated))
assert "torch" not in sys.modules
print(process.pid, flush=True)
time.sleep(600)
"""
    isolation = {"kind": isolated.kind, "detail": "", "uid": isolated.uid}
    home, data = str(job.folder.parents[1]), str(digits)
    arguments = json.dumps([home, str(job.folder), job.terms.model_dump_json(), data, isolation])
    agent = subprocess.Popen(
        [sys.executable, "-c", program, arguments], env={"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    )
    try:
        assert agent.stdout is not None
        pid = int(agent.stdout.readline())
        log = job.folder / "training.log"
        eventually(lambda: log.exists() and "isolation: " in log.read_text())
    finally:
        agent.kill()
        agent.communicate()
    eventually(lambda: members(pid) == 0)


def test_the_log_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "LOG_BYTES", 1000)
    reader, writer = os.pipe()
    for number in range(40):
        os.write(writer, b"%03d" % number + b"." * 96 + b"\n")
    os.close(writer)
    monkeypatch.setattr(launcher, "_CHUNK", 100)
    launcher._keep_log(reader, tmp_path / "training.log")
    os.close(reader)
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes == {"training.log": 1000, "training.log.1": 1000}
    assert (tmp_path / "training.log").read_bytes().endswith(b"039" + b"." * 96 + b"\n")
