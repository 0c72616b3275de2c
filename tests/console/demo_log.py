"""A small federation's log, written by the real entry code, for the report to read."""

import base64
import hashlib
import heapq
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from anabranch.tlog.checkpoint import Checkpoint, sign
from anabranch.tlog.entry import Actor, Entry, Sig, Target, encode_entry, new_entry, uuid7
from anabranch.tlog.merkle import Frontier, leaf_hash
from anabranch.tlog.note import NoteSigner
from anabranch.tlog.tiles import bundles, encode_bundle, entries_path
from anabranch.wire.canonical import hexfloat, utc
from console.demo.report import Setup, SiloSetup

FED = "demo.anabranch"
JOB = "job-1"
START = 1_800_000_000.0
SERVER = f"spiffe://{FED}/aggregator/0"
SILOS = ("aare", "danube", "elbe", "loire", "tagus")
SPEEDS = (1.0, 1.0, 1.0, 3.0, 10.0)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Log:
    """Appends entries at a clock the test moves."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def add(self, at: float, type: str, detail: dict, *, target: Target, silo: str = "") -> None:
        actor = f"spiffe://{FED}/silo/{silo}/agent/0" if silo else SERVER
        signed = type in ("update.received", "job.approved", "model.evaluated")
        number = len(self.entries)
        self.entries.append(
            new_entry(
                type,
                id=uuid7(int(at * 1000), number.to_bytes(10, "big")),
                time=utc(at),
                fed=FED,
                observer=SERVER,
                actor=Actor(id=actor, auth="mtls" if silo else "local"),
                target=target,
                detail=detail,
                job=JOB,
                sigs=[
                    Sig(
                        keyid=digest(silo),
                        payloadType="application/vnd.in-toto+json",
                        sig=base64.b64encode(bytes(64)).decode(),
                        payload_sha256=digest(f"{type}{number}"),
                    )
                ]
                if signed
                else (),
            )
        )


def _opening(log: Log) -> None:
    job = Target(kind="job", id=JOB)
    terms = digest("terms")
    log.add(
        START - 3,
        "server.started",
        {"release": "0.1.0", "epoch": 1},
        target=Target(kind="server", id="server"),
    )
    names = ("terms_sha256", "archive_sha256", "initial_sha256", "manifest_sha256")
    log.add(START - 2, "job.submitted", {"name": "digits", **{n: digest(n[:-7]) for n in names}}, target=job)
    for silo in SILOS:
        log.add(START - 1, "job.approved", {"silo": silo, "terms_sha256": terms}, target=job, silo=silo)
    log.add(START, "job.started", {"silos": list(SILOS)}, target=job)
    _publish(log, START, 0)


def _publish(log: Log, at: float, version: int) -> None:
    detail = {"version": version, "parameters_sha256": digest(f"v{version}"), "bytes": 19_000}
    detail["ema_sha256"] = digest(f"e{version}")
    if version:
        detail |= {"parent": version - 1, "step": f"step-{version}"}
    log.add(at, "model.published", detail, target=Target(kind="model", id=f"{JOB}/{version}"))


def federation(versions: int = 40, killed_at: int | None = None) -> list[Entry]:
    """A FedBuff job with buffer 2 in which every silo works at its own speed; the last updates are retired."""
    log = Log()
    _opening(log)
    head, buffer, queue, outage = 0, [], [], 0.0
    for number, speed in enumerate(SPEEDS):
        heapq.heappush(queue, (START + 0.3 * speed + 0.01 * number, number, 0, 0))
    while head < versions:
        at, number, base, cycle = heapq.heappop(queue)
        at += outage
        _train(log, at, number, base, cycle)
        buffer.append((f"u-{number}-{cycle}", number, base))
        if len(buffer) == 2:
            head += 1
            _aggregate(log, at + 0.02, head, buffer)
            buffer = []
            if head == killed_at:
                outage = 3.0
                found = {"open_steps": 0, "requeued": 1}
                started = {"release": "0.1.0", "epoch": 2, "recovered": found}
                log.add(at + 2.5, "server.started", started, target=Target(kind="server", id="server"))
        heapq.heappush(queue, (at - outage + 0.3 * SPEEDS[number] + 0.013 * number, number, head, cycle + 1))
    _closing(log, at + 0.1, queue, head)
    return log.entries


def _train(log: Log, at: float, number: int, base: int, cycle: int) -> None:
    silo, lease, update = SILOS[number], f"l-{number}-{cycle}", f"u-{number}-{cycle}"
    lease_detail = {
        "lease": lease, "silo": silo, "kind": "train", "version": base, "view_sha256": digest(f"v{base}"),
        "deadline": utc(at + 60), "nonce": "00" * 16, "local_steps": 20,
    }  # fmt: skip
    log.add(at - 0.28 * SPEEDS[number], "lease.issued", lease_detail, target=Target(kind="lease", id=lease))
    received = {
        "update": update, "silo": silo, "lease": lease, "sequence": cycle, "version": base, "staleness": 0,
        "bytes": 19_000, "delta_sha256": digest(update), "statement_sha256": digest("s" + update),
        "norm": hexfloat(1.0),
    }  # fmt: skip
    log.add(at, "update.received", received, target=Target(kind="update", id=update), silo=silo)


def _aggregate(log: Log, at: float, head: int, buffer: list[tuple[str, int, int]]) -> None:
    inputs = [
        {
            "update": update, "silo": SILOS[number], "delta_sha256": digest(update), "base": base,
            "staleness": head - 1 - base, "weight": hexfloat(1.0), "coefficient": hexfloat(0.5),
        }
        for update, number, base in buffer
    ]  # fmt: skip
    detail = {
        "version": head, "base": head - 1, "step": f"step-{head}", "strategy": "fedbuff", "inputs": inputs,
        "scalars": {}, "optimizer": {"name": "sgd", "lr": hexfloat(1.0)}, "absent": [], "closed_by": "full",
        "numeric_profile": "anabranch-np-1",
    }  # fmt: skip
    log.add(at, "aggregation.performed", detail, target=Target(kind="model", id=f"{JOB}/{head}"))
    _publish(log, at, head)


def _closing(log: Log, at: float, queue: list, head: int) -> None:
    job = Target(kind="job", id=JOB)
    log.add(at, "job.completed", {"reason": "versions", "head": head}, target=job)
    _, number, base, cycle = min(queue)
    _train(log, at + 0.1, number, base, cycle)
    retired = {"update": f"u-{number}-{cycle}", "silo": SILOS[number], "reason": "job_ended"}
    log.add(at + 0.1, "update.retired", retired, target=Target(kind="update", id=retired["update"]))
    refused = {"silo": SILOS[1], "code": "too_stale"}
    log.add(at + 0.2, "update.refused", refused, target=Target(kind="update", id="u-x"), silo=SILOS[1])


def setup(killed=None) -> Setup:
    counts = ((40, 3, 0, 90, 12, 0, 55, 7, 60, 81), (0, 120, 80, 0, 4, 19, 0, 33, 2, 0)) * 3
    silos = tuple(
        SiloSetup(silo, 260, 87, counts[n], 0.01 * SPEEDS[n], SPEEDS[n]) for n, silo in enumerate(SILOS)
    )
    return Setup(0, "fedbuff", 40, 0.3, 20, silos, killed)


VERIFIED = {
    "log": {"size": 254},
    "signatures": 87,
    "views_of_silos": 87,
    "objects": {"match": 130},
    "findings": [],
}
REPLAYED = {"verify": VERIFIED, "replay": {"replayed": 40, "exact": 40, "different": [], "digest_only": []}}


def measured(versions: int = 40) -> dict:
    """What the evaluation process would have found; `tagus` does better alone at home."""
    own = (0.97, 0.9, 0.95, 0.92, 0.989)
    return {
        "versions": {str(v): 0.95 - 0.85 * 0.9**v - (0.06 if v % 7 == 3 else 0) for v in range(versions + 1)},
        "averages": {str(v): 0.94 - 0.85 * 0.93**v for v in range(versions + 1)},
        "silos": {
            silo: {
                "local": {
                    "own": own[n],
                    "all": 0.45 + 0.07 * n,
                    "steps": 700,
                    "trained_steps": 1880,
                    "path": [],
                },
                "federated": {"own": 0.975 - 0.02 * n, "all": 0.9374},
                "tuned": {"own": 0.98, "all": 0.91, "steps": 40},
            }
            for n, silo in enumerate(SILOS)
        },
    }


def write_export(entries: list[Entry], directory: Path) -> None:
    """The parts of an audit export that hold entries: bundles, checkpoint, the log's key."""
    signer = NoteSigner(f"{FED}/log", Ed25519PrivateKey.generate())
    encoded = [encode_entry(entry) for entry in entries]
    tree = Frontier()
    for data in encoded:
        tree.append(leaf_hash(data))
    for index, width in bundles(len(encoded)):
        path = directory / entries_path(index, width)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_bundle(encoded[256 * index : 256 * index + width]))
    (directory / "checkpoint").write_text(sign(Checkpoint(f"{FED}/log", len(encoded), tree.root()), signer))
    (directory / "keys").mkdir()
    (directory / "keys" / "log.vkey").write_text(signer.vkey + "\n")
