"""A whole round, ours and the reference's, in alternation: broadcast, upload, aggregate.

Ours: every silo takes a lease, fetches the version and proves it, uploads its signed update and has its receipt proven;
the server writes, hashes, checks, logs and aggregates, and publishes the next version. What
a silo does on its own in between (training, signing, its outbox) is on no clock. The reference: `benchmarks.bare`.
"""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from benchmarks.federation import Federation, layout, numbers, running, submit_job
from benchmarks.gauge import Worker, cpu_seconds, peak_memory, together, wire_bytes

SYNCHRONOUS = 'strategy = "fedavg"\nmax_wait = "1h"\nema = 0'  # the reference keeps no average either


@dataclass(frozen=True)
class Side:
    """Seconds and bytes of one round on one side."""

    broadcast: float
    upload: float
    aggregate: float
    server_cpu: float
    wire: int | None

    @property
    def round(self) -> float:
        return self.broadcast + self.upload + self.aggregate


@dataclass(frozen=True)
class Pair:
    """One round of ours and the reference's rounds right after it, with and without a disk behind them."""

    ours: Side
    durable: Side
    memory: Side


@dataclass(frozen=True)
class Rounds:
    size: int  # bytes of the model
    silos: int
    pairs: list[Pair]
    server_peak: int  # bytes
    agent_peak: int

    def ratio(self, of: Callable[[Side], float], reference: str = "durable") -> float:
        """The median over the pairs of ours / reference."""
        return median(of(pair.ours) / of(getattr(pair, reference)) for pair in self.pairs)

    def document(self) -> dict[str, object]:
        payload = 2 * self.size * self.silos  # each silo fetches one model and sends one update
        wires = [pair.ours.wire / payload for pair in self.pairs if pair.ours.wire is not None]
        return {
            "model_bytes": self.size,
            "silos": self.silos,
            "ingest_of_durable_reference": 1 / self.ratio(lambda side: side.upload),
            "ingest_of_memory_reference": 1 / self.ratio(lambda side: side.upload, "memory"),
            "round_of_durable_reference": self.ratio(lambda side: side.round),
            "round_of_memory_reference": self.ratio(lambda side: side.round, "memory"),
            "server_cpu_seconds_per_gb": median(1e9 * pair.ours.server_cpu / payload for pair in self.pairs),
            "reference_cpu_seconds_per_gb": median(
                1e9 * pair.durable.server_cpu / payload for pair in self.pairs
            ),
            "wire_of_payload": median(wires) if wires else None,
            "server_peak_bytes": self.server_peak,
            "agent_peak_bytes": self.agent_peak,
            "pairs": [asdict(pair) for pair in self.pairs],
        }


@dataclass(frozen=True)
class Bare:
    """The reference's server and its silos."""

    server: Worker
    silos: list[Worker]


def measure(root: Path, size: int, silos: int, pairs: int, say: Callable[[str], None]) -> Rounds:
    """`pairs` counted pairs, after one that warms both sides up."""
    with running(root, silos) as federation, ExitStack() as open_:
        job = submit_job(federation, size, SYNCHRONOUS)
        workers = [_ended(open_, federation.worker(silo, job)) for silo in federation.silos]
        durable, memory = (_bare(open_, federation, root, size, kind) for kind in ("durable", "memory"))
        counted = []
        for number in range(pairs + 1):
            pair = Pair(_ours(federation.server, workers), _reference(durable), _reference(memory))
            if number:
                counted.append(pair)
                rate, time = pair.durable.upload / pair.ours.upload, pair.ours.round / pair.durable.round
                say(
                    f"pair {number} of {pairs}: {rate:.2f} of the reference's rate, a round in {time:.2f} × its time"
                )
        agent = int(max(worker("peak")["bytes"] for worker in workers))
        return Rounds(size, silos, counted, peak_memory(federation.server), agent)


def _ended(open_: ExitStack, worker: Worker) -> Worker:
    open_.callback(worker.close)
    return worker


def _bare(open_: ExitStack, federation: Federation, root: Path, size: int, kind: str) -> Bare:
    folder = root / kind
    federation.certify(folder)
    python = [sys.executable, "-m", "benchmarks.bare"]
    manifest = layout(size)
    server = _ended(open_, Worker([*python, "serve", str(folder), str(manifest.file_bytes), kind]))
    silos = []
    for number, name in enumerate(federation.silos):
        delta = root / f"{name}.delta"  # both references send the same
        if not delta.exists():
            numbers(delta, manifest, number)
        argv = [
            *python,
            "silo",
            str(federation.place.silo(name)),
            server.greeting,
            str(delta),
            f"{delta}.copy",
        ]
        silos.append(_ended(open_, Worker(argv)))
    return Bare(server, silos)


def _ours(server: int, silos: list[Worker]) -> Side:
    """From the first lease to the published version, the silos' own work left out."""
    cpu, wire = cpu_seconds(server), wire_bytes()
    broadcast = together(silos, "lease") + together(silos, "fetch")
    together(silos, "make")
    upload = together(silos, "send")
    # Synchronous terms: there is a lease only when the next version is published.
    aggregate = together(silos[:1], "lease")
    return Side(broadcast, upload, aggregate, cpu_seconds(server) - cpu, _since(wire))


def _reference(bare: Bare) -> Side:
    cpu, wire = cpu_seconds(bare.server.pid), wire_bytes()
    broadcast = together(bare.silos, "get")
    upload = together(bare.silos, "put")
    aggregate = together(bare.silos[:1], "finish")
    return Side(broadcast, upload, aggregate, cpu_seconds(bare.server.pid) - cpu, _since(wire))


def _since(before: int | None) -> int | None:
    now = wire_bytes()
    return None if before is None or now is None else now - before
