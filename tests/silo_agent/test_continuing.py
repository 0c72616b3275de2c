"""A receipt that brings the proof of consistency along."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anabranch.errors import Reason, Refused
from anabranch.tlog import merkle
from anabranch.tlog.note import NoteVerifier
from anabranch.tlog.receipt import Receipt
from anabranch.v1 import audit_pb2
from anabranch.wire import codec
from silo_agent.receipts import LogView, Untrusted
from tests.silo_agent.world import ORIGIN, MemoryLog

Asked = list[tuple[int, int]]


def view_of(log: MemoryLog, directory: Path) -> tuple[LogView, Asked]:
    """The view, and what it had to ask the server for."""
    asked: Asked = []

    def consistency(old: int, new: int) -> list[bytes]:
        asked.append((old, new))
        return log.consistency(old, new)

    verifier = NoteVerifier.from_vkey(log.signer.vkey)
    return LogView(directory / "log-view.json", directory / "evidence", ORIGIN, verifier, consistency), asked


def continuing(log: MemoryLog, seen: int, size: int) -> Receipt:
    """The newest of `size` entries, for a silo that knows `seen`."""
    proof = tuple(merkle.consistency_proof(seen, size, log._node))
    return replace(log.receipt(size - 1, size), seen=seen, consistency=proof)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.integers(1, 60), min_size=2, max_size=6))
def test_whatever_the_sizes_nothing_is_asked(steps: list[int], tmp_path: Path) -> None:
    log = MemoryLog()
    (tmp_path / "log-view.json").unlink(missing_ok=True)
    view, asked = view_of(log, tmp_path)
    for step in steps:
        log.grow(step)
        size, seen = len(log.entries), view.seen()
        message = codec.receipt_to_proto(continuing(log, seen, size)).SerializeToString()
        view.accept(codec.receipt_from_proto(audit_pb2.Receipt.FromString(message)))
        assert view.seen() == size
    assert asked == []


def test_a_proof_for_another_size_than_is_known_now_is_no_accusation(tmp_path: Path) -> None:
    """Another thread of the agent has moved the view while the call was under way."""
    log = MemoryLog()
    log.grow(9)
    view, asked = view_of(log, tmp_path)
    view.accept(log.receipt(4, 5))
    late = continuing(log, 3, 9)
    view.accept(late)
    assert asked == [(5, 9)]
    view.accept(continuing(log, 3, 7))  # older than what is known by now
    assert asked == [(5, 9), (7, 9)]
    assert not (tmp_path / "evidence").exists()


def forked(log: MemoryLog) -> Receipt:
    """Signed by the log's key and proven within its own tree, which is another one than the silo's."""
    fork = MemoryLog(key=log.key)
    fork.grow(9)
    return continuing(fork, 5, 9)


@pytest.mark.parametrize(
    "forge",
    [
        forked,
        lambda log: replace(continuing(log, 5, 9), consistency=()),
        lambda log: replace(continuing(log, 5, 9), consistency=continuing(log, 5, 9).consistency[1:]),
        lambda log: replace(continuing(log, 5, 9), consistency=continuing(log, 4, 9).consistency),
        lambda log: replace(
            continuing(log, 5, 9), consistency=(*continuing(log, 5, 9).consistency, bytes(32))
        ),
        lambda log: replace(
            continuing(log, 5, 9), consistency=tuple(bytes(32) for _ in continuing(log, 5, 9).consistency)
        ),
    ],
)
def test_a_forged_proof_stops_the_agent_and_is_kept(
    tmp_path: Path, forge: Callable[[MemoryLog], Receipt]
) -> None:
    log = MemoryLog()
    log.grow(9)
    view, asked = view_of(log, tmp_path)
    view.accept(log.receipt(4, 5))
    receipt = forge(log)
    with pytest.raises(Untrusted, match="does not continue"):
        view.accept(receipt)
    (evidence,) = (tmp_path / "evidence").iterdir()
    assert len(json.loads(evidence.read_bytes())["consistency_proof"]) == len(receipt.consistency)
    assert (asked, view.seen()) == ([], 5)


@pytest.mark.parametrize(
    ("proof", "code"), [([bytes(32)] * 129, Reason.SIZE_LIMIT), ([bytes(31)], Reason.MALFORMED)]
)
def test_a_proof_is_bounded_before_it_is_read(proof: list[bytes], code: Reason) -> None:
    message = codec.receipt_to_proto(MemoryLog().grow())
    message.consistency.extend(proof)
    with pytest.raises(Refused) as refusal:
        codec.receipt_from_proto(message)
    assert refusal.value.code is code
