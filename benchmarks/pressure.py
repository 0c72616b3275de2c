"""What happens beside the bulk: small updates, idle sessions, a greedy neighbour, a server and a silo that are killed."""

import json
import re
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anabranch.tlog import tiles
from anabranch.wire import canonical
from benchmarks.federation import Federation, running, submit_job
from benchmarks.gauge import Worker, cpu_seconds, memory
from console.demo import federation as demo
from console.demo.processes import program

SMALL = 40_000  # bytes: an adapter
LARGE = 1_000_000_000
ASYNCHRONOUS = 'buffer = 100\nmax_wait = "1h"'
BUCKET = re.compile(r'^anabranch_intake_seconds_bucket\{le="([^"]+)"\} ([0-9.e+]+)$', re.MULTILINE)


@dataclass(frozen=True)
class Latency:
    """Of small updates."""

    intake_p99_at_most: (
        float  # seconds at the server: decision, entry, commit, proof; the bound of a histogram bucket
    )
    upload_p50: float  # seconds at the silo: from the first byte to the proven receipt
    upload_p99: float


@dataclass(frozen=True)
class Sessions:
    silos: int
    cpu_of_one_core: float  # of all sessions together
    bytes_each: float


@dataclass(frozen=True)
class Recovery:
    server_killed_to_accepted: (
        float  # seconds from SIGKILL to the first accepted update, the restart included
    )
    silo_killed_to_named: float  # seconds from SIGKILL to the log's entry


def latency(root: Path, say: Callable[[str], None]) -> dict[str, object]:
    """Two hundred small updates of one silo: alone, beside an endless upload of 1 GB models."""
    with running(root, 2) as federation, ExitStack() as open_:
        small = submit_job(federation, SMALL, ASYNCHRONOUS)
        worker = _open(open_, federation, 0, small)
        alone = _two_hundred(federation, worker)
        say(
            f"alone: intake p99 ≤ {1000 * alone.intake_p99_at_most:.0f} ms, upload p99 {1000 * alone.upload_p99:.0f} ms"
        )
        large = submit_job(federation, LARGE, ASYNCHRONOUS)
        neighbour = federation.worker(federation.silos[1], large)
        open_.callback(neighbour.kill)
        neighbour.begin("flood")
        time.sleep(5)
        beside = _two_hundred(federation, worker)
        say(
            f"beside: intake p99 ≤ {1000 * beside.intake_p99_at_most:.0f} ms, upload p99 {1000 * beside.upload_p99:.0f} ms"
        )
    return {"alone": vars(alone), "beside_1_gb_uploads": vars(beside)}


def neighbour(root: Path, say: Callable[[str], None]) -> dict[str, object]:
    """Four honest silos with models of 1 MB, without and with a fifth that uploads 100 MB models at line rate."""
    with running(root, 5) as federation, ExitStack() as open_:
        job = submit_job(federation, 1_000_000, ASYNCHRONOUS)
        honest = [_open(open_, federation, number, job) for number in range(4)]
        before = _all(honest)
        greedy_job = submit_job(federation, 100_000_000, ASYNCHRONOUS)
        greedy = federation.worker(federation.silos[4], greedy_job)
        open_.callback(greedy.kill)
        greedy.begin("flood")
        time.sleep(3)
        after = _all(honest)
        say(f"p99 of four honest silos: {after / before:.2f} × beside a fifth at line rate")
    return {"p99_before": before, "p99_beside": after, "ratio": after / before}


def sessions(root: Path, silos: int, say: Callable[[str], None], seconds: float = 30.0) -> Sessions:
    """`silos` agents that are connected and do nothing."""
    with running(root, silos) as federation:
        before = memory(federation.server)
        crowd = Worker([sys.executable, "-m", "benchmarks.crowd", str(federation.place.root / "silos")])
        try:
            _wait_for(lambda: _metric(federation, "anabranch_sessions ") >= silos)
            time.sleep(3)
            cpu = cpu_seconds(federation.server)
            time.sleep(seconds)
            used = (cpu_seconds(federation.server) - cpu) / seconds
            grown = (memory(federation.server) - before) / silos
        finally:
            crowd.close()
    say(f"{silos} sessions: {100 * used:.1f} % of a core, {grown / 1024:.0f} KiB each")
    return Sessions(silos, used, grown)


def recovery(root: Path, say: Callable[[str], None]) -> Recovery:
    """Four silos at work; the server is killed and started again, then one silo is killed."""
    with running(root, 4) as federation, ExitStack() as open_:
        job = submit_job(federation, 1_000_000, "buffer = 4")
        workers = [_open(open_, federation, number, job) for number in range(4)]
        for worker in workers:
            worker("attend")
            worker.begin("outlast")
        time.sleep(2)
        killed = time.monotonic()
        federation.children.kill("server")
        demo.serve(federation.children, federation.place, federation.ports)
        moments = [moment for worker in workers for moment in worker.answer()["accepted"] if moment > killed]
        accepted = min(moments) - killed
        say(f"server killed: the next update is accepted after {accepted:.1f} s")
        workers[0]("lease")
        workers[0].kill()
        gone = time.time()
        time.sleep(12)
        named = _lost_at(federation, federation.silos[0], gone) - gone
        say(f"silo killed: named after {named:.1f} s")
    return Recovery(accepted, named)


def _open(open_: ExitStack, federation: Federation, number: int, job: str) -> Worker:
    worker = federation.worker(federation.silos[number], job)
    open_.callback(worker.close)
    return worker


def _two_hundred(federation: Federation, worker: Worker) -> Latency:
    before = _intakes(federation)
    took = worker("small")
    counts = {bound: count - before.get(bound, 0.0) for bound, count in _intakes(federation).items()}
    total = counts[float("inf")]
    p99 = min(bound for bound, count in counts.items() if count >= 0.99 * total)
    return Latency(p99, took["p50"], took["p99"])


def _all(workers: list[Worker]) -> float:
    for worker in workers:
        worker.begin("small")
    return max(worker.answer()["p99"] for worker in workers)


def _scrape(federation: Federation) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{federation.ports.health}/metrics", timeout=10) as reply:
        text: str = reply.read().decode()
        return text


def _intakes(federation: Federation) -> dict[float, float]:
    """Upper bound in seconds → updates decided within it, since the server started."""
    return {float(bound): float(count) for bound, count in BUCKET.findall(_scrape(federation))}


def _metric(federation: Federation, name: str) -> float:
    lines = (line for line in _scrape(federation).splitlines() if line.startswith(name))
    return float(next(lines, "x 0").rpartition(" ")[2])


def _wait_for(holds: Callable[[], bool], seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            raise SystemExit(f"not within {seconds:.0f} s; see the server's log")
        time.sleep(0.2)


def _lost_at(federation: Federation, silo: str, since: float) -> float:
    """Unix time of the entry that names the silo, read from an export."""
    out = federation.place.root / "export"
    federation.children.run(
        {"export": [program("anabranch-server"), "export", str(federation.place.server), "-o", str(out)]}
    )
    times = [
        canonical.from_utc(entry["time"])
        for entry in _entries(out)
        if entry["type"] == "silo.lost" and entry["detail"]["silo"] == silo
    ]
    return min(moment for moment in times if moment > since - 1)


def _entries(export: Path) -> Iterator[dict[str, Any]]:
    for bundle in sorted(path for path in (export / "tile" / "entries").rglob("*") if path.is_file()):
        yield from (json.loads(data) for data in tiles.parse_bundle(bundle.read_bytes()))
