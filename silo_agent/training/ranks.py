"""Several processes for one script, the ranks: what `torchrun` would start, forked before anything of the job is loaded.

The process that the agent started keeps the agent's channel. It hands each request to every rank and, once all have
answered, rank 0's answer to the agent; it runs nothing of the job's. Each rank closes a fence of its own, in the
network that all share: what is started from inside a fence could not start CUDA (`isolation.py`).

A rank that ends too soon ends the whole process group, after its failure has been told.
"""

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from typing import BinaryIO

from anabranch.errors import Refused
from anabranch.wire import limits
from silo_agent.training.channel import Channel, Failed, Incoming, Message, Progress

_LISTEN = 3600.0  # seconds of one wait for messages; then the next begins
_ENDING = 2.0  # seconds in which a process that has closed its channel ends, at most
_KILLED = (os.CLD_KILLED, os.CLD_DUMPED)


@dataclass(frozen=True)
class Rank:
    pid: int
    requests: BinaryIO
    messages: Incoming

    def close(self) -> None:
        self.requests.close()
        self.messages.close()


Said = SimpleQueue[tuple[Rank, Message | None]]  # None: it will say no more


def split(channel: Channel, count: int) -> Channel | None:
    """Fork `count` ranks. In each: its channel. Here: None, when all have ended after the agent asked for it.

    Call it with one thread, in a process that leads its process group.
    """
    with socket.socket() as free:  # of a network of our own, or where there is none, of the machine's
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks: list[Rank] = []
    for number in range(count):
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        pid = os.fork()
        if pid == 0:
            channel.close()
            for rank in ranks:
                rank.close()
            os.close(ours_out)
            os.close(ours_in)
            os.environ.update(_environment(number, count, port))
            return Channel(os.fdopen(theirs_in, "rb"), os.fdopen(theirs_out, "wb"))
        os.close(theirs_in)
        os.close(theirs_out)
        ranks.append(Rank(pid, os.fdopen(ours_out, "wb"), Incoming(ours_in)))
    _serve(channel, ranks)
    return None


def _environment(number: int, count: int, port: int) -> Mapping[str, str]:
    """What torchrun sets, and the one network interface there is, which a host's name does not lead to."""
    return {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "ROLE_RANK": str(number),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "ROLE_WORLD_SIZE": str(count),
        "GROUP_WORLD_SIZE": "1",
        "ROLE_NAME": "default",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "none",  # by which torch and others see that somebody has started the ranks
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "False",  # rank 0 listens at MASTER_PORT, and nobody outside
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
    }


def _serve(channel: Channel, ranks: list[Rank]) -> None:
    said: Said = SimpleQueue()
    leaving = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: _tell(ranks))
    threading.Thread(target=_hand_on, args=(channel, ranks, leaving), daemon=True).start()
    for rank in ranks:
        threading.Thread(target=_listen, args=(rank, said), daemon=True).start()
    answers: dict[int, Message] = {}  # by process id, in the order they came
    reports: dict[int, Progress] = {}  # of this cycle, the newest of each
    ended = 0
    while ended < len(ranks):
        rank, message = said.get()
        if message is None:
            ended += 1
            if not leaving.is_set():
                _abandon(channel, rank, ranks, answers)
        elif message["is"] != "progress":
            answers[rank.pid] = message
            if len(answers) == len(ranks):
                channel.send(_first_failure(answers) or answers[ranks[0].pid])
                answers.clear()
                reports.clear()
        else:
            reports[rank.pid] = message
            if rank is ranks[0]:
                channel.send(_together(message, reports.values()))


def _together(first: Progress, reports: Collection[Progress]) -> Progress:
    """Rank 0's progress at the speed of all ranks."""
    samples = sum(one.get("samples_per_second", 0.0) for one in reports)
    tokens = sum(one.get("tokens_per_second", 0.0) for one in reports)
    together = first.copy()
    together["samples_per_second"] = min(samples, limits.PER_SECOND)
    together["tokens_per_second"] = min(tokens, limits.PER_SECOND)
    return together


def _tell(ranks: list[Rank]) -> None:
    for rank in ranks:  # not reaped before this process ends, so the ids are theirs
        with contextlib.suppress(ProcessLookupError):
            os.kill(rank.pid, signal.SIGTERM)


def _hand_on(channel: Channel, ranks: list[Rank], leaving: threading.Event) -> None:
    while (request := channel.receive()) is not None:
        if request["do"] == "stop":
            leaving.set()
        for rank in ranks:
            with contextlib.suppress(OSError):  # it has ended, which is seen elsewhere
                rank.requests.write(json.dumps(request).encode("ascii") + b"\n")
                rank.requests.flush()
    leaving.set()
    for rank in ranks:
        with contextlib.suppress(OSError):
            rank.requests.close()


def _listen(rank: Rank, said: Said) -> None:
    try:
        while not rank.messages.ended:
            for message in rank.messages.messages(_LISTEN):
                said.put((rank, message))
    except Refused:  # the job's code has got hold of the channel
        said.put((rank, {"is": "failed", "reason": "task_garbage", "exception": "NotAMessage"}))
    said.put((rank, None))


def _abandon(channel: Channel, first: Rank, ranks: list[Rank], answers: Mapping[int, Message]) -> None:
    """`first` has ended: say why, and end everything. The others fail only because they miss it."""
    deadline = time.monotonic() + _ENDING
    while _ended_by(first) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    signals = [name for rank in ranks if (name := _ended_by(rank))]
    failure = _first_failure(answers)
    if signals:
        failure = {"is": "failed", "reason": "task_failed", "exception": signals[0]}
    if failure is not None:
        channel.send(failure)
    os.killpg(0, signal.SIGKILL)


def _ended_by(rank: Rank) -> str | None:
    """Name of the signal that ended it; empty if it ended by itself; None while it runs."""
    status = os.waitid(os.P_PID, rank.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if status is None:
        return None
    return signal.Signals(status.si_status).name if status.si_code in _KILLED else ""


def _first_failure(answers: Mapping[int, Message]) -> Failed | None:
    return next((message for message in answers.values() if message["is"] == "failed"), None)
