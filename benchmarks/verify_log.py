"""How long the auditor takes for a long log: seconds per million entries, one in ten of them signed by a silo.

python -m benchmarks.verify_log [ENTRIES …] [--profile] [--keep DIR]

The log is synthetic and honest, made with the real encoder, real keys and real statements; deltas and snapshots are
named and not held, so what is measured is the log. Each size is verified in a process of its own.
"""

import argparse
import base64
import cProfile
import json
import os
import pstats
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from anabranch.rules.profile import NUMERIC_PROFILE
from anabranch.terms import Job, JobFile, JobTerms, Silos
from anabranch.tlog import tiles
from anabranch.tlog.checkpoint import Checkpoint, sign
from anabranch.tlog.entry import Actor, Sig, Target, encode_entry, new_entry, uuid7
from anabranch.tlog.merkle import Frontier, leaf_hash
from anabranch.tlog.note import NoteSigner
from anabranch.wire import canonical, dsse, statements
from anabranch.wire.identity import spki_pin
from auditor.export import Export
from auditor.pin import pin
from auditor.verify import verify

FED, ORIGIN, JOB = "bench.example", "bench.example/log", "bench-1"
SERVER = Actor(id=f"spiffe://{FED}/aggregator/0", auth="local")
ADMIN = Actor(id=f"spiffe://{FED}/admin/owner", auth="mtls")
SILOS = ("a", "b", "c", "d")
START = 1_790_000_000.0
VALID = datetime(2026, 1, 1, tzinfo=UTC), datetime(2036, 1, 1, tzinfo=UTC)
IDLE_LEASES = 13  # issued and released for each version, so that one entry in ten is signed


class Writer:
    """Appends entries to an export, bundle by bundle."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "objects").mkdir(parents=True)
        (root / "keys").mkdir()
        self.key = Ed25519PrivateKey.generate()
        self.signer = NoteSigner(ORIGIN, self.key)
        self.frontier = Frontier()
        self.nodes: dict[tuple[int, int], bytes] = {}
        self.bundle: list[bytes] = []
        self.seen = Checkpoint(ORIGIN, 0, self.frontier.root())

    def log(
        self, type: str, target: Target, detail: dict[str, Any], actor: Actor = SERVER, **more: Any
    ) -> None:
        index = self.frontier.size
        now = START + index * 0.5
        ident = uuid7(int(now * 1000), index.to_bytes(10, "big"))
        entry = new_entry(
            type,
            id=ident,
            time=canonical.utc(now),
            fed=FED,
            observer=SERVER.id,
            actor=actor,
            target=target,
            detail=detail,
            **more,
        )
        data = encode_entry(entry)
        for level, at, value in self.frontier.append(leaf_hash(data)):
            if level % tiles.HEIGHT == 0:
                self.nodes[level, at] = value
        self.bundle.append(data)
        if len(self.bundle) == tiles.WIDTH:
            self.flush()

    def flush(self) -> None:
        if self.bundle:
            index = (self.frontier.size - 1) // tiles.WIDTH
            self.write(tiles.entries_path(index, len(self.bundle)), tiles.encode_bundle(self.bundle))
            self.bundle = []

    def write(self, name: str, data: bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def signed(self, payload: bytes, key: Ed25519PrivateKey) -> Sig:
        digest = canonical.sha256(payload)
        self.write(f"objects/{digest}", payload)
        envelope = dsse.sign(statements.PAYLOAD_TYPE, payload, key)
        one = envelope.signatures[0]
        return Sig(
            keyid=one.keyid,
            payloadType=envelope.payload_type,
            sig=base64.b64encode(one.sig).decode(),
            payload_sha256=digest,
        )

    def finish(self, ca: bytes) -> None:
        self.flush()
        for tile in tiles.tiles(self.frontier.size):
            self.write(tile.path, tile.data(lambda level, at: self.nodes[level, at]))
        note = sign(Checkpoint(ORIGIN, self.frontier.size, self.frontier.root()), self.signer)
        self.write("checkpoint", note.encode())
        self.write("keys/log.vkey", self.signer.vkey.encode() + b"\n")
        self.write("keys/ca.pem", ca)


def build(root: Path, entries: int) -> None:
    """At least `entries` entries: a federation of four silos and one job that goes on."""
    log, ca = Writer(root), _authority()
    update_keys = {silo: Ed25519PrivateKey.generate() for silo in SILOS}
    approver_keys = {silo: Ed25519PrivateKey.generate() for silo in SILOS}
    genesis = {"origin": ORIGIN, "vkey": log.signer.vkey, "ca_pins": [spki_pin(ca)]}
    log.log("log.genesis", Target(kind="log", id=ORIGIN), genesis | {"numeric_profile": NUMERIC_PROFILE})
    certificates = {silo: _enrol(log, silo, update_keys[silo], approver_keys[silo]) for silo in SILOS}
    terms = JobTerms(
        file=JobFile(job=Job(name="bench", task="task.py:Task"), silos=Silos(min=4)),
        archive_sha256="a" * 64,
        initial_sha256="b" * 64,
        manifest_sha256="c" * 64,
    )
    _submit(log, terms, approver_keys)
    head, names = 0, _names()
    while log.frontier.size < entries:
        _version(log, terms, head, update_keys, certificates, names)
        head += 1
    log.finish(ca.public_bytes(Encoding.PEM))


def _enrol(log: Writer, silo: str, update: Ed25519PrivateKey, approver: Ed25519PrivateKey) -> list[str]:
    target, expires = Target(kind="silo", id=silo), canonical.utc(START + 3600)
    log.log("silo.invited", target, {"silo": silo, "token_id": f"t-{silo}", "expires": expires}, ADMIN)
    keys = [
        {"purpose": purpose, "public": key.public_key().public_bytes_raw().hex()}
        for purpose, key in (("update", update), ("approver", approver))
    ]
    detail = {"silo": silo, "agent": 0, "token_id": f"t-{silo}", "csr_sha256": "c" * 64, "keys": keys}
    log.log("silo.enrolled", target, detail, _agent(silo))
    digest = canonical.sha256(silo.encode())
    log.log("cert.issued", Target(kind="certificate", id=digest[:40]), _certificate(silo, digest))
    return [digest]


def _certificate(silo: str, digest: str) -> dict[str, Any]:
    return {
        "identity": _agent(silo).id,
        "cert_sha256": digest,
        "spki_sha256": digest,
        "serial": digest[:40],
        "not_before": canonical.utc(START),
        "not_after": canonical.utc(START + 86400),
    }


def _submit(log: Writer, terms: JobTerms, keys: dict[str, Ed25519PrivateKey]) -> None:
    log.write(f"objects/{terms.digest()}", terms.encode())
    target = Target(kind="job", id=JOB, sha256=terms.digest())
    digests = terms.model_dump(include={"archive_sha256", "initial_sha256", "manifest_sha256"})
    detail = {"name": "bench", "terms_sha256": terms.digest(), **digests}
    log.log("job.submitted", target, detail, ADMIN, job=JOB)
    version = {"version": 0, "parameters_sha256": terms.initial_sha256, "bytes": 1000}
    log.log("model.published", Target(kind="model", id=f"{JOB}/0"), version, job=JOB)
    for silo in SILOS:
        statement = statements.DecisionStatement(
            federation=FED,
            job=JOB,
            terms_sha256=terms.digest(),
            decision="approve",
            silo=silo,
            time=canonical.utc(START),
        )
        decision = {"silo": silo, "terms_sha256": terms.digest()}
        sig = log.signed(statement.encode(), keys[silo])
        log.log("job.approved", target, decision, _agent(silo), job=JOB, sigs=[sig])
    log.log("job.started", target, {"silos": list(SILOS)}, job=JOB)


def _version(
    log: Writer,
    terms: JobTerms,
    head: int,
    keys: dict[str, Ed25519PrivateKey],
    certificates: dict[str, list[str]],
    names: Iterator[str],
) -> None:
    """Forty entries: four updates on their leases, a version of them, leases given back, two renewals, failures."""
    inputs = []
    base = _view(terms, head)
    for sequence, silo in enumerate(SILOS):
        lease, nonce = _lease(log, silo, head, base, names)
        inputs.append(
            _update(log, terms, silo, keys[silo], lease, nonce, head, base, 4 * head + sequence, names)
        )
    step, target = next(names), Target(kind="model", id=f"{JOB}/{head + 1}")
    detail = {
        "version": head + 1,
        "base": head,
        "step": step,
        "strategy": "fedbuff",
        "inputs": inputs,
        "scalars": {},
        "optimizer": {"name": "sgd", "lr": canonical.hexfloat(1.0)},
        "absent": [],
        "closed_by": "full",
        "numeric_profile": NUMERIC_PROFILE,
    }
    log.log("aggregation.performed", target, detail, job=JOB)
    published = {"version": head + 1, "parent": head, "parameters_sha256": _view(terms, head + 1)}
    log.log("model.published", target, published | {"bytes": 1000, "step": step}, job=JOB)
    for number in range(IDLE_LEASES):
        silo = SILOS[number % len(SILOS)]
        lease, _ = _lease(log, silo, head + 1, _view(terms, head + 1), names)
        given_back = {"lease": lease, "silo": silo, "reason": "task_failed", "exception": "ValueError"}
        log.log("lease.released", Target(kind="lease", id=lease), given_back, _agent(silo), job=JOB)
    for silo in (SILOS[head % 4], SILOS[(head + 1) % 4]):
        digest = canonical.sha256(next(names).encode())
        detail = _certificate(silo, digest) | {"previous_cert_sha256": certificates[silo][-1]}
        certificates[silo].append(digest)
        log.log("cert.renewed", Target(kind="certificate", id=digest[:40]), detail, _agent(silo))
    for code in ("bad_token", "bad_certificate"):
        failed = {"code": code, "count": 3, "method": "Enrolment/Begin"}
        log.log("auth.failed", Target(kind="server", id="aggregator"), failed)


def _lease(log: Writer, silo: str, version: int, view: str, names: Iterator[str]) -> tuple[str, str]:
    lease, nonce = next(names), next(names)
    detail = {
        "lease": lease,
        "silo": silo,
        "kind": "train",
        "version": version,
        "view_sha256": view,
        "deadline": canonical.utc(START + 600),
        "nonce": nonce,
        "local_steps": 20,
    }
    log.log("lease.issued", Target(kind="lease", id=lease), detail, job=JOB)
    return lease, nonce


def _update(
    log: Writer,
    terms: JobTerms,
    silo: str,
    key: Ed25519PrivateKey,
    lease: str,
    nonce: str,
    head: int,
    base: str,
    sequence: int,
    names: Iterator[str],
) -> dict[str, Any]:
    """Received, and as an aggregation names it."""
    update = next(names)
    delta = canonical.sha256(update.encode())
    if log.frontier.size - log.seen.size > 20:
        log.seen = Checkpoint(ORIGIN, log.frontier.size, log.frontier.root())
    statement = statements.UpdateStatement(
        update=update,
        federation=FED,
        job=JOB,
        lease=lease,
        nonce=nonce,
        sequence=sequence,
        base_version=head,
        base_sha256=base,
        delta_sha256=delta,
        bytes=1000,
        terms_sha256=terms.digest(),
        manifest_sha256=terms.manifest_sha256,
        steps=20,
        release="0.1.0",
        checkpoint=statements.SeenCheckpoint(size=log.seen.size, root=log.seen.root.hex()),
    ).encode()
    one = canonical.hexfloat(1.0)
    detail = {
        "update": update,
        "silo": silo,
        "lease": lease,
        "sequence": sequence,
        "version": head,
        "staleness": 0,
        "bytes": 1000,
        "delta_sha256": delta,
        "statement_sha256": canonical.sha256(statement),
        "norm": one,
    }
    sig, target = log.signed(statement, key), Target(kind="update", id=update, sha256=delta)
    log.log("update.received", target, detail, _agent(silo), job=JOB, sigs=[sig])
    said = {"update": update, "silo": silo, "delta_sha256": delta, "base": head, "staleness": 0}
    return said | {"weight": one, "coefficient": canonical.hexfloat(0.25)}


def _agent(silo: str) -> Actor:
    return Actor(id=f"spiffe://{FED}/silo/{silo}/agent/0", auth="mtls")


def _view(terms: JobTerms, version: int) -> str:
    return canonical.sha256(f"version {version}".encode()) if version else terms.initial_sha256


def _names() -> Iterator[str]:
    """Names as the server draws them, 32 hex digits."""
    number = 0
    while True:
        number += 1
        yield canonical.sha256(str(number).encode())[:32]


def _authority() -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, FED)])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    return (
        builder.serial_number(7)
        .not_valid_before(VALID[0])
        .not_valid_after(VALID[1])
        .sign(key, hashes.SHA256())
    )


def measure(root: Path, profile: bool) -> dict[str, Any]:
    """One verification, by this process and its workers."""
    export = Export(root)
    profiler = cProfile.Profile()
    started, cpu = time.perf_counter(), _cpu()
    if profile:
        profiler.enable()
    report = verify(export, pin(export, None)).report
    if profile:
        profiler.disable()
        pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(35)
    took = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if not report.verified:
        raise SystemExit(f"the synthetic log is not verified: {report.findings[:3]}")
    return {
        "entries": report.size,
        "signatures": report.signatures,
        "seconds": round(took, 2),
        "seconds_per_million": round(took / report.size * 1e6, 1),
        "cpu_seconds": round(_cpu() - cpu, 2),
        "peak_mib": round(peak / 1024),
        "cores": len(os.sched_getaffinity(0)),
    }


def _cpu() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("entries", nargs="*", type=int, default=[20_000, 100_000])
    parser.add_argument("--profile", action="store_true", help="print where the time goes, of this process")
    parser.add_argument("--keep", type=Path, help="directory for the logs, which are used again")
    parser.add_argument("--export", type=Path, help=argparse.SUPPRESS)  # the child's
    given = parser.parse_args()
    if given.export:
        print(json.dumps(measure(given.export, given.profile)))
        return
    place = given.keep or Path(tempfile.mkdtemp(prefix="anabranch-bench-"))
    try:
        for entries in given.entries:
            root = place / str(entries)
            if not (root / "checkpoint").exists():
                shutil.rmtree(root, ignore_errors=True)
                build(root, entries)
            command = [sys.executable, "-m", "benchmarks.verify_log", "--export", str(root)]
            subprocess.run(command + ["--profile"] * given.profile, check=True)
    finally:
        if not given.keep:
            shutil.rmtree(place)


if __name__ == "__main__":
    main()
