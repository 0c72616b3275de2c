"""A disk that is full or read-only under what runs: said in words, waited for, and nothing acknowledged is lost."""

import errno
import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from anabranch.errors import Unavailable
from anabranch.v1 import admin_pb2, federation_pb2, update_pb2
from anabranch.wire.tensors import write_tensors
from tests.e2e.federation import Federation
from tests.hostility.fault import READ_ONLY, make_fault
from tests.hostility.target import CALL_SECONDS, MANIFEST, MIB, Target, answer, met, tensors
from tests.server.at_work import Sending

SMALL = 160 * MIB  # above the headroom that the server keeps for its log


@contextmanager
def small_disk(path: Path) -> Iterator[None]:
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "none", str(path)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(path: Path) -> Path:
    """To the last byte."""
    filler = path / "filler"
    with open(filler, "wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert os.statvfs(path).f_bavail == 0
    return filler


def ready(target: Target, name: str) -> Sending:
    """An update of the open lease, signed."""
    lease, path = target.lease(name), target.federation.root / f"{name}.delta"
    write_tensors(path, MANIFEST, tensors(0.5))
    update = hashlib.sha256(lease.id.encode()).hexdigest()[:32]
    return Sending(update, target.envelope(name, lease, update, path.read_bytes()), path.read_bytes())


def what_a_server_without_a_disk_owes(target: Target, break_it: object, mend: object) -> None:
    """Reads go on; writes are refused in words that say whose disk it is; afterwards the same messages succeed."""
    assert callable(break_it)
    assert callable(mend)
    before, after = ready(target, "honest"), ready(target, "mallory")
    honest, mallory = target.members["honest"], target.members["mallory"]
    first = answer(lambda: honest.updates.Submit(before.whole(), timeout=CALL_SECONDS))
    assert first.reason == ""
    break_it()
    target.honest_call()
    with pytest.raises(Unavailable, match=r"server.*(disk|store|state)"):
        answer(lambda: mallory.updates.Submit(after.whole(), timeout=CALL_SECONDS))
    outcomes = {
        met(
            lambda n=n: target.admin.admin.InviteSilo(
                admin_pb2.InviteSiloRequest(silo=f"s{n}"), timeout=CALL_SECONDS
            )
        )
        for n in range(40)  # a journal may have room for a few
    }
    assert "unavailable" in outcomes
    assert outcomes <= {"unavailable", "ok"}
    assert target.federation.processes["server"].poll() is None
    mend()
    again = answer(lambda: honest.updates.Submit(before.whole(), timeout=CALL_SECONDS))
    assert again.receipt.entry == first.receipt.entry
    status = update_pb2.UploadStatusRequest(update=after.id)
    offset = answer(lambda: mallory.updates.UploadStatus(status, timeout=CALL_SECONDS)).synced
    rest = iter([after.header(offset), *after.chunks(offset)])
    assert answer(lambda: mallory.updates.Submit(rest, timeout=CALL_SECONDS)).reason == ""
    request = federation_pb2.NextTaskRequest(jobs=[target.job])
    assert answer(lambda: mallory.federation.NextTask(request, timeout=CALL_SECONDS))
    assert not target.said(event="writer failed")
    assert not target.said(event="a call met a bug")
    out = target.federation.root / "export"
    target.federation.call("anabranch-server", "export", target.federation.server_dir, "-o", out)
    target.federation.call("anabranch-audit", "verify", out, "--vkey", out / "keys/log.vkey")


@pytest.mark.soak
def test_a_full_disk_under_a_running_server(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    with small_disk(federation.server_dir):
        target = Target(federation).create()
        try:
            fillers: list[Path] = []
            what_a_server_without_a_disk_owes(
                target,
                lambda: fillers.append(fill(federation.server_dir)),
                lambda: fillers[0].unlink(),
            )
        finally:
            target.close()


def test_a_disk_that_becomes_read_only_under_a_running_server(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    fault = make_fault(tmp_path, "server", federation.server_dir)
    federation.create()
    federation.kill("server")
    federation.start("server", "anabranch-server", "serve", federation.server_dir, env=fault.environment())
    federation.until(federation.ready, "the server is ready")
    target = Target(federation).join()
    try:
        what_a_server_without_a_disk_owes(target, lambda: fault.set(error=READ_ONLY), fault.set)
    finally:
        fault.set()
        target.close()


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("error", [READ_ONLY, errno.ENOSPC])
def test_a_disk_that_takes_nothing_under_a_running_agent(tmp_path: Path, error: int) -> None:
    """The agent says so, stays, and goes on by itself; what it had signed is merged once."""
    federation = Federation(tmp_path)
    federation.create()
    try:
        federation.enrol("hospital-a", pause=0.1)
        fault = make_fault(tmp_path, "silo", federation.silo_dir("hospital-a"))
        job = federation.submit(versions=8, steps=10)
        federation.approve("hospital-a", job)
        federation.agent("hospital-a", env=fault.environment())
        federation.until(lambda: federation.status(job)["head"] >= 1, "the first version")
        fault.set(error=error)
        log = federation.root / "hospital-a.log"
        federation.until(lambda: os.strerror(error) in log.read_text(), "the agent says what is wrong")
        assert federation.processes["hospital-a"].poll() is None
        fault.set()
        assert federation.finish(job)["head"] == 8
        assert federation.processes["hospital-a"].poll() is None
        federation.verified()
        received = [entry["detail"]["lease"] for entry in federation.entries("update.received")]
        assert len(received) == len(set(received))
    finally:
        fault.set()
        federation.close()
