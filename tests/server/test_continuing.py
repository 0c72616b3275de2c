"""What a silo says it has seen of the log comes back with the proof that the log continues it."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from anabranch.tlog.entry import Target
from anabranch.tlog.merkle import Frontier, leaf_hash, verify_consistency
from anabranch.tlog.note import NoteVerifier
from anabranch.tlog.receipt import verify_receipt
from anabranch.v1 import audit_pb2, federation_pb2
from anabranch.wire import codec
from server import metrics
from server.audit.log import Log
from silo_agent import approval
from silo_agent.agent import Connection, connect
from silo_agent.budget.ledger import open_ledger
from silo_agent.config import Home
from silo_agent.cycle import Cycle, Site
from silo_agent.enrol import enrol
from silo_agent.messages import Lease
from silo_agent.outbox import Outbox
from silo_agent.policy import Policy
from silo_agent.session import Progress
from tests.server.at_work import at_work
from tests.server.edge import Edge
from tests.server.harness import MANIFEST, ORIGIN, Server
from tests.simulation.silos import Trainer

ONE = "[aggregation]\nbuffer = 1\n[evaluation]\nevery = 1\n"


def grow(server: Server, entries: int) -> None:
    target = Target(kind="silo", id="east")
    for _ in range(entries):
        server.core.writer.run(
            lambda tx: tx.log("silo.lost", actor=server.core.observer, target=target, detail={"silo": "east"})
        )


def test_the_proof_holds_from_every_size_to_every_size(server: Server) -> None:
    grow(server, 40)
    verifier = NoteVerifier.from_vkey(server.signer.vkey)
    log, tree, roots = server.core.log, Frontier(), {}
    for index in range(40):
        tree.append(leaf_hash(log.receipt(index).entry))
        roots[tree.size] = tree.root()
    for _ in range(8):
        _, checkpoint = verify_receipt(log.receipt(0), verifier, ORIGIN)
        for seen in range(1, 41):
            found = log.continuing(log.receipt(3), seen)
            assert found.seen == (seen if seen < checkpoint.size else 0)
            if found.seen:
                proof = found.consistency
                verify_consistency(seen, checkpoint.size, roots[seen], checkpoint.root, proof)
        grow(server, 1)


# --- a whole cycle -----------------------------------------------------------------------------------------------------


@pytest.fixture
def silo(edge: Edge, tmp_path: Path) -> Iterator[Connection]:
    """An enrolled agent, connected to the server in this process."""
    here = {
        "server": f"127.0.0.1:{edge.ports.server_port}",
        "enrolment": f"127.0.0.1:{edge.ports.enrolment_port}",
    }
    home = Home(tmp_path / "north")
    enrol(home, edge.invite("north").model_copy(update=here).encode(), edge.server.clock())
    with connect(home) as connection:
        yield connection


def calls() -> Counter[str]:
    """Calls that were served in this process, by method."""
    found: Counter[str] = Counter()
    for sample in next(iter(metrics.CALLS.collect())).samples:
        if sample.name.endswith("_total") and sample.labels["status"] == "OK":
            found[sample.labels["method"]] += int(sample.value)
    return found


def work(edge: Edge, silo: Connection, cycles: int) -> Counter[str]:
    """Approve a job and work on it while the log grows under every call. What was called."""
    before = calls()
    job, _ = edge.server.submit(ONE)
    (offered,) = silo.client.jobs(silo.log.seen())
    proposal = approval.examine(offered, silo.log)
    grow(edge.server, 3)
    approval.announce(
        silo.client, silo.who, silo.log, proposal, "approve", Policy(), silo.home.job(job) / "receipts.jsonl"
    )
    outbox, ledger = Outbox(silo.home.outbox), open_ledger(silo.home)
    site = Site(silo.home, silo.who, silo.client, silo.log, outbox, Progress(), 1, lambda _: True, ledger)
    trainer: Any = Trainer(lambda: MANIFEST, 1)
    for _ in range(cycles):
        grow(edge.server, 2)
        lease = silo.client.next_task(job, silo.log.seen())
        assert isinstance(lease, Lease)
        Cycle(site, proposal, lease, lambda: grow(edge.server, 1), lambda: None).run(trainer)
        edge.server.core.aggregation.advance(job)
    return calls() - before


def test_a_cycle_makes_no_call_for_a_proof(edge: Edge, silo: Connection) -> None:
    made = work(edge, silo, 4)
    assert made["Federation/NextTask"] == 4
    assert set(made) == {
        "Federation/ListJobs",
        "Federation/Decide",
        "Federation/NextTask",
        "Federation/FetchModel",
        "Updates/Submit",
        "Updates/SubmitEvaluation",
    }


def test_under_a_server_that_proves_nothing_by_itself_the_silo_asks(
    edge: Edge, silo: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Log, "continuing", lambda log, receipt, seen: receipt)
    assert work(edge, silo, 2)["Audit/GetConsistency"] >= 6


@pytest.mark.parametrize("seen", [0, 10_000, 2**53, 2**63, 2**64 - 1])
def test_a_size_the_log_does_not_have_is_answered_without_a_proof(edge: Edge, seen: int) -> None:
    north = at_work(edge)
    request = federation_pb2.NextTaskRequest(jobs=[north.job], seen=seen)
    issued = codec.receipt_from_proto(north.member.federation.NextTask(request, timeout=10).lease.issued)
    assert (issued.seen, issued.consistency) == (0, ())
    verify_receipt(issued, NoteVerifier.from_vkey(edge.server.signer.vkey), ORIGIN)


def test_the_answer_and_the_call_prove_the_same(edge: Edge) -> None:
    north = at_work(edge)
    request = federation_pb2.NextTaskRequest(jobs=[north.job], seen=3)
    issued = codec.receipt_from_proto(north.member.federation.NextTask(request, timeout=10).lease.issued)
    size = int(issued.checkpoint.splitlines()[1])
    asked = audit_pb2.GetConsistencyRequest(old_size=3, new_size=size)
    assert issued.seen == 3
    assert issued.consistency == tuple(north.member.audit.GetConsistency(asked, timeout=10).proof)
