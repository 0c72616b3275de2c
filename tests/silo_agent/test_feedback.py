"""What updates left out is charged once for each accepted update and for no other, wherever the agent is killed."""

import os
import shutil
import stat
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anabranch import durable
from anabranch.errors import Corrupt, Reason, Refused
from anabranch.link import Packing
from anabranch.rules.packing import BLOCK
from anabranch.tlog.entry import Target
from anabranch.wire import canonical, dsse, identity, limits, statements
from anabranch.wire.manifest import Manifest, TensorSpec
from anabranch.wire.packed import PackedFile
from anabranch.wire.tensors import TensorWriter, read_tensors, write_tensors
from silo_agent import receipts
from silo_agent.approval import describe
from silo_agent.config import Home
from silo_agent.feedback import REMAINDER, Feedback
from silo_agent.messages import Decided
from silo_agent.outbox import Outbox, Pending
from silo_agent.submit import Sender
from tests.silo_agent.services import signature
from tests.silo_agent.test_models import proposal, terms
from tests.silo_agent.test_receipts import view_of
from tests.silo_agent.world import SILO, MemoryLog

KEY = identity.new_signing_key()
JOB = "tiny-1"
MANIFEST = Manifest(
    (
        TensorSpec("b", (5,), "trainable"),
        TensorSpec("running", (3,), "buffer"),
        TensorSpec("w", (40, 20), "trainable"),
    )
)
PACKING = Packing(1 / 16, "int2", 64)
Arrays = dict[str, Any]


def delta(number: int) -> Arrays:
    chance = np.random.default_rng(number)
    return {spec.name: chance.standard_normal(spec.shape, np.float32) for spec in MANIFEST.specs}


class Killed(BaseException):
    pass


@dataclass
class Server:
    """Takes updates as a server does: the first word about one is the last. Refuses those of the lease `bad`."""

    log: MemoryLog = field(default_factory=MemoryLog)
    decided: dict[str, Decided] = field(default_factory=dict)
    sent: dict[str, bytes] = field(default_factory=dict)  # lease → the accepted update
    wont_take: bool = False

    def upload_status(self, update: str, seen: int) -> tuple[int, Decided | None]:
        return 0, self.decided.get(update)

    def submit(
        self, update: str, envelope: bytes, offset: int, chunks: Any, seen: int, packed: bool
    ) -> Decided:
        data, payload = b"".join(chunks), dsse.parse_envelope(envelope).payload
        statement, sigs = statements.parse_update(payload), [signature(dsse.parse_envelope(envelope))]
        assert packed
        assert canonical.sha256(data) == statement.delta_sha256
        if self.wont_take:
            raise Refused(Reason.BAD_LEASE, "no such lease")
        reason = Reason.NORM_EXCEEDED if statement.lease == "bad" else ""
        if statement.lease in self.sent:
            reason = Reason.BAD_LEASE
        detail: dict[str, Any] = {"update": update, "silo": SILO, "lease": statement.lease}
        if reason:
            detail["code"] = reason
        else:
            self.sent[statement.lease] = data
            detail |= {
                "sequence": statement.sequence,
                "version": 0,
                "staleness": 0,
                "bytes": len(data),
                "delta_sha256": statement.delta_sha256,
                "statement_sha256": canonical.sha256(payload),
                "norm": canonical.hexfloat(1.0),
            }
        kind = "update.refused" if reason else "update.received"
        receipt = self.log.append(kind, detail, Target(kind="update", id=update), job=JOB, sigs=sigs)
        self.decided[update] = Decided(receipt, reason)
        return self.decided[update]

    def total(self, folder: Path) -> Arrays:
        """The sum of what was accepted, as it is read."""
        found = {spec.name: np.zeros(spec.shape) for spec in MANIFEST.specs}
        for data in self.sent.values():
            (folder / "read").write_bytes(data)
            with PackedFile(folder / "read", MANIFEST, PACKING.values) as file:
                for spec in MANIFEST.specs:
                    out = np.empty(spec.elements, np.float32)
                    file.read(spec.name, 0, spec.elements, out)
                    found[spec.name] += out.reshape(spec.shape)
        return found


@dataclass
class Silo:
    """An agent's hands without its loop; a new one is a new process."""

    path: Path
    server: Server
    names: count = field(default_factory=count)

    def __post_init__(self) -> None:
        self.home = Home(self.path)
        durable.make_dir(self.folder)
        self.box = Outbox(self.home.outbox)

    @property
    def folder(self) -> Path:
        return self.home.job(JOB)

    @property
    def remainder(self) -> Arrays | None:
        path = self.folder / REMAINDER
        return read_tensors(path, Manifest(MANIFEST.trainable())) if path.exists() else None

    @property
    def sender(self) -> Sender:
        client: Any = self.server
        return Sender(self.home, SILO, client, view_of(self.server.log, self.path), self.box)

    def make(self, lease: str, arrays: Arrays, decay: float = 1.0) -> Pending:
        update = f"{lease}-{next(self.names)}"
        write_tensors(self.path / "made", MANIFEST, arrays)
        made = self.box.adopt(update, self.path / "made", MANIFEST.file_bytes)
        made = self.box.pack(made, MANIFEST, PACKING, Feedback(self.folder, decay))
        statement = statements.UpdateStatement(
            update=update,
            federation="fed.example",
            job=JOB,
            lease=lease,
            nonce="00" * 16,
            sequence=int(lease[1:]) if lease != "bad" else 50,
            base_version=0,
            base_sha256="0" * 64,
            delta_sha256=made.sha256,
            bytes=made.bytes,
            terms_sha256="1" * 64,
            manifest_sha256="2" * 64,
            steps=4,
            release="0.1.0",
            checkpoint=statements.SeenCheckpoint(size=1, root="3" * 64),
        )
        return self.box.put(dsse.sign(statements.PAYLOAD_TYPE, statement.encode(), KEY).encode())

    def flush(self) -> None:
        for pending in self.box.pending(JOB):
            self.sender.deliver(pending)


@pytest.fixture
def silo(tmp_path: Path) -> Silo:
    return Silo(tmp_path / "silo", Server())


def test_what_was_sent_and_what_is_left_is_all_there_was(silo: Silo, tmp_path: Path) -> None:
    for number in range(5):
        assert silo.sender.deliver(silo.make(f"l{number}", delta(number)), resume=False) == ""
    total, remainder = silo.server.total(tmp_path), silo.remainder
    assert remainder is not None
    for name in remainder:
        whole = sum(delta(number)[name].astype(np.float64) for number in range(5))
        np.testing.assert_allclose(total[name] + remainder[name], whole, atol=1e-5)
    # Buffers travel whole, and nothing of them is kept.
    np.testing.assert_allclose(
        total["running"], sum(delta(number)["running"] for number in range(5)), atol=1e-6
    )
    assert sorted(remainder) == ["b", "w"]
    assert list(silo.home.outbox.iterdir()) == []


def test_a_part_of_it_is_forgotten_each_time(silo: Silo) -> None:
    silo.sender.deliver(silo.make("l0", delta(0), 0.5))
    first = silo.remainder
    assert first is not None
    silo.sender.deliver(silo.make("l1", delta(1), 0.5))
    second, (sent,) = silo.remainder, [silo.server.sent["l1"]]
    (silo.path / "read").write_bytes(sent)
    assert second is not None
    with PackedFile(silo.path / "read", MANIFEST, PACKING.values) as file:
        out = np.empty(800, np.float32)
        file.read("w", 0, 800, out)
    candidate = np.float32(0.5) * first["w"] + delta(1)["w"]
    assert (candidate - out.reshape(40, 20)).tobytes() == second["w"].tobytes()


def refused_by_receipt(silo: Silo) -> None:
    assert silo.sender.deliver(silo.make("bad", delta(1))) == Reason.NORM_EXCEEDED


def refused_without_one(silo: Silo) -> None:
    silo.server.wont_take = True
    assert silo.sender.deliver(silo.make("l1", delta(1))) == Reason.BAD_LEASE
    silo.server.wont_take = False


def discarded(silo: Silo) -> None:
    write_tensors(silo.path / "made", MANIFEST, delta(1))
    made = silo.box.adopt("u", silo.path / "made", MANIFEST.file_bytes)
    silo.box.pack(made, MANIFEST, PACKING, Feedback(silo.folder, 1.0))
    silo.box.discard("u")


def not_finite(silo: Silo) -> None:
    wrong = delta(1)
    wrong["w"][3, 3] = np.inf
    with pytest.raises(Refused):
        silo.make("l1", wrong)


@pytest.mark.parametrize("ends", [refused_by_receipt, refused_without_one, discarded, not_finite])
def test_an_update_that_is_not_accepted_leaves_it_as_it_was(silo: Silo, ends: Callable[[Silo], None]) -> None:
    silo.sender.deliver(silo.make("l0", delta(0)))
    before = (silo.folder / REMAINDER).read_bytes()
    ends(silo)
    assert (silo.folder / REMAINDER).read_bytes() == before
    silo = Silo(silo.path, silo.server)  # the next process finds nothing else
    assert list(silo.home.outbox.iterdir()) == []
    assert (silo.folder / REMAINDER).read_bytes() == before


def story(silo: Silo) -> Silo:
    """Three updates, the second of them refused, by an agent that is killed and started again as often as need be."""
    silo.flush()
    for lease, number in (("l0", 0), ("bad", 1), ("l2", 2)):
        told = {update.rpartition("-")[0] for update in silo.server.decided}
        if lease not in told:  # else its lease is closed
            silo.sender.deliver(silo.make(lease, delta(number)))
    return silo


def dying(monkeypatch: pytest.MonkeyPatch, silo: Silo, step: int, after: bool) -> None:
    """The process dies before, or after, its `step`-th call of anything that outlives it."""
    calls = count()

    def call(real: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        fatal = next(calls) == step
        if fatal and not after:
            raise Killed
        found = real(*arguments, **named)
        if fatal:
            raise Killed
        return found

    for name in ("write", "rename", "make_dir", "sync", "reserve"):
        monkeypatch.setattr(durable, name, partial(call, getattr(durable, name)))
    monkeypatch.setattr(receipts, "journal", partial(call, receipts.journal))
    monkeypatch.setattr(shutil, "rmtree", partial(call, shutil.rmtree))
    monkeypatch.setattr(silo.server, "submit", partial(call, silo.server.submit))


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_step_it_is_charged_once(tmp_path: Path, after: bool) -> None:
    straight = story(Silo(tmp_path / "straight", Server()))
    expected = (straight.folder / REMAINDER).read_bytes()
    for step in count():
        silo, finished = Silo(tmp_path / f"{step}", Server()), False
        names = silo.names
        with pytest.MonkeyPatch.context() as patched:
            dying(patched, silo, step, after)
            try:
                story(silo)
                finished = True
            except Killed:
                pass
        story(Silo(silo.path, silo.server, names))
        assert silo.server.sent == straight.server.sent, step
        assert (silo.folder / REMAINDER).read_bytes() == expected, step
        assert list(silo.home.outbox.iterdir()) == [], step
        if finished:
            break
    assert step > 40  # so that it was killed at all


def test_an_answer_that_came_twice_changes_nothing(silo: Silo) -> None:
    """Two threads deliver one update, and the slower one comes when the next remainder is in place."""
    first = silo.make("l0", delta(0))
    silo.sender.deliver(first)
    silo.sender.deliver(silo.make("l1", delta(1)))
    after = (silo.folder / REMAINDER).read_bytes()
    silo.sender.deliver(first)
    assert (silo.folder / REMAINDER).read_bytes() == after


def test_nobody_else_reads_it(silo: Silo) -> None:
    mask = os.umask(0)
    try:
        pending = silo.make("l0", delta(0))
        assert stat.S_IMODE((pending.directory / REMAINDER).stat().st_mode) == 0o600
        silo.sender.deliver(pending)
    finally:
        os.umask(mask)
    assert stat.S_IMODE((silo.folder / REMAINDER).stat().st_mode) == 0o600


@pytest.mark.parametrize("damage", ["cut", "another header", "a link"])
def test_a_damaged_one_is_named_and_nobody_is_blamed(silo: Silo, damage: str) -> None:
    path = silo.folder / REMAINDER
    silo.sender.deliver(silo.make("l0", delta(0)))
    if damage == "cut":
        os.truncate(path, 100)
    elif damage == "another header":
        path.write_bytes(b"\1" + path.read_bytes()[1:])
    else:
        path.rename(path.with_name("elsewhere"))
        path.symlink_to(path.with_name("elsewhere"))
    with pytest.raises(Corrupt, match=REMAINDER):
        silo.make("l1", delta(1))


def test_who_approves_a_job_is_told_of_it() -> None:
    link = "[link]\nupload_density = 0.0625\nupload_chunk = 4096\nupload_feedback = 0.95"
    said = dict(describe(proposal(terms(adapter=link)), "hospital-a"))["you send"]
    assert "of it the largest 6.250% of every 4096 entries as fp32" in said
    assert "what it leaves out stays on this disk, for the next one" in said


def test_memory_is_that_of_blocks(tmp_path: Path) -> None:
    """With a remainder to take along and one to leave, of a model of 10 MB and of one four times as large."""
    peaks, chance = [], np.random.default_rng(0).standard_normal(BLOCK, np.float32)
    for blocks in (40, 160):
        manifest = Manifest((TensorSpec("w", (blocks * BLOCK,), "trainable"),))
        for name in (REMAINDER, "delta"):
            with TensorWriter(tmp_path / name, manifest) as writer:
                for _ in range(blocks):
                    writer.write(chance)
                writer.close()
        (tmp_path / "entry").mkdir(exist_ok=True)
        target = tmp_path / "entry" / "packed"
        tracemalloc.start()
        try:
            Feedback(tmp_path, 0.95).pack(tmp_path / "delta", manifest, Packing(1 / 64, "int2", 4096), target)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert target.with_name(REMAINDER).stat().st_size == manifest.file_bytes
    assert peaks[1] < peaks[0] + limits.MIB
    assert peaks[1] < 16 * limits.MIB
