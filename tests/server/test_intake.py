"""Every way an update can be wrong: a reason code for the silo, an entry for the reviewer, nothing lost."""

import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import select

from anabranch.errors import Reason, Refused
from anabranch.tlog.entry import parse_entry
from anabranch.wire import canonical, dsse, statements
from anabranch.wire.tensors import Manifest, TensorSpec, write_tensors
from server.intake import Upload
from server.state import tables
from tests.server.harness import MANIFEST, FakeSilo, Server

ONE = "[aggregation]\nbuffer = 1\nmax_staleness = 2\nmax_update_norm = 1000.0\n"


@pytest.fixture
def silo(server: Server) -> FakeSilo:
    return server.enrol("hospital-a")


@pytest.fixture
def job(server: Server, silo: FakeSilo) -> tuple[str, object]:
    job, terms = server.submit(ONE)
    server.decide(silo, job, terms)
    return job, terms


def last_entry(server: Server) -> object:
    with server.core.reader.connect() as connection:
        query = select(tables.entries.c.data).order_by(tables.entries.c.index.desc()).limit(1)
        return parse_entry(bytes(connection.execute(query).scalar_one()))


def safetensors(header: dict[str, object] | bytes, data: bytes) -> bytes:
    text = (
        header
        if isinstance(header, bytes)
        else json.dumps(header, separators=(",", ":"), sort_keys=True).encode()
    )
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def with_values(path: Path, fill: Callable[[np.ndarray], None], manifest: Manifest = MANIFEST) -> bytes:
    arrays = {s.name: np.ones(s.shape, np.float32) for s in manifest.specs}
    fill(arrays["layer.weight"])
    write_tensors(path, manifest, arrays)
    return path.read_bytes()


def nan(array: np.ndarray) -> None:
    array[1, 1] = np.nan


def huge(array: np.ndarray) -> None:
    array[:] = 1e6


def other_shape(path: Path) -> bytes:
    specs = (TensorSpec("layer.bias", (3,), "trainable"), TensorSpec("layer.weight", (3, 4), "trainable"))
    write_tensors(path, Manifest(specs), {s.name: np.ones(s.shape, np.float32) for s in specs})
    return path.read_bytes()


def other_names(path: Path) -> bytes:
    specs = (TensorSpec("layer.bias", (3,), "trainable"), TensorSpec("layer.weighs", (4, 3), "trainable"))
    write_tensors(path, Manifest(specs), {s.name: np.ones(s.shape, np.float32) for s in specs})
    return path.read_bytes()


def half_precision(path: Path) -> bytes:
    good = with_values(path, lambda array: None)
    return good.replace(b'"F32"', b'"I32"')


def declared_gigabyte(path: Path) -> bytes:
    good = with_values(path, lambda array: None)
    return struct.pack("<Q", 1 << 30) + good[8:]


BAD_CONTENT = {
    "nan": (lambda path: with_values(path, nan), Reason.NONFINITE),
    "norm": (lambda path: with_values(path, huge), Reason.NORM_EXCEEDED),
    "shape": (other_shape, Reason.SHAPE_MISMATCH),
    "names": (other_names, Reason.NAME_MISMATCH),
    "dtype": (half_precision, Reason.DTYPE_MISMATCH),
    "one gigabyte of header declared": (declared_gigabyte, Reason.SIZE_LIMIT),
}


@pytest.mark.parametrize("fault", BAD_CONTENT)
def test_bad_content(fault: str, server: Server, silo: FakeSilo, job: tuple, tmp_path: Path) -> None:
    make, code = BAD_CONTENT[fault]
    name, terms = job
    data = make(tmp_path / "delta")
    lease = server.lease(silo, name)
    statement = silo.statement(lease, terms, _file(tmp_path, data))
    tracemalloc.start()
    decided = server.upload(silo, statement, data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert decided.reason == code
    assert peak < 64 << 20
    entry = last_entry(server)
    assert (entry.type, entry.outcome.reason, entry.detail.silo) == ("update.refused", code, "hospital-a")
    # The same id gets the same answer; a good update afterwards is admitted.
    assert server.core.intake.status("hospital-a", statement.update).decided.reason == code
    assert server.send(silo, name, terms, 1.0).reason == ""


def _file(directory: Path, data: bytes) -> Path:
    path = directory / "sent"
    path.write_bytes(data)
    return path


BAD_STATEMENTS = {
    "another base": ({"base_version": 7}, Reason.UNKNOWN_BASE),
    "another base digest": ({"base_sha256": "1" * 64}, Reason.UNKNOWN_BASE),
    "another nonce": ({"nonce": "0" * 32}, Reason.BAD_LEASE),
    "another lease": ({"lease": "f" * 32}, Reason.BAD_LEASE),
    "another job": ({"job": "nobody-knows"}, Reason.BAD_LEASE),
    "other terms": ({"terms_sha256": "2" * 64}, Reason.CODE_DIGEST_MISMATCH),
    "another federation": ({"federation": "elsewhere.test"}, Reason.BAD_SIGNATURE),
    "another size": ({"bytes": 10}, Reason.SIZE_LIMIT),
    "a record count nobody asked for": ({"num_examples": 5}, Reason.MALFORMED),
}


@pytest.mark.parametrize("fault", BAD_STATEMENTS)
def test_bad_statement(fault: str, server: Server, silo: FakeSilo, job: tuple, tmp_path: Path) -> None:
    changes, code = BAD_STATEMENTS[fault]
    name, terms = job
    delta = silo.delta(tmp_path, 1.0)
    statement = silo.statement(server.lease(silo, name), terms, delta, **changes)
    assert server.upload(silo, statement, delta.read_bytes()).reason == code
    assert last_entry(server).type == "update.refused"
    again = silo.statement(server.lease(silo, name), terms, delta, update="second")
    assert server.upload(silo, again, delta.read_bytes()).reason == ""


def test_wrong_signer_is_refused_before_anything_is_stored(
    server: Server, silo: FakeSilo, job: tuple, tmp_path: Path
) -> None:
    name, terms = job
    delta = silo.delta(tmp_path, 1.0)
    statement = silo.statement(server.lease(silo, name), terms, delta)
    forged = dsse.sign(statements.PAYLOAD_TYPE, statement.encode(), Ed25519PrivateKey.generate()).encode()
    with pytest.raises(Refused) as refusal:
        server.core.intake.open("hospital-a", silo.actor, statement.update, forged, 0)
    assert refusal.value.code is Reason.BAD_SIGNATURE
    assert not list(server.core.blobs.spooled())


def test_replayed_lease_and_stolen_update_id(
    server: Server, silo: FakeSilo, job: tuple, tmp_path: Path
) -> None:
    name, terms = job
    other = server.enrol("hospital-b")
    server.decide(other, name, terms)
    delta = silo.delta(tmp_path, 1.0)
    lease = server.lease(silo, name)
    first = silo.statement(lease, terms, delta)
    receipt = server.upload(silo, first, delta.read_bytes()).receipt
    assert server.upload(silo, first, delta.read_bytes()).receipt.index == receipt.index
    replayed = silo.statement(lease, terms, delta, update="another-id")
    assert server.upload(silo, replayed, delta.read_bytes()).reason == Reason.REPLAYED
    stolen = other.statement(server.lease(other, name), terms, delta, update=first.update)
    with pytest.raises(Refused, match="belongs to another silo"):
        server.upload(other, stolen, delta.read_bytes())
    with pytest.raises(Refused, match="belongs to another silo"):
        server.core.intake.status("hospital-b", first.update)


def test_another_silos_lease(server: Server, silo: FakeSilo, job: tuple, tmp_path: Path) -> None:
    name, terms = job
    other = server.enrol("hospital-b")
    server.decide(other, name, terms)
    delta = silo.delta(tmp_path, 1.0)
    mine = server.lease(silo, name)
    theirs = other.statement(mine, terms, delta, update="theirs")
    assert server.upload(other, theirs, delta.read_bytes()).reason == Reason.BAD_LEASE
    assert server.lease(silo, name).id == mine.id  # still open, still this silo's


def test_truncated_and_changed_bytes(server: Server, silo: FakeSilo, job: tuple, tmp_path: Path) -> None:
    name, terms = job
    data = silo.delta(tmp_path, 1.0).read_bytes()
    statement = silo.statement(server.lease(silo, name), terms, tmp_path / "hospital-a-1.0.safetensors")
    assert server.upload(silo, statement, data[:-4]).reason == Reason.SIZE_LIMIT
    statement = silo.statement(server.lease(silo, name), terms, tmp_path / "hospital-a-1.0.safetensors")
    flipped = data[:-1] + bytes([data[-1] ^ 1])
    assert server.upload(silo, statement, flipped).reason == Reason.DIGEST_MISMATCH


def test_too_stale(server: Server, silo: FakeSilo, job: tuple, tmp_path: Path) -> None:
    name, terms = job
    slow = server.enrol("hospital-slow")
    server.decide(slow, name, terms)
    old = server.lease(slow, name)
    for value in (1.0, 2.0, 3.0):
        server.send(silo, name, terms, value)
        assert server.core.aggregation.advance(name)
    delta = slow.delta(tmp_path, 1.0)
    assert (
        server.upload(slow, slow.statement(old, terms, delta), delta.read_bytes()).reason == Reason.TOO_STALE
    )


def test_resume_after_the_server_died_in_mid_upload(server: Server, silo: FakeSilo, tmp_path: Path) -> None:
    """20 MiB in two streams, a restart between them: only what was not synced is sent again."""
    big = Manifest((TensorSpec("layer.weight", (1280, 4096), "trainable"),))
    name, terms = server.submit(ONE.replace("1000.0", "1e9"), big)
    server.decide(silo, name, terms)
    delta = silo.delta(tmp_path, 1.0, big)
    data = delta.read_bytes()
    statement = silo.statement(server.lease(silo, name), terms, delta)
    envelope = silo.sign(statement.encode())
    upload = server.core.intake.open("hospital-a", silo.actor, statement.update, envelope, 0)
    assert isinstance(upload, Upload)
    for start in range(0, 18 << 20, 1 << 20):
        upload.append(data[start : start + (1 << 20)])
    # the process dies here: the upload object is simply gone
    server.core.close()
    server.core = server._open()
    synced = server.core.intake.status("hospital-a", statement.update).synced
    assert 16 << 20 <= synced <= 18 << 20
    resumed = server.core.intake.open("hospital-a", silo.actor, statement.update, envelope, synced)
    assert isinstance(resumed, Upload)
    resumed.append(data[synced:])
    assert resumed.finish().reason == ""
    assert canonical.sha256(server.core.blobs.read(statement.delta_sha256)) == statement.delta_sha256


def test_a_damaged_prefix_is_sent_again_once(
    server: Server, silo: FakeSilo, job: tuple, tmp_path: Path
) -> None:
    """What an earlier stream left may be at fault, so the first mismatch after a resume is not the silo's."""
    name, terms = job
    delta = silo.delta(tmp_path, 1.0)
    data = delta.read_bytes()
    statement = silo.statement(server.lease(silo, name), terms, delta)
    envelope = silo.sign(statement.encode())
    upload = server.core.intake.open("hospital-a", silo.actor, statement.update, envelope, 0)
    assert isinstance(upload, Upload)
    upload.append(data[:-8])
    upload.suspend()
    with open(upload.file.path, "r+b") as spooled:
        spooled.seek(len(data) - 12)
        spooled.write(b"\xff")
    synced = server.core.intake.status("hospital-a", statement.update).synced
    resumed = server.core.intake.open("hospital-a", silo.actor, statement.update, envelope, synced)
    assert isinstance(resumed, Upload)
    resumed.append(data[synced:])
    with pytest.raises(Refused, match="send it from 0"):
        resumed.finish()
    assert server.core.intake.status("hospital-a", statement.update).synced == 0
    assert server.upload(silo, statement, data).reason == ""
