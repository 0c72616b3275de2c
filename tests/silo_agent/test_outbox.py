import os
from pathlib import Path

import pytest

from anabranch import durable
from anabranch.errors import Corrupt, Reason, Refused
from anabranch.wire import canonical, dsse, identity, statements
from silo_agent import outbox as module
from silo_agent.outbox import Outbox, next_sequence

KEY = identity.new_signing_key()
DELTA = os.urandom(3000)


def envelope(update: str = "u1", sequence: int = 0, job: str = "tiny-1", delta: bytes = DELTA) -> bytes:
    statement = statements.UpdateStatement(
        update=update,
        federation="fed.example",
        job=job,
        lease="l1",
        nonce="00" * 16,
        sequence=sequence,
        base_version=0,
        base_sha256="0" * 64,
        delta_sha256=canonical.sha256(delta),
        bytes=len(delta),
        terms_sha256="1" * 64,
        manifest_sha256="2" * 64,
        steps=4,
        release="0.1.0",
        checkpoint=statements.SeenCheckpoint(size=1, root="3" * 64),
    )
    return dsse.sign(statements.PAYLOAD_TYPE, statement.encode(), KEY).encode()


def put(box: Outbox, tmp_path: Path, **changes: object) -> module.Pending:
    source = tmp_path / "made"
    source.write_bytes(DELTA)
    signed = envelope(**changes)  # type: ignore[arg-type]
    update = statements.parse_update(dsse.parse_envelope(signed).payload).update
    box.adopt(update, source, len(DELTA))
    return box.put(signed)


def test_what_was_put_is_there_for_the_next_process_in_order(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "outbox")
    for update, sequence in (("u2", 1), ("u1", 0), ("u3", 2)):
        put(box, tmp_path, update=update, sequence=sequence)
    put(box, tmp_path, update="other", job="tiny-2")
    again = Outbox(tmp_path / "outbox")
    assert [p.statement.update for p in again.pending("tiny-1")] == ["u1", "u2", "u3"]
    assert again.jobs() == {"tiny-1", "tiny-2"}
    first = next(again.pending("tiny-1"))
    assert first.delta.read_bytes() == DELTA
    assert first.envelope == envelope("u1")
    again.forget(first)
    assert [p.statement.update for p in Outbox(tmp_path / "outbox").pending("tiny-1")] == ["u2", "u3"]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("step", range(12))
def test_killed_at_any_durable_step_an_update_is_there_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Dies before the n-th call of anything durable; the next start finds the update whole, or nothing."""
    calls = iter(range(100))
    box = Outbox(tmp_path / "outbox")

    def dying(real: object) -> object:
        def call(*arguments: object, **named: object) -> object:
            if next(calls) == step:
                raise Killed
            return real(*arguments, **named)  # type: ignore[operator]

        return call

    finished = False
    with monkeypatch.context() as patched:
        for name in ("write", "rename", "make_dir", "sync"):
            patched.setattr(durable, name, dying(getattr(durable, name)))
        try:
            pending = put(box, tmp_path)
            finished = True
            box.forget(pending)
        except Killed:
            pass
    found = list(Outbox(tmp_path / "outbox").pending("tiny-1"))
    assert [p.delta.read_bytes() for p in found] in ([], [DELTA])
    assert not list((tmp_path / "outbox").glob(".*"))
    if finished and step > 6:
        assert found == []


def test_the_copy_is_not_what_the_task_writes_afterwards(tmp_path: Path) -> None:
    box, source = Outbox(tmp_path / "outbox"), tmp_path / "made"
    source.write_bytes(DELTA)
    with open(source, "r+b") as kept_open:
        made = box.adopt("u1", source, len(DELTA))
        kept_open.write(b"changed afterwards")
        kept_open.flush()
    assert made.sha256 == canonical.sha256(DELTA) == canonical.sha256(made.path.read_bytes())


@pytest.mark.parametrize("kind", ["link", "pipe", "short", "long"])
def test_only_a_plain_file_of_the_right_size_is_adopted(tmp_path: Path, kind: str) -> None:
    box, source = Outbox(tmp_path / "outbox"), tmp_path / "made"
    if kind == "link":
        (tmp_path / "secret").write_bytes(DELTA)
        source.symlink_to(tmp_path / "secret")
    elif kind == "pipe":
        os.mkfifo(source)
    else:
        source.write_bytes(DELTA[:-1] if kind == "short" else DELTA + b"x")
    with pytest.raises((Refused, OSError)):
        box.adopt("u1", source, len(DELTA))
    assert list(box.pending("tiny-1")) == []


def test_a_refused_update_leaves_its_signature_and_the_reason(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "outbox")
    pending = put(box, tmp_path)
    kept = box.set_aside(pending, Refused(Reason.BAD_LEASE, "no such lease"), tmp_path / "refused")
    assert sorted(p.name for p in kept.iterdir()) == ["envelope.json", "refusal.json"]
    assert list(box.pending("tiny-1")) == []


def test_a_damaged_entry_is_not_sent(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "outbox")
    os.truncate(put(box, tmp_path).delta, 10)
    with pytest.raises(Corrupt):
        list(box.pending("tiny-1"))


def test_sequence_numbers_grow_over_restarts(tmp_path: Path) -> None:
    assert [next_sequence(tmp_path) for _ in range(3)] == [0, 1, 2]
    (tmp_path / "sequence").write_text("nonsense")
    with pytest.raises(Corrupt):
        next_sequence(tmp_path)
