"""A log held in memory, and one well-formed detail for every entry type."""

from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from anabranch.tlog.entry import Actor, Entry, Sealed, Sig, Target, new_entry, uuid7
from anabranch.tlog.merkle import Frontier, leaf_hash
from anabranch.tlog.note import NoteSigner, NoteVerifier
from anabranch.wire import canonical

A, B, C = "a" * 64, "b" * 64, "c" * 64
ONE = canonical.hexfloat(1.0)
TIME = "2026-11-20T00:00:00.000000Z"
UPDATE = uuid7(1_795_132_800_000, bytes(10))
VKEY = "audit.fed.example/demo+628442fa+AYqI4910CfGV/VLbLTy6XXLKZwm/HZQSG/N0iAG0D29c"

_SILO = {"silo": "hosp-a"}
_LEASE = {"lease": "lease-1", "silo": "hosp-a"}
_CERT = {
    "identity": "spiffe://fed.example/silo/hosp-a/agent/0",
    "cert_sha256": A,
    "spki_sha256": B,
    "serial": "0f" * 20,
    "not_before": TIME,
    "not_after": "2026-11-21T00:00:00.000000Z",
}
_DECISION = {"silo": "hosp-a", "terms_sha256": A, "revival": True}
_CHANGE = {"reason": "operator asked", "head": 12}

DETAILS: dict[str, dict[str, Any]] = {
    "log.genesis": {
        "origin": "audit.fed.example/demo",
        "vkey": VKEY,
        "ca_pins": [f"sha256:{A}"],
        "numeric_profile": "anabranch-np-1",
    },
    "server.started": {"release": "0.1.0", "epoch": 3, "recovered": {"open_steps": 1, "requeued": 2}},
    "silo.invited": {"silo": "hosp-a", "token_id": "t1", "expires": TIME},
    "silo.enrolled": {
        "silo": "hosp-a",
        "agent": 0,
        "token_id": "t1",
        "csr_sha256": A,
        "keys": [{"purpose": "update", "public": B}, {"purpose": "approver", "public": C}],
    },
    "silo.revoked": {"silo": "hosp-a", "reason": "key_compromise", "certificates": [A], "updates": [UPDATE]},
    "silo.lost": _SILO,
    "silo.returned": _SILO,
    "cert.issued": _CERT,
    "cert.renewed": {**_CERT, "previous_cert_sha256": C},
    "auth.failed": {"code": "bad_certificate", "count": 7, "method": "/anabranch.v1.Updates/Submit"},
    "job.submitted": {
        "name": "digits",
        "terms_sha256": A,
        "archive_sha256": B,
        "initial_sha256": C,
        "manifest_sha256": A,
    },
    "job.approved": _DECISION,
    "job.denied": _DECISION,
    "job.withdrawn": _DECISION,
    "job.started": {"silos": ["hosp-a", "hosp-b"]},
    "job.paused": _CHANGE,
    "job.resumed": _CHANGE,
    "job.aborted": {"reason": "", "head": 0},
    "job.completed": _CHANGE,
    "model.published": {
        "version": 13,
        "parent": 12,
        "parameters_sha256": A,
        "optimizer_sha256": B,
        "ema_sha256": C,
        "bytes": 4096,
        "step": "step-13",
    },
    "model.encoded": {"version": 13, "density": ONE, "encoding": "safetensors", "view_sha256": A, "bytes": 1},
    "model.evaluated": {"version": 13, "silo": "hosp-a", "split": "validation"},
    "model.best": {"version": 13, "metric": "val/accuracy", "value": ONE},
    "model.exported": {"version": 13, "sha256": A, "selector": "best"},
    "lease.issued": {
        **_LEASE,
        "kind": "train",
        "version": 12,
        "view_sha256": A,
        "deadline": TIME,
        "nonce": "0" * 32,
        "local_steps": 20,
    },
    "lease.released": {
        **_LEASE,
        "reason": "task_failed",
        "exception": "ValueError",
        "code_line": "task.py:41",
    },
    "update.received": {
        **_LEASE,
        "update": UPDATE,
        "sequence": 4,
        "version": 12,
        "staleness": 0,
        "bytes": 4096,
        "delta_sha256": A,
        "statement_sha256": B,
        "norm": ONE,
        "privacy": {
            "unit": "subject",
            "sample_rate": ONE,
            "noise_multiplier": ONE,
            "max_grad_norm": ONE,
            "steps": 20,
            "delta": ONE,
            "cycles": 3,
            "ledger_head": A,
        },
    },
    "update.refused": {**_LEASE, "update": UPDATE, "code": "nonfinite", "delta_sha256": A},
    "update.retired": {"update": UPDATE, "silo": "hosp-a", "reason": "job_ended"},
    "revival.performed": {
        "revival": "r-1",
        "version": 12,
        "delta_sha256": A,
        "norm": ONE,
        "teachers": [{"silo": "hosp-a", "update": UPDATE}],
        "seed": 7,
        "device": "cuda",
        "libraries": {"torch": "2.13.0+cpu"},
        "seconds": ONE,
        "effect": {"agreement_before": ONE, "agreement_after": ONE},
    },
    "revival.skipped": {"revival": "r-1", "version": 12, "reason": "failed", "why": "OutOfMemoryError"},
    "retention.pruned": {
        "kind": "snapshots",
        "rule": "snapshots",
        "seconds": 604800,
        "versions": [{"first": 1, "last": 4}, {"first": 6, "last": 6}],
    },
    "aggregation.performed": {
        "version": 13,
        "base": 12,
        "step": "step-13",
        "strategy": "fedbuff",
        "inputs": [
            {
                "update": UPDATE,
                "silo": "hosp-a",
                "delta_sha256": A,
                "base": 12,
                "staleness": 0,
                "weight": ONE,
                "coefficient": ONE,
                "arrived": 3,
                "windows": 4,
            }
        ],
        "further": [{"version": 3, "coefficient": ONE}, {"update": UPDATE, "coefficient": ONE}],
        "participants": ["hosp-a", "hosp-b"],
        "revival": "r-1",
        "scalars": {"beta1_power": ONE},
        "optimizer": {"name": "adam", "lr": ONE, "beta1": ONE},
        "absent": ["hosp-b"],
        "closed_by": "max_wait",
        "numeric_profile": "anabranch-np-1",
    },
}


class MemoryLog:
    """Every complete node of a growing tree."""

    def __init__(self) -> None:
        self.frontier = Frontier()
        self.nodes: dict[tuple[int, int], bytes] = {}
        self.roots: list[bytes] = [self.frontier.root()]

    def append(self, data: bytes) -> None:
        for level, index, value in self.frontier.append(leaf_hash(data)):
            assert (level, index) not in self.nodes
            self.nodes[level, index] = value
        self.roots.append(self.frontier.root())

    def node(self, level: int, index: int) -> bytes:
        return self.nodes[level, index]


@pytest.fixture(scope="session")
def new_log() -> Callable[..., MemoryLog]:
    def build(*entries: bytes) -> MemoryLog:
        log = MemoryLog()
        for data in entries:
            log.append(data)
        return log

    return build


@pytest.fixture(scope="session")
def log256(new_log: Callable[..., MemoryLog]) -> MemoryLog:
    return new_log(*(str(i).encode() for i in range(256)))


@pytest.fixture(scope="session")
def signer() -> NoteSigner:
    return NoteSigner("audit.fed.example/demo", Ed25519PrivateKey.from_private_bytes(b"\x01" * 32))


@pytest.fixture(scope="session")
def verifier(signer: NoteSigner) -> NoteVerifier:
    return NoteVerifier.from_vkey(signer.vkey)


@pytest.fixture(scope="session")
def details() -> dict[str, dict[str, Any]]:
    """Entry type → a well-formed detail."""
    return DETAILS


@pytest.fixture(scope="session")
def make_entry() -> Callable[..., Entry]:
    """A well-formed entry of a type; keyword arguments replace what it is made from."""

    def make(type: str, **changes: Any) -> Entry:
        arguments: dict[str, Any] = {
            "id": UPDATE,
            "time": TIME,
            "fed": "fed.example",
            "observer": "spiffe://fed.example/aggregator/0",
            "actor": Actor(id="spiffe://fed.example/silo/hosp-a/agent/0", auth="mtls", cert_sha256=A),
            "target": Target(kind="update", id=UPDATE, sha256=A),
            "job": "digits",
            "detail": DETAILS.get(type, {}),
            "sealed": Sealed(commit=A, fields=("metrics", "num_examples")),
            "sigs": (
                Sig(
                    keyid=A,
                    payloadType="application/vnd.in-toto+json",
                    sig="A" * 85 + "w==",
                    payload_sha256=B,
                ),
            ),
        }
        return new_entry(type, **{**arguments, **changes})

    return make
