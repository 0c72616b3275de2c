"""An export is written only when every byte is the one the log names; the replies here are a lying server's."""

import hashlib
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from demo_log import FED, JOB, SERVER

from anabranch.errors import Refused, Unavailable
from anabranch.terms import JobTerms, parse_job_file
from anabranch.tlog.checkpoint import Checkpoint, sign
from anabranch.tlog.entry import Actor, Target, encode_entry, new_entry, uuid7
from anabranch.tlog.merkle import leaf_hash
from anabranch.tlog.note import NoteSigner
from anabranch.tlog.receipt import Receipt
from anabranch.v1 import admin_pb2
from anabranch.wire import codec
from anabranch.wire.canonical import utc
from console.client import Admin
from console.export import export

MODEL = bytes(range(256)) * 8000
DIGEST = hashlib.sha256(MODEL).hexdigest()
SIGNER = NoteSigner(f"{FED}/log", Ed25519PrivateKey.generate())


def receipt(digest: str = DIGEST, signer: NoteSigner = SIGNER):
    entry = new_entry(
        "model.exported",
        id=uuid7(0, bytes(10)),
        time=utc(0.0),
        fed=FED,
        observer=SERVER,
        actor=Actor(id=SERVER, auth="local"),
        target=Target(kind="model", id=f"{JOB}/3"),
        detail={"version": 3, "sha256": digest, "selector": "head"},
        job=JOB,
    )
    data = encode_entry(entry)
    checkpoint = sign(Checkpoint(f"{FED}/log", 1, leaf_hash(data)), signer)
    return codec.receipt_to_proto(Receipt(data, 0, (), checkpoint))


FILE = parse_job_file('[job]\nname = "digits"\ntask = "task.py:Task"\n')
TERMS = JobTerms(
    file=FILE, archive_sha256="a" * 64, initial_sha256="b" * 64, manifest_sha256="c" * 64
).encode()


def admin(replies) -> Admin:
    pinned = SimpleNamespace(log_vkey=SIGNER.vkey, log_origin=f"{FED}/log")
    return Admin(pinned, SimpleNamespace(ExportModel=lambda request, timeout: iter(replies)))


def replies(model: bytes = MODEL, *, digest: str = DIGEST, size: int = len(MODEL), proof=None):
    header = admin_pb2.ExportModelHeader(
        version=3, digest=digest, bytes=size, card=b"# digits\n", receipt=proof or receipt(), terms=TERMS
    )
    yield admin_pb2.ExportModelReply(header=header)
    for start in range(0, len(model), 1 << 20):
        yield admin_pb2.ExportModelReply(chunk=model[start : start + (1 << 20)])


def test_the_model_and_its_card_are_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "model.safetensors"
    done = export(admin(replies()), JOB, "head", path)
    assert path.read_bytes() == MODEL
    assert (done.version, done.sha256, done.bytes) == (3, DIGEST, len(MODEL))
    assert (tmp_path / "new" / "model.md").read_text() == "# digits\n"
    export(admin(replies()), JOB, "head", path)
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.md", "model.safetensors"]


@pytest.mark.parametrize(
    "lie",
    [
        {"model": MODEL[:-1] + b"x"},
        {"model": MODEL[:-1]},
        {"model": MODEL + b"x"},
        {"digest": "0" * 64},
        {"proof": receipt(digest="0" * 64)},
        {"proof": receipt(signer=NoteSigner(f"{FED}/log", Ed25519PrivateKey.generate()))},
    ],
    ids=["altered", "short", "long", "announced otherwise", "logged otherwise", "not signed by the log"],
)
def test_a_lie_writes_nothing(tmp_path: Path, lie: dict) -> None:
    with pytest.raises(Refused):
        export(admin(replies(**lie)), JOB, "head", tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_cannot_be_written_is_refused_before_anything_is_exported(tmp_path: Path) -> None:
    asked: list[object] = []
    stub = SimpleNamespace(ExportModel=lambda request, timeout: asked.append(request))
    for path in (tmp_path, tmp_path / "model.md"):
        with pytest.raises(Refused, match="-o"):
            export(Admin(SimpleNamespace(), stub), JOB, "head", path)
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match="cannot be written"):
        export(Admin(SimpleNamespace(), stub), JOB, "head", tmp_path / "file" / "model.safetensors")
    assert not asked
