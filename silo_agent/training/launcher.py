"""Starts, speaks to and stops training processes. The daemon's side: no torch, no code of a job.

The process is started by exec, not by fork alone: a daemon full of threads leaves nothing of itself behind. It
inherits the two ends of its channel and a pipe for its output, a handful of environment variables, and no other
descriptor.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Final, Protocol, Self

from anabranch import durable
from anabranch.errors import Unavailable, wording
from anabranch.terms import JobTerms
from anabranch.wire import limits
from silo_agent.training import channel, isolation
from silo_agent.training.channel import Begin, Incoming, Message, Request
from silo_agent.training.isolation import Fence, Isolation
from silo_agent.training.task import Param

LOG_BYTES: Final = 10_000_000  # of training.log, then it becomes training.log.1, replacing the one before
_CHUNK: Final = 64 * limits.KIB


class Binding(Protocol):
    """What the silo's policy binds to a job's data name."""

    @property
    def path(self) -> Path: ...
    @property
    def params(self) -> Mapping[str, Param]: ...
    @property
    def transform(self) -> str | None: ...  # FILE.py:NAME, relative to the agent's folder


class Launcher:
    """Starts the training processes of one agent. Use it as a context manager, or `close` it.

    The kernel ends a process when the *thread* that started it ends, so all are started by one thread that lives as
    long as the launcher: whatever kills the agent kills them, and nothing less does.
    """

    def __init__(
        self,
        home: Path,
        interpreter: Path = Path(sys.executable),
        threads: int = 1,
        gpus: tuple[int, ...] | None = None,
        module: str = "silo_agent.training.runner",
        processes: int = 1,
        silo: str | None = None,
    ) -> None:
        """`home`: the agent's folder, of which a process sees what it is given. `interpreter`: its environment has
        anabranch[silo] and what jobs require. `threads`: of torch, for one job. `gpus`: indices; None for all, empty for
        none. `module`: the program. `processes`: of a job that is a script. `silo`: who this is, for what terms say of it.
        """
        self._home = home.resolve()
        self._interpreter, self._threads, self._gpus = interpreter, threads, gpus
        self._module, self._processes, self._silo = module, processes, silo
        self._starter = ThreadPoolExecutor(1, "launcher")

    def start(
        self,
        job_dir: Path,
        terms: JobTerms,
        data: Binding | None,
        isolated: Isolation,
        device: str | None = None,
        base: Path | None = None,
    ) -> "TrainingProcess":
        """Start the process of one job. The first message is "ready" or "failed"; importing torch takes seconds.

        `job_dir`: holds `archive/` (the unpacked code) and the models; `work/` and `training.log` are made in it.
        Updates are to be written to `work/`. `isolated`: what `isolation.available` found. `device`: what it computes on,
        as torch calls it; None where the program chooses. `base`: folder of the base model that the job names. Raises
        Unavailable when no process can be started.
        """
        job_dir = job_dir.resolve()
        work = job_dir / "work"
        durable.make_dir(work)
        (work / "tmp").mkdir(exist_ok=True)
        owner = os.geteuid() if isolated.uid is None else isolated.uid
        if isolated.uid is not None or work.stat().st_uid != owner:
            _hand_over(job_dir, work, owner)
        command = isolation.command(self._interpreter, self._module)
        processes = 1 if terms.file.job.managed else self._processes
        threads = max(self._threads // processes, 1)
        environment = self._environment(work, threads)
        process = self._starter.submit(TrainingProcess, command, environment, job_dir).result()
        try:
            begin = self._begin(job_dir, terms, data, isolated, base, threads, processes)
            process.request(begin if device is None else {**begin, "device": device})
        except Unavailable:
            process.stop(0)
            raise
        return process

    def close(self) -> None:
        """Ends every process that still runs."""
        self._starter.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _environment(self, work: Path, threads: int) -> dict[str, str]:
        environment = isolation.environment()
        if self._gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, self._gpus))
        return environment | {
            "HOME": str(work),
            "TMPDIR": str(work / "tmp"),
            "OMP_NUM_THREADS": str(threads),
            "PYTHONUNBUFFERED": "1",
        }

    def _begin(
        self,
        job_dir: Path,
        terms: JobTerms,
        data: Binding | None,
        isolated: Isolation,
        base: Path | None,
        threads: int,
        processes: int,
    ) -> Begin:
        readable, bound = [str(job_dir), *([str(base)] if base is not None else [])], {}
        if data is not None:
            transform = str(self._home / data.transform) if data.transform else None
            readable += [str(data.path), *([transform.rpartition(":")[0]] if transform else [])]
            bound = {"path": str(data.path), "params": dict(data.params), "transform": transform}
        fence = Fence(
            kind=isolated.kind,
            uid=isolated.uid,
            parent=os.getpid(),
            home=str(self._home),
            keys=str(self._home / "identity"),
            readable=tuple(readable),
            writable=(str(job_dir / "work"),),
        )
        begin: Begin = {
            "do": "begin",
            "fence": asdict(fence),
            "terms": terms.model_dump(mode="json"),
            "archive": str(job_dir / "archive"),
            "work": str(job_dir / "work"),
            "data": bound,
            "threads": threads,
            "processes": processes,
        }
        if base is not None:
            begin["base"] = str(base)
        adapter = terms.file.adapter
        if adapter is not None and adapter.rank_at(self._silo) < adapter.rank:
            begin["rank"] = adapter.rank_at(self._silo)
        return begin


class TrainingProcess:
    """A running training process. One thread at a time. Call `stop` also when it has ended by itself."""

    def __init__(self, command: list[str], environment: Mapping[str, str], job_dir: Path) -> None:
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        try:
            self._process = subprocess.Popen(
                command,
                env={**environment, channel.ENVIRONMENT: f"{theirs_in},{theirs_out}"},
                cwd=job_dir / "work",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs_in, theirs_out),
                start_new_session=True,  # a process group of its own: what it starts ends with it
            )
        except OSError as error:
            os.close(ours_out)
            os.close(ours_in)
            raise Unavailable(
                f"the training process cannot be started: {wording(error)}; check [run] interpreter"
            ) from error
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        self._out = os.fdopen(ours_out, "wb", buffering=0)
        self._incoming = Incoming(ours_in)
        assert self._process.stdout is not None
        log = (self._process.stdout.fileno(), job_dir / "training.log")
        self._log = threading.Thread(target=_keep_log, args=log, name="training-log", daemon=True)
        self._log.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it may still answer. Messages it sent before it ended can still be read."""
        return self._running() and not self._incoming.ended

    def request(self, message: Request) -> None:
        """Ask for something; the answer comes with `messages`. Raises Unavailable when the process has ended."""
        data = memoryview(json.dumps(message).encode("ascii") + b"\n")
        try:
            while data:
                data = data[self._out.write(data) :]
        except (OSError, ValueError) as error:
            raise Unavailable("the training process has ended: see training.log, start another") from error

    def messages(self, timeout: float) -> Iterator[Message]:
        """Messages as they come. Stops when none has come for `timeout` seconds, or there will be no more: see
        `alive`.

        Call it again to wait longer. Raises Refused(TASK_GARBAGE) when the process sends what is no message; stop it
        then, for the job's code has got hold of the channel.
        """
        yield from self._incoming.messages(timeout)

    def stop(self, grace: float) -> None:
        """End it and everything it started. Given `grace` seconds, a managed cycle saves itself and is resumed
        later."""
        if self._process.returncode is not None:
            return
        if grace > 0:
            with contextlib.suppress(Unavailable):
                self.request({"do": "stop"})
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
            deadline = time.monotonic() + grace
            while self._running() and time.monotonic() < deadline:
                time.sleep(0.01)
        # Not reaped before this line, so the process id, and with it the group, cannot be somebody else's.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self._out.close()
        self._incoming.close()
        self._log.join(5)  # longer only if something left the group and keeps the pipe

    def _running(self) -> bool:
        if self._process.returncode is not None:
            return False
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def _hand_over(job_dir: Path, work: Path, uid: int) -> None:
    """Let one user read the job's folder and write to its work folder; other users see neither.

    By descriptors, never by path: something the job left running could put a link in the way of a privileged chown.
    """
    os.chown(job_dir, -1, uid)
    job_dir.chmod(0o750)
    for _, folders, files, fd in os.fwalk(work):
        os.fchown(fd, uid, uid)
        for name in (*folders, *files):
            os.chown(name, uid, uid, dir_fd=fd, follow_symlinks=False)
    work.chmod(0o700)


def _keep_log(fd: int, path: Path) -> None:
    """Append what the process prints to `path`, at most twice LOG_BYTES in all. It never stops reading: a process
    whose output nobody takes would stand still.
    """
    while chunk := os.read(fd, _CHUNK):
        with contextlib.suppress(OSError):
            if path.exists() and path.stat().st_size + len(chunk) > LOG_BYTES:
                os.replace(path, path.with_name(path.name + ".1"))
            with open(path, "ab") as file:
                file.write(chunk)
