"""Reviving: claim, submit, skip; what is too late, and what the next aggregation makes of a result."""

import numpy as np
import pytest

from anabranch.errors import Refused
from anabranch.tlog.details import AggregationPerformed
from anabranch.tlog.entry import parse_entry
from anabranch.tlog.revivals import RevivalPerformed, RevivalSkipped
from anabranch.wire import canonical
from anabranch.wire.tensors import write_tensors
from server.core.revival import PATIENCE
from server.reviving import RevivalTask
from server.scheduling import Wait
from server.state import records
from tests.server.harness import ADMIN, MANIFEST, Server
from tests.server.reviver import (
    NAME,
    REPORT,
    REVIVED,
    REVIVER,
    SOME,
    begin,
    logged,
    publish,
    revive,
    status_of,
    submit,
    task_of,
    weights,
)

# --- a task ----------------------------------------------------------------------------------------------------------


def test_a_task_names_the_newest_merged_update_of_every_silo_that_allows_it(server: Server) -> None:
    job, terms, [a, b, c] = begin(server, silent="c")
    assert isinstance(server.core.reviving.claim(NAME), Wait)  # nobody has given anything
    held = server.lease(b, job)
    publish(server, job, terms, (a, 1.0), (c, 2.0), (a, 3.0))
    task = task_of(server, job)
    assert (task.version, [one.silo for one in task.teachers]) == (3, ["a"])
    [taught] = task.teachers
    assert taught.base == 2
    assert (
        server.core.blobs.require(taught.delta_sha256).read_bytes()
        == a.delta(server.directory, 3.0).read_bytes()
    )
    with server.core.reader.connect() as connection:
        assert task.head_sha256 == records.version_row(connection, job, 3).parameters
        assert taught.base_sha256 == records.version_row(connection, job, 2).parameters
    assert server.core.reviving.allowed([job]) == {job: ("a", "b")}
    assert task.terms_sha256 == terms.digest()
    revive(server, task, 1.0)
    delta = b.delta(server.directory, 4.0)
    assert server.upload(b, b.statement(held, terms, delta), delta.read_bytes()).reason == ""
    assert server.core.aggregation.advance(job)
    taught = task_of(server, job).teachers[1]
    assert (taught.silo, taught.base) == ("b", 0)  # stale as it is


def test_a_reviver_reads_what_its_task_names_and_nothing_else(server: Server) -> None:
    job, terms, [a, b] = begin(server)
    publish(server, job, terms, (a, 1.0), (b, 2.0))
    task = task_of(server, job)
    file = server.core.reviving.file
    named = {task.head_sha256, terms.digest(), terms.manifest_sha256, terms.archive_sha256}
    named |= {digest for one in task.teachers for digest in (one.base_sha256, one.delta_sha256)}
    assert all(file(NAME, task.id, digest).exists() for digest in named)
    with pytest.raises(Refused, match="names no file"):
        file(NAME, task.id, "0" * 64)
    with pytest.raises(Refused, match="has no task"):
        file("another", task.id, task.head_sha256)
    server.core.reviving.skip(NAME, REVIVER, task.id, "not_worth")
    with pytest.raises(Refused, match="has ended: not_worth"):
        file(NAME, task.id, task.head_sha256)


def test_one_thing_at_a_time(server: Server) -> None:
    """A task, then its result, then the next version; the same reviver gets its task again."""
    job, terms, [a, b] = begin(server)
    publish(server, job, terms, (a, 1.0))
    task = task_of(server, job)
    assert task_of(server, job) == task
    assert server.core.reviving.claim("another") == Wait(0.5, "another reviver is at it")
    revive(server, task, 1.0)
    assert server.core.reviving.claim(NAME) == Wait(0.5, "its result waits for the next version")
    publish(server, job, terms, (b, 1.0))
    again = task_of(server, job)
    server.core.reviving.skip(NAME, REVIVER, again.id, "warmup")
    assert server.core.reviving.claim(NAME) == Wait(0.5, "waiting for the next version")
    assert server.core.reviving.claim(NAME, resting=[job]) == Wait(2.0, "no running job is to be revived")


def test_nothing_is_revived_before_the_terms_say_or_after_the_last_version(server: Server) -> None:
    job, terms, [a, _] = begin(server, SOME + "[revival]\nfreeze = 2\n[stop]\nversions = 3\n")
    publish(server, job, terms, (a, 1.0))
    assert server.core.reviving.claim(NAME) == Wait(2.0, "revival begins at version 2")
    publish(server, job, terms, (a, 1.0))
    server.core.reviving.skip(NAME, REVIVER, task_of(server, job).id, "warmup")
    publish(server, job, terms, (a, 1.0))
    assert server.core.reviving.claim(NAME) == Wait(2.0, "the job has reached its last version")


def test_the_job_revived_longest_ago_comes_first(server: Server) -> None:
    jobs = []
    for _ in range(2):
        job, terms, [a, _] = begin(server)
        publish(server, job, terms, (a, 1.0))
        jobs.append(job)
    found = []
    for _ in jobs:
        server.clock.advance(1.0)
        task = server.core.reviving.claim(NAME)
        assert isinstance(task, RevivalTask)
        found.append(task.job)
        server.core.reviving.skip(NAME, REVIVER, task.id, "failed", "RuntimeError")
    assert sorted(found) == sorted(jobs)
    assert [one.why for one in logged(server, RevivalSkipped)] == ["RuntimeError"] * 2


# --- a result --------------------------------------------------------------------------------------------------------


def test_a_result_is_added_behind_the_server_optimizer_of_the_next_version(server: Server) -> None:
    job, terms, [a, b] = begin(server)
    publish(server, job, terms, (a, 1.0))
    before, task = weights(server, job, 1), task_of(server, job)
    done = revive(server, task, 8.0)
    assert done.reason == ""
    [performed] = logged(server, RevivalPerformed)
    assert [one.model_dump() for one in performed.teachers] == [
        {"silo": "a", "update": task.teachers[0].update}
    ]
    assert (performed.revival, performed.version, performed.seed) == (task.id, 1, REPORT.seed)
    assert performed.effect.agreement_after == canonical.hexfloat(REPORT.agreement_after)
    publish(server, job, terms, (b, 2.0))
    assert weights(server, job, 2) == before + 0.5 * 2.0 + 0.5 * 8.0
    assert [one.revival for one in logged(server, AggregationPerformed)] == [None, task.id]
    assert status_of(server.core.reader, task.id) == ("used", "")
    publish(server, job, terms, (b, 2.0))
    assert [one.revival for one in logged(server, AggregationPerformed)] == [None, task.id, None]


def test_a_result_that_is_sent_again_gets_the_first_answer(server: Server) -> None:
    job, terms, [a, _] = begin(server)
    publish(server, job, terms, (a, 1.0))
    task = task_of(server, job)
    first = revive(server, task, 1.0)
    again = revive(server, task, 2.0)  # another file: the task has its result
    assert (first.receipt.index, first.reason) == (again.receipt.index, again.reason)
    assert len(logged(server, RevivalPerformed)) == 1
    assert not server.core.blobs.spooled()


@pytest.mark.parametrize("what", ["nan", "shape", "cut"])
def test_a_file_that_is_no_result_is_refused_and_the_task_goes_on(server: Server, what: str) -> None:
    job, terms, [a, _] = begin(server)
    publish(server, job, terms, (a, 1.0))
    task, path = task_of(server, job), server.directory / "result.safetensors"
    value = np.nan if what == "nan" else 1.0
    write_tensors(path, MANIFEST, {s.name: np.full(s.shape, value, np.float32) for s in MANIFEST.specs})
    if what == "shape":
        path.write_bytes(path.read_bytes().replace(b"[4,3]", b"[3,4]"))
    if what == "cut":
        path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(Refused):
        submit(server, task, path)
    assert not server.core.blobs.spooled()
    assert status_of(server.core.reader, task.id) == ("claimed", "")
    assert revive(server, task, 1.0).reason == ""


def test_no_result_is_taken_while_the_terms_only_synthesise(server: Server) -> None:
    job, terms, [a, _] = begin(server, REVIVED.replace("warmup = 0", "warmup = 2"))
    publish(server, job, terms, (a, 1.0))
    early = task_of(server, job)
    with pytest.raises(Refused, match="before version 2; skip it as warmup"):
        revive(server, early, 1.0)
    assert not server.core.blobs.spooled()
    assert server.core.reviving.skip(NAME, REVIVER, early.id, "warmup").reason == "warmup"
    publish(server, job, terms, (a, 1.0))
    assert revive(server, task_of(server, job), 1.0).reason == ""


def test_a_result_that_comes_when_the_head_has_moved_on_is_skipped(server: Server) -> None:
    job, terms, [a, b] = begin(server)
    publish(server, job, terms, (a, 1.0))
    task = task_of(server, job)
    publish(server, job, terms, (b, 1.0), (a, 1.0))
    done = revive(server, task, 1.0)
    assert done.reason == "late"
    assert parse_entry(done.receipt.entry).type == "revival.skipped"
    publish(server, job, terms, (b, 1.0))
    assert {one.revival for one in logged(server, AggregationPerformed)} == {None}


def test_a_result_that_has_become_too_late_is_dropped_when_the_buffer_closes(server: Server) -> None:
    """As it can only when a step was frozen before the result came, and another version follows."""
    job, terms, [a, b] = begin(server, REVIVED.replace("late = 2", "late = 1"))
    publish(server, job, terms, (a, 1.0))
    task = task_of(server, job)
    assert server.send(b, job, terms, 1.0).reason == ""
    frozen = server.core.aggregation.freeze(job)
    assert frozen is not None
    assert revive(server, task, 1.0).reason == ""
    assert server.core.aggregation.finish(frozen)  # not frozen again: it has no part in this one
    assert status_of(server.core.reader, task.id) == ("done", "")
    publish(server, job, terms, (a, 1.0))
    assert status_of(server.core.reader, task.id) == ("dropped", "late")
    assert [one.reason for one in logged(server, RevivalSkipped)] == ["late"]
    assert {one.revival for one in logged(server, AggregationPerformed)} == {None}


def test_a_task_past_its_deadline_is_given_up_and_its_result_refused(server: Server) -> None:
    job, terms, [a, b] = begin(server)
    publish(server, job, terms, (a, 1.0))
    task = task_of(server, job)
    server.clock.advance(PATIENCE)
    server.core.reviving.give_up()
    assert status_of(server.core.reader, task.id) == ("claimed", "")
    server.clock.advance(1.0)
    server.core.reviving.give_up()
    assert status_of(server.core.reader, task.id) == ("skipped", "deadline")
    assert revive(server, task, 1.0).reason == "deadline"
    publish(server, job, terms, (b, 1.0))
    late = task_of(server, job)
    server.clock.advance(PATIENCE + 1)
    assert revive(server, late, 1.0).reason == "deadline"  # before anybody looked
    publish(server, job, terms, (a, 1.0))
    third = task_of(server, job)
    server.clock.advance(PATIENCE + 1)
    publish(server, job, terms, (a, 1.0))
    taken_over = server.core.reviving.claim("another")
    assert isinstance(taken_over, RevivalTask)
    assert [one.revival for one in logged(server, RevivalSkipped)] == [task.id, late.id, third.id]


def test_tasks_and_results_end_with_their_job(server: Server) -> None:
    ends = []
    for finished in (False, True):
        job, terms, [a, _] = begin(server)
        publish(server, job, terms, (a, 1.0))
        task = task_of(server, job)
        if finished:
            revive(server, task, 1.0)
        server.core.jobs.change(ADMIN, job, "abort", "")
        ends.append(status_of(server.core.reader, task.id))
        assert isinstance(server.core.reviving.claim(NAME), Wait)
        assert server.core.reviving.allowed([job]) == {}
    assert ends == [("skipped", "job_ended"), ("dropped", "job_ended")]
    assert revive(server, task, 1.0).reason == ""  # it was taken, once
