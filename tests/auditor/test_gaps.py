"""gaps: what has not ended is open, what cannot be is impossible, and each is named with its entry."""

import json
from dataclasses import replace

import pytest

from anabranch.tlog.entry import Target
from anabranch.wire import canonical
from auditor.gaps import find_gaps
from tests.auditor import trouble

JOB = "digits-1"


def test_what_is_open_is_named_with_its_entry(busy, run, asked):
    found = asked("gaps", busy.book.directory)["gaps"]
    assert found["impossible"] == []
    rules = [one["rule"] for one in found["open"]]
    assert sorted(rules) == sorted(
        [
            "job not ended",
            "version never evaluated",
            "update not merged yet",
            "lease without an end",
            "silo lost",
            "silo never enrolled",
        ]
    )
    types = {
        "job not ended": "job.submitted",
        "version never evaluated": "model.published",
        "update not merged yet": "update.received",
        "lease without an end": "lease.issued",
        "silo lost": "silo.lost",
        "silo never enrolled": "silo.invited",
    }
    for one in found["open"]:
        assert canonical.decode(busy.book.entries[one["entry"]])["type"] == types[one["rule"]]
    code, out, _ = run("gaps", busy.book.directory)
    assert code == 0
    assert "0 impossible, 6 open" in out


def test_a_whole_story_leaves_nothing_open(told, run, asked):
    assert asked("gaps", told.book.directory)["gaps"] == {"impossible": [], "open": []}


def test_a_job_that_waits_says_for_what(story, audit):
    for silo in ("a", "b"):
        story.enrol(silo)
    story.submit()
    story.decide("a")
    checked = audit(story)
    (gap,) = find_gaps(checked.report, checked.history)
    assert (gap.kind, gap.rule) == ("open", "job not started")
    assert "1 of the 2 it needs have approved; b has not decided" in gap.what


def update_without_lease(story):
    lease = story.lease("a")
    story.book.entries.pop()
    story.book.rebuild()
    story.update("a", lease)


def unlogged_update(story):
    story.aggregate([replace(story.update("a", story.lease("a")), id="update-invented")])


def too_few(story):
    story.start(["a"])


def unpublished(story):
    detail = {"version": 0, "sha256": "f" * 64, "selector": "head"}
    story.book.log("model.exported", Target(kind="model", id=f"{JOB}/7"), detail | {"version": 7}, job=JOB)


def best_of_nothing(story):
    trouble.best(story, 0)


def another_metric(story):
    story.evaluate("a", story.lease("a", "evaluate"))
    trouble.best(story, 0, "loss")


def started_twice(story):
    story.start()


def resumed_unpaused(story):
    story.change("job.resumed")


def work_while_paused(story):
    story.change("job.paused")
    story.lease("a")


def completed_while_paused(story):
    story.change("job.paused")
    story.change("job.completed")


def back_without_leaving(story):
    trouble.presence(story, "silo.returned", "a")


def back_in_another_run(story):
    trouble.presence(story, "silo.lost", "a")
    trouble.start_server(story, 1)
    trouble.presence(story, "silo.returned", "a")


def two_servers(story):
    trouble.start_server(story, 2)
    trouble.start_server(story, 2)


def certificate_of_a_stranger(story):
    trouble.certificate(story, "z", "1")


def renewal_of_nothing(story):
    trouble.certificate(story, "a", "2", previous="1")


def renewal_of_another_silos(story):
    trouble.certificate(story, "a", "1")
    trouble.certificate(story, "b", "2", previous="1")


def renewal_after_revocation(story):
    trouble.certificate(story, "a", "1")
    story.revoke("a")
    story.generation = 10
    story.enrol("a", token="second")
    trouble.certificate(story, "a", "2", previous="1")


def old_approval_after_revocation(story):
    story.revoke("a")
    story.generation = 10
    story.enrol("a", token="second")
    story.lease("a")


def merged_after_its_silo_left(story):
    update = story.update("a", story.lease("a"))
    story.decide("a", "withdraw")
    story.aggregate([update])


def evaluated_without_a_lease(story):
    lease = story.lease("a", "evaluate")
    story.evaluate("a", lease)
    story.evaluate("a", lease)


def lease_of_a_silo_that_withdrew(story):
    lease = story.lease("a")
    story.decide("a", "withdraw")
    story.decide("a")
    story.update("a", lease)


IMPOSSIBLE = {
    update_without_lease: "was never issued",
    unlogged_update: "update update-invented was never received",
    too_few: "its terms ask for 2",
    unpublished: "version 7 was not published",
    best_of_nothing: "which no silo has evaluated",
    another_metric: "the metric is loss; the job says accuracy",
    started_twice: "was running before, not waiting",
    resumed_unpaused: "was running before, not paused",
    work_while_paused: "is paused, and work is handed out",
    completed_while_paused: "was paused before, not running",
    back_without_leaving: "was not lost since",
    back_in_another_run: "was not lost since the server's last start",
    two_servers: "starts in epoch 2, but the start before was in epoch 2",
    certificate_of_a_stranger: "silo z was never invited",
    renewal_of_nothing: "never issued to",
    renewal_of_another_silos: "never issued to",
    renewal_after_revocation: "which was revoked",
    old_approval_after_revocation: "has withdrawn, not approved",
    merged_after_its_silo_left: "has withdrawn, not approved",
    evaluated_without_a_lease: "holds no lease to evaluate version 0",
    lease_of_a_silo_that_withdrew: "was ended when its silo had withdrawn before",
}


MERGES = (unlogged_update, merged_after_its_silo_left)


@pytest.mark.parametrize("tell", IMPOSSIBLE, ids=lambda tell: tell.__name__)
def test_what_cannot_be_is_found_in_its_entry(story, run, tell):
    story.begin()
    tell(story)
    code, out, _ = run("gaps", story.book.write(), "--json")
    document = json.loads(out)
    assert code == 1
    found = [one for one in document["gaps"]["impossible"] if IMPOSSIBLE[tell] in one["what"]]
    last = len(story.book.entries) - (2 if tell in MERGES else 1)  # the version follows its aggregation
    assert [one["entry"] for one in found] == [last]
    assert canonical.decode(story.book.entries[found[0]["entry"]])["type"] == found[0]["rule"]
    assert not document["verify"]["verified"]
    code, out, _ = run("gaps", story.book.directory)
    assert code == 1
    assert f"{len(document['gaps']['impossible'])} impossible" in out


def test_pausing_and_waiting_again_is_possible(story, audit):
    for silo in ("a", "b"):
        story.enrol(silo)
    story.submit()
    story.decide("a")
    story.change("job.paused")
    story.change("job.resumed")
    story.decide("b")
    story.start()
    story.change("job.paused")
    story.decide("b", "withdraw")
    story.change("job.resumed")
    story.decide("b")
    story.start()
    story.lease("a")
    assert audit(story).report.findings == []
