"""Reading what a process used: seconds of CPU, peak memory, bytes on the wire."""

import fcntl
import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TICKS = os.sysconf("SC_CLK_TCK")
MEMORY_V1, MEMORY_V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
ALONE = "ANABRANCH_BENCH_NETWORK"  # set in the process that has a network of its own


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def peak_memory(pid: int) -> int:
    """VmHWM in bytes: what was resident at once, at most, since `forget_peak` or the start."""
    return _status(pid, "VmHWM")


def memory(pid: int) -> int:
    """VmRSS in bytes."""
    return _status(pid, "VmRSS")


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _status(pid: int, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None, f"{name} of {pid}"
    return 1024 * int(found[1])


def wire_bytes() -> int | None:
    """Bytes on the loopback since it came up, TCP and IP included; None where it is shared with other programs."""
    if ALONE not in os.environ:
        return None
    line = next(
        line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:")
    )
    return int(line.split(":")[1].split()[8])


def in_a_network_of_its_own() -> None:
    """Start this program again where nobody else uses the loopback. Without the right to do so, go on as it is."""
    if ALONE in os.environ:
        _bring_up("lo")
        return
    argv = ["unshare", "--net", "--", *sys.orig_argv]
    if subprocess.run([*argv[:3], "true"], capture_output=True, check=False).returncode == 0:
        os.execvpe(argv[0], argv, {**os.environ, ALONE: "1"})  # noqa: S606 - ourselves
    print("bytes on the wire are not measured: that needs the right to make a network namespace")


def _bring_up(name: str) -> None:
    get, set_, up = 0x8913, 0x8914, 1  # SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        (flags,) = struct.unpack("16xh14x", fcntl.ioctl(control, get, struct.pack("16s16x", name.encode())))
        fcntl.ioctl(control, set_, struct.pack("16sh14x", name.encode(), flags | up))


@dataclass
class MemoryLimit:
    """A control group without swap. Page cache counts and is reclaimed; what a process cannot give back kills it."""

    group: Path
    limit: int

    @classmethod
    def make(cls, limit: int) -> "MemoryLimit | None":
        """None where control groups cannot be made."""
        for root, bound in ((MEMORY_V1, "memory.limit_in_bytes"), (MEMORY_V2, "memory.max")):
            group = root / f"anabranch-bench-{os.getpid()}"
            try:
                group.mkdir()
                (group / bound).write_text(str(limit))
            except OSError:
                continue
            for swap in ("memory.swappiness", "memory.swap.max"):
                if (group / swap).exists():
                    (group / swap).write_text("0")
            return cls(group, limit)
        return None

    def hold(self, pid: int) -> None:
        (self.group / "cgroup.procs").write_text(str(pid))

    def remove(self) -> None:
        """Once its processes have ended."""
        for _ in range(50):
            try:
                self.group.rmdir()
                return
            except OSError:
                time.sleep(0.1)


class Worker:
    """A child that takes a command per line and answers a JSON object per line."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid
        self.greeting = self._line().strip()

    def begin(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._line())
        return found

    def __call__(self, command: str) -> dict[str, Any]:
        self.begin(command)
        return self.answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(self._process.args[2:4])}… ended; its message stands above")  # type: ignore[index]
        return line


def obey(who: object) -> None:
    """A worker's own end: each line names a method; its answer is when it began and ended, and what it returned."""
    print("ready", flush=True)
    for line in sys.stdin:
        command = getattr(who, line.strip())
        began = time.monotonic()
        more = command() or {}
        print(json.dumps({"began": began, "ended": time.monotonic(), **more}), flush=True)


def together(workers: Sequence[Worker], command: str) -> float:
    """Seconds from the first one's start to the last one's end, by their own clocks."""
    for worker in workers:
        worker.begin(command)
    answers = [worker.answer() for worker in workers]
    return max(one["ended"] for one in answers) - min(one["began"] for one in answers)
