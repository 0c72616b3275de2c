import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from anabranch.errors import Reason, Refused, Unavailable
from anabranch.tlog.entry import Target
from anabranch.tlog.note import NoteVerifier
from anabranch.tlog.receipt import Receipt
from anabranch.wire import canonical, limits
from silo_agent.fetch import fetch_model
from silo_agent.messages import View
from silo_agent.receipts import LogView
from tests.silo_agent.world import ORIGIN, MemoryLog

DATA = os.urandom(2 * limits.CHUNK + 17)
VIEW = View(3, canonical.sha256(DATA), len(DATA))
JOB = "tiny-1"


@dataclass
class Source:
    """A server that says what a test wants; `breaks` ends the first stream after so many bytes."""

    receipts: tuple[Receipt, ...]
    data: bytes = DATA
    view: View = VIEW
    breaks: int | None = None
    offsets: list[int] = field(default_factory=list)

    def archive(self, job: str) -> Iterator[bytes]:
        yield b""

    def model(
        self, job: str, digest: str, offset: int, seen: int
    ) -> Iterator[tuple[View, tuple[Receipt, ...]] | bytes]:
        self.offsets.append(offset)
        yield self.view, self.receipts
        stop = len(self.data) if self.breaks is None else self.breaks
        for start in range(offset, stop, limits.CHUNK):
            yield self.data[start : min(start + limits.CHUNK, stop)]
        if self.breaks is not None:
            self.breaks = None
            raise Unavailable("the stream broke")


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()


@pytest.fixture
def published(log: MemoryLog) -> Callable[..., Receipt]:
    def publish(digest: str = VIEW.digest, version: int = 3, job: str = JOB) -> Receipt:
        detail = {
            "version": version,
            "parent": version - 1,
            "parameters_sha256": digest,
            "bytes": len(DATA),
            "step": "s1",
        }
        return log.append("model.published", detail, Target(kind="model", id=f"{job}/{version}"), job=job)

    return publish


@pytest.fixture
def fetch(tmp_path: Path, log: MemoryLog) -> Callable[..., Path]:
    verifier = NoteVerifier.from_vkey(log.signer.vkey)
    view = LogView(tmp_path / "view.json", tmp_path / "evidence", ORIGIN, verifier, log.consistency)

    def run(source: Source, asked: View = VIEW, keep: int = 2) -> Path:
        return fetch_model(source, view, JOB, asked, tmp_path / "models", tmp_path / "receipts.jsonl", keep)

    return run


def test_a_broken_stream_is_resumed_where_it_stopped(
    fetch: Callable[..., Path], published: Callable[..., Receipt]
) -> None:
    source = Source((published(),), breaks=limits.CHUNK + 5)
    with pytest.raises(Unavailable):
        fetch(source)
    assert fetch(source).read_bytes() == DATA
    assert source.offsets == [0, limits.CHUNK + 5]
    fetch(source)
    assert len(source.offsets) == 2


def test_a_damaged_part_is_fetched_again_from_the_start_once(
    fetch: Callable[..., Path], published: Callable[..., Receipt], tmp_path: Path
) -> None:
    source = Source((published(),), breaks=limits.CHUNK)
    with pytest.raises(Unavailable):
        fetch(source)
    (part,) = (tmp_path / "models").glob("*.part")
    with open(part, "r+b") as file:
        file.write(b"\0\0\0\0")
    assert fetch(source).read_bytes() == DATA
    assert source.offsets == [0, limits.CHUNK, 0]


def test_other_bytes_than_the_log_names_are_never_used(
    fetch: Callable[..., Path], published: Callable[..., Receipt], tmp_path: Path
) -> None:
    with pytest.raises(Refused) as refusal:
        fetch(Source((published(),), data=os.urandom(len(DATA))))
    assert refusal.value.code is Reason.DIGEST_MISMATCH
    assert not list((tmp_path / "models").iterdir())


@pytest.mark.parametrize("proof", ["other digest", "other version", "other job", "none", "other entry"])
def test_a_model_the_log_does_not_publish_is_not_taken(
    fetch: Callable[..., Path], published: Callable[..., Receipt], log: MemoryLog, proof: str, tmp_path: Path
) -> None:
    receipts = {
        "other digest": lambda: (published(digest="e" * 64),),
        "other version": lambda: (published(version=4),),
        "other job": lambda: (published(job="tiny-2"),),
        "none": lambda: (),
        "other entry": lambda: (log.grow(),),
    }[proof]()
    with pytest.raises(Refused) as refusal:
        fetch(Source(receipts))
    assert refusal.value.code is Reason.DIGEST_MISMATCH
    assert not list((tmp_path / "models").glob("*.safetensors"))


def test_a_flood_is_cut_off(
    fetch: Callable[..., Path], published: Callable[..., Receipt], tmp_path: Path
) -> None:
    with pytest.raises(Refused, match="more than"):
        fetch(Source((published(),), data=DATA + DATA))
    assert sum(p.stat().st_size for p in (tmp_path / "models").iterdir()) <= len(DATA)


def test_few_models_are_kept(
    fetch: Callable[..., Path], published: Callable[..., Receipt], tmp_path: Path
) -> None:
    for number in range(5):
        data = bytes([number]) * 100
        view = View(3, canonical.sha256(data), 100)
        last = fetch(Source((published(digest=view.digest),), data=data, view=view), view)
        os.utime(last, (number, number))
    assert len(list((tmp_path / "models").iterdir())) == 3
    assert last.exists()
