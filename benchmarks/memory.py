"""The server's memory: rounds of 1 GB models by few and by many silos, and a model far larger than memory's share.

The server is put into a control group without swap that allows it no more than the bound, page cache included; a round
that ends there is the proof, and the peak of resident memory says how far away the bound was.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.federation import Federation, running, submit_job
from benchmarks.gauge import MemoryLimit, Worker, peak_memory, together

BOUND = 400 << 20  # bytes
SYNCHRONOUS = 'strategy = "fedavg"\nmax_wait = "10h"'


@dataclass(frozen=True)
class Memory:
    model_bytes: int
    silos: int
    server_peak: int  # bytes, VmHWM
    agent_peak: int
    bound: int | None  # bytes the control group allowed; None where none could be made


def round_in_bounds(root: Path, size: int, silos: int, say: Callable[[str], None]) -> Memory:
    """One round, all uploads at once. `root` needs room for `size` × (2 × `silos` + 4)."""
    limit = MemoryLimit.make(BOUND)
    try:
        with running(root, silos) as federation:
            if limit is not None:
                limit.hold(federation.server)
            found = _round(federation, size, limit.limit if limit else None)
    finally:
        if limit is not None:
            limit.remove()
    say(f"{silos} silos × {size / 1e9:g} GB: server at most {found.server_peak >> 20} MiB")
    return found


def _round(federation: Federation, size: int, bound: int | None) -> Memory:
    job = submit_job(federation, size, SYNCHRONOUS)
    workers = [federation.worker(silo, job) for silo in federation.silos]
    try:
        together(workers, "lease")
        together(workers, "fetch")
        for worker in workers:  # one after the other: each needs the disk for two copies of its update
            worker("make")
        together(workers, "send")
        together(workers[:1], "lease")  # only after the next version is published
        agent = max(int(worker("peak")["bytes"]) for worker in workers)
        return Memory(size, len(workers), peak_memory(federation.server), agent, bound)
    finally:
        _close(workers)


def _close(workers: list[Worker]) -> None:
    for worker in workers:
        worker.close()
