"""What stands between a job's code and the agent's keys, and proof that it stands.

Two ways, the stronger first. *uid*: an agent that runs as root gives the training process a user id of its own, if
that user can reach the interpreter, the job's folder and the data. *landlock*: the process keeps its user but gives
up every file it was not left. Either way it ends up without capabilities, unable to gain privileges, and where the
kernel allows it without a network; Landlock, where there is one, is laid over a user of its own too. The agent makes
itself non-dumpable, so that not even its own user can read its memory.

Left open: a UNIX socket that this user may open by path; under Landlock alone, the modes and times, never the
content, of this user's files; and the size and timing of what the job sends home. Closed besides: under Landlock only the
training process itself can start CUDA, not what it starts (a data loader's worker).

The process fences itself in at its start, before torch and before a line of the job's code, while it has one thread,
and then tries to open the keys: if that succeeds it refuses to go on. Only the standard library is imported.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import importlib.util
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from silo_agent.training import landlock

Kind = Literal["uid", "landlock", "none"]

# Job code that walks a set walks it in the same order everywhere: in a resumed cycle, at the submitter, in a simulation.
SAME_HASHES = {"PYTHONHASHSEED": "0"}

_PDEATHSIG, _DUMPABLE, _CAPBSET_DROP, _NO_NEW_PRIVS = 1, 4, 24, 38  # prctl
_NEWUSER, _NEWNET = 0x10000000, 0x40000000  # unshare
_NO_NETWORK = "no network"
_PROBE_SECONDS = 60.0
# systemd's range for users that live as long as a service: no account is given out here.
_FIRST_UID, _UIDS = 61184, 4336

_libc = ctypes.CDLL(None, use_errno=True)

# What Python, torch and CUDA read outside their own folders. All of /etc or /dev would hand a process of root
# the password hashes, the host keys and the raw disks.
_SYSTEM = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt", "/nix/store", "/proc", "/sys"),
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/localtime"),
    *("/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/hosts", "/etc/mime.types", "/etc/ssl/certs"),
    *(
        "/etc/OpenCL",
        "/etc/fonts",
        "/etc/nvidia",
        "/etc/os-release",
        "/run/opengl-driver",
        "/run/current-system",
    ),
)
# NVIDIA's driver names its threads there as it starts, and where it may not, CUDA has "no device". All of it is about
# this process alone; /proc as a whole would let a process of root change the machine.
_OWN_THREADS = Path("/proc/self/task")
_DEVICES = ("null", "zero", "full", "random", "urandom", "nvidia*", "dri", "kfd", "dxg", "infiniband")


@dataclass(frozen=True)
class Isolation:
    """What holds on this machine, as tried on it."""

    kind: Kind
    detail: str  # for a person
    uid: int | None = None  # user and group id of the process, when kind is "uid"

    @property
    def holds(self) -> bool:
        return self.kind != "none"


@dataclass(frozen=True)
class Fence:
    """What one training process is left with. Everything else is denied, except under kind "none"."""

    kind: Kind
    uid: int | None
    parent: int  # process id of the agent: the process ends with it
    home: str  # the agent's folder, closed even where a readable path contains it
    keys: str  # must not be openable from inside
    readable: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()


def protect_agent() -> None:
    """For the agent at its start: no core dumps, and no reading of its memory by processes of its own user."""
    _prctl(_DUMPABLE, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def available(home: Path, reach: Sequence[Path], interpreter: Path = Path(sys.executable)) -> Isolation:
    """Try each way in a process of its own, with the interpreter jobs use, and report the first that holds.

    `home`: the agent's folder, with its keys in `identity/`. `reach`: what the training process must be able to read
    there: the folder of jobs, the data. Takes some 0.2 s; starts processes, changes nothing.
    """
    obstacles: list[str] = []
    for kind, uid in _ways(home):
        fence = Fence(kind, uid, os.getpid(), str(home), str(home / "identity"), tuple(map(str, reach)))
        finding = _probe(interpreter, fence)
        if finding.get("ok"):
            return Isolation(kind, "; ".join([str(finding["detail"]), *obstacles]), uid)
        way = "own user" if kind == "uid" else "Landlock"
        obstacles.append(f"{way} not possible: {finding.get('error', 'no answer')}")
    return Isolation("none", "NOT ISOLATED: " + "; ".join(obstacles))


def enter(fence: Fence) -> str:
    """Close the fence around this process, for good, and try it. Returns what holds, for a person.

    Raises OSError or RuntimeError when the fence of `fence.kind` cannot be closed: then do not run the job's code.
    """
    return close(fence, move(fence))


def move(fence: Fence) -> list[str]:
    """The first half, which children share: a network and a user of their own. Returns what holds by then.

    Raises as `enter`. Between the halves no code of a job may run.
    """
    _require_one_thread()
    holds = []
    if fence.kind != "none":
        if _leave_network(fence.uid):
            holds.append(_NO_NETWORK)
        if fence.uid is not None:
            _become(fence.uid)
            holds.append(f"own user {fence.uid}")
        _drop_capabilities()
    return holds


def close(fence: Fence, holds: list[str]) -> str:
    """The second half, for each process by itself: the files it keeps are its own, among them those CUDA starts with.

    `holds`: what `move` found. Returns and raises as `enter`.
    """
    _require_one_thread()
    if fence.kind != "none":
        if landlock.abi():
            # Held open for good: the kernel may forget a folder of /proc that nobody holds, and with it the rule.
            os.open(_OWN_THREADS, os.O_PATH)
            landlock.restrict(_rules(fence), own_network=_NO_NETWORK in holds)
            holds = [*holds, f"Landlock ABI {landlock.abi()}"]
        elif fence.kind == "landlock":
            raise OSError("this kernel has no Landlock")
        _try(fence)
    tie(fence.parent)
    return ", ".join(holds) or "not isolated"


def require_own_network(fence: Fence, holds: list[str]) -> None:
    """Raises RuntimeError where processes of one job could not speak to each other once their fences are closed."""
    if fence.kind != "none" and _NO_NETWORK not in holds:
        raise RuntimeError(
            "this kernel gives the job no network of its own: set [run] processes = 1 in policy.toml"
        )


def tie(parent: int) -> None:
    """No new privileges, no core dumps, and this process ends with its parent. Raises RuntimeError if that is gone."""
    _prctl(_NO_NEW_PRIVS, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Last: the kernel forgets it when the user changes. Checked after: the parent may have died before.
    _prctl(_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise RuntimeError("the agent is gone")


def command(interpreter: Path, module: str) -> list[str]:
    """How a program of this package is started: the current folder and the user's site-packages are not on its path,
    or job code could leave a module in its working folder that runs before the fence is closed.
    """
    return [str(interpreter), "-P", "-s", "-B", "-m", module]


def environment() -> dict[str, str]:
    """What the training process may know of the agent's environment. Tokens and proxies with passwords stay here."""
    names = ("PATH", "LANG", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")
    told = {name: text for name, text in os.environ.items() if name in names or name.startswith("PYTHON")}
    return told | SAME_HASHES


def _ways(home: Path) -> Iterator[tuple[Kind, int | None]]:
    if os.geteuid() == 0:
        digest = hashlib.sha256(os.fsencode(home.resolve())).digest()
        yield "uid", _FIRST_UID + int.from_bytes(digest[:4], "big") % _UIDS
    yield "landlock", None


def _probe(interpreter: Path, fence: Fence) -> dict[str, Any]:
    try:
        done = subprocess.run(
            command(interpreter, "silo_agent.training.isolation"),
            input=json.dumps(asdict(fence)),
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
            env=environment(),
            cwd="/",
            check=False,
        )
        finding: dict[str, Any] = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return {"error": f"{interpreter} gave no answer ({type(error).__name__})"}
    return finding


def _try(fence: Fence) -> None:
    """The proof: the keys are there and cannot be listed."""
    for path in (fence.keys, fence.home):
        if fence.kind == "uid" and path == fence.home:
            continue  # it may be traversable, so that the job's folder can be reached
        with contextlib.suppress(PermissionError, FileNotFoundError):
            os.listdir(path)
            raise RuntimeError(f"{path} can be read from inside; make it accessible to the agent's user only")


def _require_one_thread() -> None:
    if len(os.listdir("/proc/self/task")) != 1:
        raise RuntimeError("the fence must be closed before a second thread is started")


def _leave_network(become: int | None) -> bool:
    """Into a network of one's own, with only a loopback. False where the kernel or its policy does not let us.

    Without privileges that takes a user namespace, in which there is no other user to become.
    """
    uid, gid = os.geteuid(), os.getegid()
    if _libc.unshare(_NEWNET) != 0:
        if become is not None or _libc.unshare(_NEWUSER | _NEWNET) != 0:
            return False
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    # ioctl SIOCSIFFLAGS, IFF_UP: processes of one job may still talk to each other.
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH22x", b"lo", 1))
    return True


def _become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    _prctl(_DUMPABLE, 1)  # its own /proc/self is its own again


def _drop_capabilities() -> None:
    """Also from the bounding set, so that a program with file capabilities gives none back."""
    for capability in range(64):
        if _libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break  # beyond the last one, or not ours to drop: then no_new_privs has to do
    header = struct.pack("=Ii", 0x20080522, 0)  # version 3, this thread
    if _libc.capset(header, bytes(24)) != 0:
        raise OSError(ctypes.get_errno(), "capabilities cannot be dropped")


def _rules(fence: Fence) -> Iterator[tuple[Path, int]]:
    home = Path(fence.home).resolve()
    for path in {*_SYSTEM, sys.prefix, sys.base_prefix, *_import_path()}:
        yield from ((inner, landlock.READ) for inner in _around(Path(path).resolve(), home))
    packages = Path(__file__).resolve().parents[2]
    yield packages, landlock.LIST
    yield from ((packages / name, landlock.READ) for name in ("anabranch", "silo_agent", "reviver"))
    yield from ((path, landlock.DEVICE) for name in _DEVICES for path in Path("/dev").glob(name))
    yield _OWN_THREADS, landlock.CHANGE
    yield Path("/dev/shm"), landlock.WRITE  # noqa: S108 - shared memory of data loaders
    for given in map(Path, fence.readable):
        parts = _around(given.resolve(), home) if given.resolve() in home.parents else [given]
        yield from ((part, landlock.READ) for part in parts)
    yield from ((Path(path), landlock.WRITE) for path in fence.writable)


def _import_path() -> Iterator[str]:
    """Folders that modules come from, without a checkout of ours: agents' folders may lie in it."""
    ours = Path(__file__).resolve().parents[2]
    yield from (path for path in sys.path if path and Path(path).resolve() != ours)


def _around(path: Path, home: Path) -> Iterator[Path]:
    """`path`, or if the agent's folder lies in it, everything in `path` that does not lead there."""
    if path == home or home in path.parents:
        return
    if path not in home.parents:
        yield path
        return
    for child in path.iterdir():
        if not child.is_symlink():
            yield from _around(child, home)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")


def main() -> None:
    """Enter the fence given on standard input and say on standard output how it went: `available` starts this."""
    fence = Fence(**json.load(sys.stdin))
    torch = importlib.util.find_spec("torch")
    needed = (sys.executable, os.__file__, torch and torch.origin, *fence.readable)
    there = [path for path in needed if path and os.path.exists(path)]
    try:
        detail = enter(fence)
        for path in there:
            _open(path)
        answer: dict[str, Any] = {"ok": True, "detail": detail}
    except (OSError, RuntimeError) as error:
        answer = {"ok": False, "error": str(error)}
    print(json.dumps(answer))


def _open(path: str) -> None:
    """Really: access(2) knows nothing of Landlock."""
    if os.path.isdir(path):
        os.listdir(path)
    else:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))


if __name__ == "__main__":
    main()
