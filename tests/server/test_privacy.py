"""What the server does about privacy: it holds claims to the terms, and gives a silo without budget nothing to train on."""

from typing import Any

import pytest
from sqlalchemy import select

from anabranch.terms import JobTerms
from anabranch.tlog.claim import PrivacyClaim
from anabranch.tlog.details import UpdateReceived
from anabranch.tlog.entry import parse_entry
from anabranch.wire import canonical
from server.intake import Decided
from server.scheduling import Lease, Wait
from server.state import tables
from tests.server.harness import FakeSilo, Server

PRIVATE = """
[training]
local_steps = 5
buffers = "none"
[aggregation]
buffer = 1
[evaluation]
every = 1
[privacy]
epsilon = 3.0
delta = 1e-5
cycles_max = 4
"""


def claim(**changes: Any) -> PrivacyClaim:
    said = {
        "unit": "example",
        "sample_rate": canonical.hexfloat(0.1),
        "noise_multiplier": canonical.hexfloat(1.2),
        "max_grad_norm": canonical.hexfloat(1.0),
        "steps": 5,
        "delta": canonical.hexfloat(1e-5),
        "cycles": 1,
        "ledger_head": "a" * 64,
    }
    return PrivacyClaim.model_validate({**said, **changes})


def send(server: Server, job: str, terms: JobTerms, said: PrivacyClaim | None) -> Decided:
    silo = server.enrol_once("a")
    lease = server.lease(silo, job)
    delta = silo.delta(server.directory, 1.0)
    return server.upload(silo, silo.statement(lease, terms, delta, privacy=said), delta.read_bytes())


def begun(server: Server, text: str = PRIVATE) -> tuple[FakeSilo, str, JobTerms]:
    silo = server.enrol("a")
    job, terms = server.submit(text)
    server.decide(silo, job, terms)
    return silo, job, terms


def test_a_claim_is_logged_as_it_was_signed(server: Server) -> None:
    _, job, terms = begun(server)
    assert send(server, job, terms, claim()).reason == ""
    with server.core.reader.connect() as connection:
        logged = [
            parse_entry(bytes(one)) for one in connection.execute(select(tables.entries.c.data)).scalars()
        ]
    (received,) = [one.detail for one in logged if isinstance(one.detail, UpdateReceived)]
    assert received.privacy == claim()


def test_a_silo_is_shown_its_newest_claim(server: Server) -> None:
    """By it, an agent whose directory was put back knows that its ledger is old."""
    _, job, terms = begun(server)
    plain, _ = server.submit("[aggregation]\nbuffer = 1\n")

    def newest() -> str | None:
        offered = {one.id: one.newest for one in server.core.jobs.offered("a")}
        assert offered[plain] is None
        return parse_entry(offered[job].entry).detail.privacy.ledger_head if offered[job] else None

    assert newest() is None
    for number in (1, 2):
        head = f"{number:064x}"
        assert send(server, job, terms, claim(cycles=number, ledger_head=head)).reason == ""
        assert newest() == head
    assert send(server, job, terms, claim(cycles=9)).reason == "malformed"
    assert newest() == head


@pytest.mark.parametrize(
    "changes",
    [
        {"unit": "subject"},
        {"delta": canonical.hexfloat(2e-5)},
        {"max_grad_norm": canonical.hexfloat(1.5)},
        {"steps": 6},
        {"cycles": 5},
        {"sample_rate": canonical.hexfloat(0.0)},
        {"sample_rate": canonical.hexfloat(1.1)},
        {"noise_multiplier": canonical.hexfloat(-1.0)},
        None,
    ],
    ids=str,
)
def test_a_claim_that_does_not_fit_the_terms_is_refused(
    server: Server, changes: dict[str, Any] | None
) -> None:
    _, job, terms = begun(server)
    said = None if changes is None else claim(**changes)
    assert send(server, job, terms, said).reason == "malformed"


def test_a_claim_nobody_asked_for_is_refused(server: Server) -> None:
    _, job, terms = begun(server, "[aggregation]\nbuffer = 1\n")
    assert send(server, job, terms, claim()).reason == "malformed"


def test_a_silo_without_budget_gets_nothing_to_train_on(server: Server) -> None:
    silo, job, _ = begun(server)
    task = server.core.scheduling.next_task("a", [job])
    assert isinstance(task, Lease)
    released = server.core.scheduling.release("a", silo.actor, task.id, "dp_budget", "", "")
    assert parse_entry(released.entry).detail.reason == "dp_budget"
    waits = server.core.scheduling.next_task("a", [job], spent=True)
    assert isinstance(waits, Wait)
    assert "budget" in waits.reason


def test_a_private_job_is_not_evaluated_and_ends_all_the_same(server: Server) -> None:
    _, job, terms = begun(server, PRIVATE + "[stop]\nversions = 3\n")
    head = 0
    while server.core.jobs.status(job)[0].status == "running":
        assert send(server, job, terms, claim(cycles=head + 1)).reason == ""
        assert server.core.aggregation.advance(job)
        server.core.aggregation.conclude(job)
        head += 1
        task = server.core.scheduling.next_task("a", [job])
        assert isinstance(task, Wait) or task.kind == "train"
    assert (head, server.core.jobs.status(job)[0].status) == (terms.file.stop.versions, "completed")


def test_a_lease_that_is_open_is_given_again_whatever_is_left(server: Server) -> None:
    """It may be paid for; if it is not, the silo gives it back."""
    silo, job, _ = begun(server)
    lease = server.lease(silo, job)
    again = server.core.scheduling.next_task("a", [job], spent=True)
    assert isinstance(again, Lease)
    assert again.id == lease.id


def test_another_job_of_the_silo_goes_on(server: Server) -> None:
    silo, job, _ = begun(server)
    other, terms = server.submit("[aggregation]\nbuffer = 1\n")
    server.decide(silo, other, terms)
    assert isinstance(server.core.scheduling.next_task("a", [job], spent=True), Wait)
    task = server.core.scheduling.next_task("a", [other])
    assert isinstance(task, Lease)
    assert task.job == other
