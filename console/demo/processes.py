"""The demo's child processes: started with a log each, watched, and stopped by their ids, whatever happens.

Every child is its own session leader, so Ctrl-C at the terminal reaches the demo alone, which then stops them in
order; a child's own training processes belong to its session and end with it.
"""

import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from anabranch.errors import Reason, Refused

TAIL_LINES = 25
PATIENCE = 10.0  # seconds between SIGTERM and SIGKILL
STEP_SECONDS = 120.0  # a single step of the demo, such as an enrolment


@dataclass
class Child:
    name: str
    log: Path
    process: subprocess.Popen[bytes]


@dataclass
class Children:
    """The running children by name. Leaving the `with` block stops them all."""

    logs: Path
    running: dict[str, Child] = field(default_factory=dict)

    def __enter__(self) -> "Children":
        self.logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, name: str, argv: Sequence[str]) -> None:
        """Start a child that lives until it is stopped. Its log is appended to, so a restart keeps the first part."""
        self.running[name] = _spawn(name, argv, self.logs)

    def run(self, steps: Mapping[str, Sequence[str]]) -> None:
        """Run short commands at the same time and wait for all. Raises Refused with the log of one that failed."""
        children = [_spawn(name, argv, self.logs) for name, argv in steps.items()]
        try:
            for child in children:
                if child.process.wait(STEP_SECONDS):
                    raise _died(child)
        except subprocess.TimeoutExpired as error:
            raise Refused(
                Reason.TASK_HUNG, f"{error.cmd[0]} did not finish in {STEP_SECONDS:.0f} s"
            ) from error
        finally:
            _stop(children)

    def check(self) -> None:
        """Raises Refused with the tail of the log of a child that has died."""
        for child in self.running.values():
            if child.process.poll() is not None:
                raise _died(child)

    def ended(self) -> list[str]:
        """One line for each child that has ended by itself; it is no longer watched then."""
        gone = [child for child in self.running.values() if child.process.poll() is not None]
        for child in gone:
            del self.running[child.name]
        return [f"{child.name} has ended: {tail(child.log).rpartition(chr(10))[2]}" for child in gone]

    def kill(self, name: str) -> float:
        """SIGKILL one child, as a power cut would; returns the unix time at which it was gone."""
        child = self.running.pop(name)
        child.process.kill()
        child.process.wait()
        return time.time()

    def stop(self) -> None:
        """SIGTERM all, in the order they were started last to first; SIGKILL those that have not gone in time."""
        children = list(reversed(self.running.values()))
        self.running.clear()
        _stop(children)


def program(name: str) -> str:
    """The path of one of our installed programs, beside this interpreter."""
    path = Path(sysconfig.get_path("scripts")) / name
    if not path.is_file():
        raise Refused(
            Reason.NOT_FOUND, f"{path} does not exist; install the demo with: pip install 'anabranch[demo]'"
        )
    return str(path)


def forget_proxies() -> None:
    """For this process and its children: nothing the demo dials is beyond this machine."""
    for key in [key for key in os.environ if key.lower().endswith("_proxy")]:
        del os.environ[key]


def environment() -> dict[str, str]:
    """Ours, with one thread per process, because the silos share the cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", module, *arguments]


def tail(log: Path) -> str:
    """The last lines of a log, to show why its process ended."""
    lines = log.read_text("utf-8", "replace").splitlines() if log.is_file() else []
    return "\n".join(lines[-TAIL_LINES:])


def _spawn(name: str, argv: Sequence[str], logs: Path) -> Child:
    log = logs / f"{name}.log"
    with log.open("ab") as out:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment(),
            start_new_session=True,
        )
    return Child(name, log, process)


def _died(child: Child) -> Refused:
    code = child.process.returncode
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return Refused(Reason.TASK_FAILED, f"{child.name} {how}; the end of {child.log}:\n{tail(child.log)}")


def _stop(children: Sequence[Child]) -> None:
    alive = [child for child in children if child.process.poll() is None]
    for child in alive:
        child.process.terminate()
    deadline = time.monotonic() + PATIENCE
    for child in alive:
        with suppress(subprocess.TimeoutExpired):
            child.process.wait(max(0.0, deadline - time.monotonic()))
        if child.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(child.process.pid, signal.SIGKILL)
            child.process.wait()
