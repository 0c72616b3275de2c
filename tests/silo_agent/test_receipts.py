import base64
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anabranch.errors import Corrupt, Reason, Refused, Unavailable
from anabranch.tlog.entry import Target
from anabranch.tlog.note import NoteVerifier
from anabranch.tlog.receipt import Receipt, verify_receipt
from silo_agent.receipts import LogView, Untrusted, journal, require
from tests.silo_agent.world import ORIGIN, SILO, MemoryLog


def view_of(log: MemoryLog, directory: Path, prover: MemoryLog | None = None) -> LogView:
    verifier = NoteVerifier.from_vkey(log.signer.vkey)
    asked = (prover or log).consistency
    return LogView(directory / "log-view.json", directory / "evidence", ORIGIN, verifier, asked)


def test_the_view_grows_and_survives_a_restart(tmp_path: Path) -> None:
    log = MemoryLog()
    for _ in range(5):
        entry = view_of(log, tmp_path).accept(log.grow(3))
        assert require(entry, "silo.lost", silo=SILO) == {"silo": SILO}
    kept = json.loads((tmp_path / "log-view.json").read_bytes())
    assert (kept["origin"], kept["size"]) == (ORIGIN, 15)
    current = view_of(log, tmp_path).current()
    assert current is not None
    assert current.root.hex() == kept["root"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 40), min_size=2, max_size=8))
def test_receipts_of_one_log_are_accepted_in_any_order(sizes: list[int], tmp_path: Path) -> None:
    log = MemoryLog()
    log.grow(40)
    (tmp_path / "log-view.json").unlink(missing_ok=True)
    view = view_of(log, tmp_path)
    for size in sizes:
        view.accept(log.receipt(size - 1, size))
    current = view.current()
    assert current is not None
    assert current.size == max(sizes)


def test_another_tree_of_the_same_size_is_a_fork_with_evidence(tmp_path: Path) -> None:
    log, fork = MemoryLog(), None
    fork = MemoryLog(key=log.key)
    view = view_of(log, tmp_path)
    view.accept(log.grow(3))
    other = fork.grow(3)
    with pytest.raises(Untrusted, match="two different trees of size 3") as caught:
        view.accept(other)
    assert caught.value.code is Reason.DIGEST_MISMATCH
    (evidence,) = (tmp_path / "evidence").iterdir()
    record = json.loads(evidence.read_bytes())
    verifier = NoteVerifier.from_vkey(log.signer.vkey)
    shown = record["receipt"]
    presented = Receipt(
        base64.b64decode(shown["entry"]),
        shown["index"],
        tuple(map(base64.b64decode, shown["proof"])),
        shown["checkpoint"],
    )
    _, checkpoint = verify_receipt(presented, verifier, ORIGIN)
    assert record["seen_before"] != shown["checkpoint"]
    assert checkpoint.size == 3
    assert view.current() is not None
    assert str(evidence) in str(caught.value)


@pytest.mark.parametrize("prover", ["honest", "forked"])
def test_a_longer_history_that_does_not_continue_ours_is_a_fork(tmp_path: Path, prover: str) -> None:
    log = MemoryLog()
    fork = MemoryLog(key=log.key)
    log.grow(4)
    view_of(log, tmp_path).accept(log.receipt(3))
    longer = fork.grow(7)
    log.grow(5)
    view = view_of(log, tmp_path, log if prover == "honest" else fork)
    with pytest.raises(Untrusted, match="does not continue"):
        view.accept(longer)
    assert len(list((tmp_path / "evidence").iterdir())) == 1


def test_a_server_that_lost_part_of_its_log_is_not_believed(tmp_path: Path) -> None:
    log = MemoryLog()
    log.grow(9)
    view_of(log, tmp_path).accept(log.receipt(8))
    restored = MemoryLog(key=log.key)
    for entry in log.entries[:5]:
        restored.append_raw(entry)
    view = view_of(log, tmp_path, restored)
    with pytest.raises(Untrusted, match="will not prove"):
        view.accept(restored.grow())


def test_an_unreachable_server_proves_nothing_and_accuses_nobody(tmp_path: Path) -> None:
    log = MemoryLog()
    log.grow(2)
    view = view_of(log, tmp_path)
    view.accept(log.receipt(1))

    def away(old: int, new: int) -> list[bytes]:
        raise Unavailable("no answer")

    later = log.grow(2)
    with pytest.raises(Unavailable):
        replace(view, consistency=away).accept(later)
    assert not (tmp_path / "evidence").exists()
    view.accept(later)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda r: replace(r, entry=r.entry[:-1] + b"x"),
        lambda r: replace(r, index=r.index - 1),
        lambda r: replace(r, proof=(b"\0" * 32, *r.proof[1:])),
        lambda r: replace(r, checkpoint=r.checkpoint.replace("\n5\n", "\n6\n")),
        lambda r: replace(r, checkpoint=MemoryLog().grow(5).checkpoint),
    ],
)
def test_a_receipt_that_proves_nothing_stops_the_agent(tmp_path: Path, spoil: object) -> None:
    log = MemoryLog()
    log.grow(5)
    with pytest.raises(Untrusted, match="does not verify"):
        view_of(log, tmp_path).accept(spoil(log.receipt(3)))  # type: ignore[operator]
    assert not (tmp_path / "log-view.json").exists()


def test_a_true_entry_about_something_else_is_refused(tmp_path: Path) -> None:
    log = MemoryLog()
    receipt = log.append("silo.returned", {"silo": "south"}, Target(kind="silo", id="south"))
    entry = view_of(log, tmp_path).accept(receipt)
    for arguments in (("silo.lost", {"silo": "south"}), ("silo.returned", {"silo": "north"})):
        with pytest.raises(Refused) as refusal:
            require(entry, arguments[0], **arguments[1])
        assert refusal.value.code is Reason.DIGEST_MISMATCH


def test_a_damaged_view_is_our_storage_not_their_fault(tmp_path: Path) -> None:
    (tmp_path / "log-view.json").write_bytes(b"{")
    with pytest.raises(Corrupt):
        view_of(MemoryLog(), tmp_path).current()


def test_a_torn_line_of_the_journal_is_cut_off_by_the_next(tmp_path: Path) -> None:
    log, path = MemoryLog(), tmp_path / "receipts.jsonl"
    journal(path, log.grow())
    with open(path, "ab") as file:
        file.write(b'{"entry":"AAAA')
    journal(path, log.grow())
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["index"] for line in lines] == [0, 1]
    assert set(lines[0]) == {"entry", "index", "proof", "checkpoint"}
