"""Reviving: who allows it, what stays of it, and what an operator is told."""

from pathlib import Path

import pytest

from anabranch.errors import Reason, Refused
from anabranch.terms import JobTerms
from anabranch.tlog.details import AggregationPerformed
from anabranch.tlog.revivals import RevivalPerformed
from server import lifecycle
from server.reviving import RevivalTask
from server.state import records
from tests.server.harness import ADMIN, FakeSilo, Server
from tests.server.reviver import (
    NAME,
    REPORT,
    REVIVED,
    REVIVER,
    SOME,
    allow,
    begin,
    logged,
    publish,
    revive,
    status_of,
    task_of,
)

# --- who allows it ---------------------------------------------------------------------------------------------------


def leave(server: Server, silo: FakeSilo, job: str, terms: JobTerms, how: str) -> None:
    match how:
        case "word":
            allow(server, silo, job, terms, False)
        case "withdraw" | "deny":
            server.decide(silo, job, terms, how)
        case "revoke":
            # As membership does, certificates apart.
            server.core.writer.run(lambda tx: lifecycle.withdraw(tx, ADMIN, silo.name))


@pytest.mark.parametrize("how", ["word", "withdraw", "deny", "revoke"])
@pytest.mark.parametrize("finished", [False, True])
def test_who_takes_its_word_back_takes_what_it_taught(server: Server, how: str, finished: bool) -> None:
    job, terms, [a, b, c] = begin(server, teaching="abc")
    publish(server, job, terms, (a, 1.0), (b, 1.0))
    task = task_of(server, job)
    if finished:
        revive(server, task, 1.0)
    leave(server, c, job, terms, how)  # taught nothing
    assert status_of(server.core.reader, task.id)[0] == ("done" if finished else "claimed")
    leave(server, a, job, terms, how)
    assert status_of(server.core.reader, task.id) == ("dropped" if finished else "skipped", "withdrawn")
    assert server.core.reviving.allowed([job]) == {job: ("b",)}
    if not finished:
        assert revive(server, task, 1.0).reason == "withdrawn"
    publish(server, job, terms, (b, 1.0))
    assert {one.revival for one in logged(server, AggregationPerformed)} == {None}
    assert [one.silo for one in task_of(server, job).teachers] == ["b"]


def test_a_step_that_adds_what_was_dropped_is_frozen_again(server: Server) -> None:
    job, terms, [a, b] = begin(server)
    publish(server, job, terms, (a, 1.0))
    task = task_of(server, job)
    revive(server, task, 1.0)
    assert server.send(b, job, terms, 1.0).reason == ""
    frozen = server.core.aggregation.freeze(job)
    assert frozen is not None
    assert frozen.buffer.revival == task.id
    allow(server, a, job, terms, False)
    assert not server.core.aggregation.finish(frozen)
    assert server.core.aggregation.advance(job)
    assert [one.revival for one in logged(server, AggregationPerformed)] == [None, None]


def test_an_approval_says_a_word_on_revival_where_it_is_asked(server: Server) -> None:
    job, terms, [a, _] = begin(server)
    plain, plain_terms = server.submit(SOME)
    for one, its, decision, word in (
        (job, terms, "approve", None),
        (job, terms, "deny", False),
        (plain, plain_terms, "approve", True),
    ):
        with pytest.raises(Refused, match="says whether the silo's models may teach") as refused:
            allow(server, a, one, its, word, decision)
        assert refused.value.code is Reason.MALFORMED
    [offered] = [one for one in server.core.jobs.offered("a") if one.id == job]
    assert offered.revival
    allow(server, a, job, terms, False)
    [offered] = [one for one in server.core.jobs.offered("a") if one.id == job]
    assert (offered.decision, offered.revival) == ("approved", False)


def test_a_job_in_mode_paper_is_for_simulations(server: Server) -> None:
    with pytest.raises(Refused, match="in simulations only"):
        server.submit(SOME + '[revival]\nmode = "paper"\ns_max = 3.0\n')


# --- what stays ------------------------------------------------------------------------------------------------------


def test_a_restart_loses_nothing(tmp_path: Path) -> None:
    server = Server(tmp_path)
    job, terms, [a, b] = begin(server)
    publish(server, job, terms, (a, 1.0))
    task = task_of(server, job)
    server.core.close()
    server.core = server._open()
    assert task_of(server, job) == task
    revive(server, task, 4.0)
    server.core.close()
    server.core = server._open()
    publish(server, job, terms, (b, 2.0))
    assert logged(server, AggregationPerformed)[-1].revival == task.id
    server.core.close()


def test_the_file_of_a_result_is_kept_and_pruned_like_the_deltas_of_updates(server: Server) -> None:
    job, terms, [a, b] = begin(server, REVIVED + '[retention]\nupdates = "30d"\nsnapshots = "1d"\n')
    publish(server, job, terms, (a, 1.0), (b, 3.0))
    first = task_of(server, job)
    revive(server, first, 5.0)
    publish(server, job, terms, (b, 7.0))
    second = task_of(server, job)
    revive(server, second, 6.0)
    digests = [one.delta_sha256 for one in logged(server, RevivalPerformed)]
    server.clock.advance(2 * 86400)
    server.core.retention.prune()
    assert all(map(server.core.blobs.holds, digests))
    with server.core.reader.connect() as connection:
        stored = [records.version_row(connection, job, number).parameters for number in range(4)]
    assert [server.core.blobs.holds(one) for one in stored] == [
        True,
        False,
        True,
        True,
    ]  # 0 and 2 are teachers' bases
    server.core.jobs.change(ADMIN, job, "abort", "")
    server.clock.advance(31 * 86400)
    server.core.retention.prune()
    assert not any(map(server.core.blobs.holds, digests))


def test_what_an_operator_is_told(server: Server) -> None:
    job, terms, [a, b] = begin(server)
    plain, _ = server.submit(SOME)
    [told] = [one.revival for one in server.core.jobs.status() if one.job == job]
    assert told is not None
    assert (told.teachers, told.tallies, told.version) == (("a", "b"), (), 0)
    publish(server, job, terms, (a, 1.0))
    revive(server, task_of(server, job), 1.0)
    publish(server, job, terms, (b, 1.0))
    server.core.reviving.skip(NAME, REVIVER, task_of(server, job).id, "not_worth")
    publish(server, job, terms, (b, 1.0))
    task_of(server, job)
    [told] = [one.revival for one in server.core.jobs.status() if one.job == job]
    assert told is not None
    found = {(one.outcome, one.reason): one.count for one in told.tallies}
    assert found == {("used", ""): 1, ("skipped", "not_worth"): 1, ("claimed", ""): 1}
    said = told.version, told.agreement_before, told.agreement_after, told.seconds
    assert said == (1, REPORT.agreement_before, REPORT.agreement_after, REPORT.seconds)
    assert (told.accuracy_before, told.accuracy_after) == (REPORT.accuracy_before, REPORT.accuracy_after)
    assert [one.revival for one in server.core.jobs.status() if one.job == plain] == [None]


def test_a_reviver_gets_the_task_it_has_before_one_of_another_job(server: Server) -> None:
    """It was killed at the one, and a job that was never revived comes first in the list."""
    job, terms, silos = begin(server)
    publish(server, job, terms, (silos[0], 0.5))
    task = task_of(server, job)
    other, other_terms = server.submit(REVIVED)
    for silo in silos:
        allow(server, silo, other, other_terms, True)
    publish(server, other, other_terms, (silos[0], 0.5))
    assert server.core.reviving.claim(NAME) == task
    second = server.core.reviving.claim("another")
    assert isinstance(second, RevivalTask)
    assert second.job == other
