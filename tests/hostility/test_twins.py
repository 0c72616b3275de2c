"""One identity in two places: a copied agent folder, or a stolen one. Both agents and the server notice; nothing is lost."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from anabranch.errors import Reason
from server.sessions import TWIN
from tests.e2e.federation import Federation
from tests.hostility.target import answer, met, until
from tests.server.at_work import entries_of
from tests.server.edge import Edge, Member, Talk
from tests.server.harness import Server


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    server = Server(tmp_path / "server")
    running = Edge(server).start()
    yield running
    running.stop()
    server.core.close()


def heard(edge: Edge, *talks: Talk) -> None:
    """Each says one heartbeat, and the server has heard it."""
    for talk in talks:
        before = {id(box): box.heard for box in edge.sessions._mailboxes}
        edge.server.clock.advance(0.001)
        talk.beat()
        until(
            lambda before=before: any(before.get(id(b)) != b.heard for b in list(edge.sessions._mailboxes)),
            "heard",
        )


def test_two_agents_under_one_identity_are_both_told(edge: Edge) -> None:
    member = edge.enrol("north")
    with Talk(member) as old:
        answer(old.hear)
        edge.server.clock.advance(1)
        with Talk(member) as young:
            _told_by_turns(edge, member, old, young)
    edge.failures.flush()
    (failed,) = entries_of(edge.server, "auth.failed")
    assert (failed.code, failed.method, failed.count) == (Reason.DUPLICATE_IDENTITY, "Federation/Session", 2)


def _told_by_turns(edge: Edge, member: Member, old: Talk, young: Talk) -> None:
    _later(edge, young)
    old.beat()
    assert met(old.hear) == Reason.DUPLICATE_IDENTITY
    assert "anabranch silo invite north" in old.call.details()
    with Talk(member) as again:  # the one that was told comes back, and now the other one hears it
        _later(edge, again)
        young.beat()
        assert met(young.hear) == Reason.DUPLICATE_IDENTITY


def _later(edge: Edge, young: Talk) -> None:
    """The younger session has been talking for a while."""
    answer(young.hear)
    edge.server.clock.advance(TWIN + 1)
    heard(edge, young)


def test_a_session_that_broke_and_was_opened_again_is_no_twin(edge: Edge) -> None:
    """The old stream may hang for a while; nothing is said on it any more."""
    member = edge.enrol("north")
    with Talk(member) as old, Talk(member) as young:
        answer(old.hear)
        answer(young.hear)
        heard(edge, old)  # on its way when the connection broke
        for _ in range(4):
            edge.server.clock.advance(TWIN)
            heard(edge, young)
        assert edge.sessions.presence("north").sessions == 2
    edge.failures.flush()
    assert not entries_of(edge.server, "auth.failed")


def test_two_agents_of_one_silo_with_an_identity_each_are_no_twins(edge: Edge) -> None:
    first, second = edge.enrol("north"), edge.enrol("north")
    with Talk(first) as one, Talk(second) as two:
        answer(one.hear)
        answer(two.hear)
        for _ in range(3):
            edge.server.clock.advance(TWIN)
            heard(edge, one, two)
    edge.failures.flush()
    assert not entries_of(edge.server, "auth.failed")


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_copied_folder_works_to_the_end_and_nothing_counts_twice(tmp_path: Path) -> None:
    """Both train the same leases. The first update of a lease is taken, the other is refused as its replay."""
    federation = Federation(tmp_path)
    federation.create()
    try:
        federation.enrol("hospital-a", pause=0.2)
        shutil.copytree(federation.silo_dir("hospital-a"), federation.silo_dir("copy"))
        job = federation.submit(versions=6, steps=16)
        federation.approve("hospital-a", job)
        federation.agent("hospital-a")
        federation.agent("copy")
        told = "somebody else works under this identity"
        for name in ("hospital-a", "copy"):
            log = federation.root / f"{name}.log"
            federation.until(lambda log=log: told in log.read_text(), f"{name} is told")
        assert federation.finish(job)["head"] == 6
        assert "duplicate_identity" in (federation.root / "server.log").read_text()
        federation.verified()
        merged = [
            one["update"]
            for step in federation.entries("aggregation.performed")
            for one in step["detail"]["inputs"]
        ]
        leases = [entry["detail"]["lease"] for entry in federation.entries("update.received")]
        assert len(merged) == len(set(merged)) == 6
        assert len(leases) == len(set(leases))
        codes = {entry["detail"]["code"] for entry in federation.entries("update.refused")}
        assert codes <= {Reason.REPLAYED, Reason.BAD_LEASE, Reason.JOB_ENDED}
    finally:
        federation.close()
