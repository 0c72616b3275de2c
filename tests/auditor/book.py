"""The paper a story is written on: an audit log with its objects and tiles, in the real formats."""

import base64
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from anabranch.rules.profile import NUMERIC_PROFILE
from anabranch.tlog import tiles
from anabranch.tlog.checkpoint import Checkpoint, sign
from anabranch.tlog.entry import Actor, Sig, Target, encode_entry, new_entry, uuid7
from anabranch.tlog.merkle import Frontier, inclusion_proof, leaf_hash
from anabranch.tlog.note import NoteSigner
from anabranch.wire import canonical, dsse, statements
from anabranch.wire.identity import spki_pin
from anabranch.wire.tensors import TensorWriter

FED = "fed.example"
ORIGIN = "audit.fed.example/demo"
SERVER = Actor(id=f"spiffe://{FED}/aggregator/0", auth="local")
ADMIN = Actor(id=f"spiffe://{FED}/admin/owner", auth="mtls")
START = 1_790_000_000.0


def key(seed: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)


def authority() -> x509.Certificate:
    """A self-signed root; only its form and its pin matter here."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, FED)])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(private.public_key())
    builder = builder.serial_number(7).not_valid_before(datetime(2026, 1, 1, tzinfo=UTC))
    return builder.not_valid_after(datetime(2036, 1, 1, tzinfo=UTC)).sign(private, hashes.SHA256())


ROOT = authority()


@dataclass
class Book:
    """Appends entries and keeps objects. `write` adds what makes it an export."""

    directory: Path
    log_key: Ed25519PrivateKey = field(default_factory=lambda: key(1))
    entries: list[bytes] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # the checkpoint after each entry
    frontier: Frontier = field(default_factory=Frontier)
    skipped: float = 0.0  # seconds in which nothing happened

    def __post_init__(self) -> None:
        (self.directory / "objects").mkdir(parents=True)
        self.signer = NoteSigner(ORIGIN, self.log_key)
        self.log(
            "log.genesis",
            Target(kind="log", id=ORIGIN),
            {
                "origin": ORIGIN,
                "vkey": self.signer.vkey,
                "ca_pins": [spki_pin(ROOT)],
                "numeric_profile": NUMERIC_PROFILE,
            },
        )

    def log(
        self, type: str, target: Target, detail: dict[str, Any], *, actor: Actor = SERVER, **more: Any
    ) -> int:
        now = START + len(self.entries) + self.skipped
        entry = new_entry(
            type,
            id=uuid7(int(now * 1000), len(self.entries).to_bytes(10)),
            time=canonical.utc(now),
            fed=FED,
            observer=SERVER.id,
            actor=actor,
            target=target,
            detail=detail,
            **more,
        )
        return self.append(encode_entry(entry))

    def append(self, data: bytes) -> int:
        self.entries.append(data)
        self.frontier.append(leaf_hash(data))
        self.notes.append(sign(Checkpoint(ORIGIN, self.frontier.size, self.frontier.root()), self.signer))
        return len(self.entries) - 1

    def rebuild(self) -> None:
        """Sign the log anew after its entries were changed."""
        entries, self.frontier = list(self.entries), Frontier()
        self.entries.clear()
        self.notes.clear()
        for entry in entries:
            self.append(entry)

    def keep(self, data: bytes) -> str:
        digest = canonical.sha256(data)
        (self.directory / "objects" / digest).write_bytes(data)
        return digest

    def path(self, digest: str) -> Path:
        return self.directory / "objects" / digest

    def adopt(self, writer: TensorWriter) -> str:
        digest = writer.close()
        writer.path.rename(self.path(digest))
        return digest

    def signed(self, payload: bytes, private: Ed25519PrivateKey) -> Sig:
        self.keep(payload)
        envelope = dsse.sign(statements.PAYLOAD_TYPE, payload, private)
        return Sig(
            keyid=envelope.signatures[0].keyid,
            payloadType=envelope.payload_type,
            sig=base64.b64encode(envelope.signatures[0].sig).decode(),
            payload_sha256=canonical.sha256(payload),
        )

    def write(self) -> Path:
        """The rest of the export; returns its directory."""
        hashes_of: dict[tuple[int, int], bytes] = {}
        frontier = Frontier()
        for entry in self.entries:
            hashes_of |= {(lvl, at): value for lvl, at, value in frontier.append(leaf_hash(entry))}
        files = {
            tile.path: tile.data(lambda lvl, at: hashes_of[lvl, at])
            for tile in tiles.tiles(len(self.entries))
        }
        for index, width in tiles.bundles(len(self.entries)):
            some = self.entries[index * tiles.WIDTH : index * tiles.WIDTH + width]
            files[tiles.entries_path(index, width)] = tiles.encode_bundle(some)
        files["checkpoint"] = self.notes[-1].encode()
        files["keys/log.vkey"] = self.signer.vkey.encode() + b"\n"
        files["keys/ca.pem"] = ROOT.public_bytes(Encoding.PEM)
        for name, data in files.items():
            path = self.directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        self.nodes = hashes_of
        return self.directory

    def receipt(self, index: int, size: int | None = None) -> dict[str, Any]:
        """As a silo keeps it; call after `write`."""
        size = size or len(self.entries)
        proof = inclusion_proof(index, size, lambda lvl, at: self.nodes[lvl, at])
        return {
            "entry": base64.b64encode(self.entries[index]).decode(),
            "index": index,
            "proof": [base64.b64encode(one).decode() for one in proof],
            "checkpoint": self.notes[size - 1],
        }
