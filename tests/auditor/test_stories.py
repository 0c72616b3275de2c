"""A server that holds the log's key can sign any story. These do not hold together, and the auditor says where."""

from dataclasses import replace

import pytest

from anabranch.rules.profile import NUMERIC_PROFILE
from anabranch.tlog.checkpoint import Checkpoint
from anabranch.tlog.entry import Target
from anabranch.wire import canonical
from tests.auditor.book import ADMIN, ORIGIN, key

JOB = "digits-1"


def assert_found(report, step, text):
    """Something was found in this step, and it says this."""
    texts = [finding.what for finding in report.findings if finding.step == step]
    assert any(text in what for what in texts), report.findings
    assert not report.verified


# signatures


def test_an_update_signed_by_another_silo(story, audit):
    story.begin().update("a", story.lease("a"), private=story.update_key("b"))
    assert_found(audit(story).report, 4, "no update key that silo a registered")


def test_an_update_signed_by_a_key_nobody_registered(story, audit):
    story.begin().update("a", story.lease("a"), private=key(9))
    assert_found(audit(story).report, 4, "no update key that silo a registered")


def test_an_approval_signed_with_the_update_key(story, audit):
    story.enrol("a")
    story.submit()
    story.decide("a", private=story.update_key("a"))
    assert_found(audit(story).report, 4, "no approver key that silo a registered")


def test_a_key_is_worthless_after_its_silo_was_revoked(story, audit):
    story.begin()
    lease = story.lease("a")
    story.revoke("a")
    story.update("a", lease)
    report = audit(story).report
    assert_found(report, 4, "after the silo was revoked")
    assert_found(report, 5, "silo a is not enrolled, or was revoked")


def test_an_upload_that_was_open_when_its_silo_was_revoked_ends_in_a_refusal(story, audit):
    story.begin()
    lease = story.lease("a")
    story.revoke("a")
    story.update("a", lease)
    entry = canonical.decode(story.book.entries[-1])
    told = {name: entry["detail"][name] for name in ("update", "silo", "delta_sha256")}
    entry |= {"type": "update.refused", "action": "refused", "detail": told | {"code": "bad_lease"}}
    entry["target"].pop("sha256")
    entry["outcome"] = {"status": "denied", "reason": "bad_lease"}
    story.book.entries[-1] = canonical.encode(entry)
    story.book.rebuild()
    assert audit(story).report.verified


def test_a_silo_that_enrols_again_may_work_again(story, audit):
    story.begin()
    story.revoke("a")
    story.generation = 10
    story.enrol("a", token="second")
    story.decide("a")
    story.update("a", story.lease("a"))
    assert audit(story).report.verified


def test_a_revoked_key_does_not_come_back(story, audit):
    story.begin()
    story.revoke("a")
    story.enrol("a", token="second")
    assert_found(audit(story).report, 4, "which was revoked")


def test_the_statement_behind_an_update_is_gone(story, audit):
    story.begin().update("a", story.lease("a"))
    report = audit(story).report
    assert report.verified
    story.book.path(_statement(story)).unlink()
    assert_found(audit(story).report, 4, "nothing proves it")


def _statement(story):
    detail = canonical.decode(story.book.entries[-1])["detail"]
    return detail["statement_sha256"]


@pytest.mark.parametrize(
    "changed",
    [{"sequence": 99}, {"bytes": 1}, {"delta_sha256": "d" * 64}, {"update": "update-other"}],
    ids=str,
)
def test_an_update_logged_with_other_words_than_were_signed(story, audit, changed):
    story.begin().update("a", story.lease("a"), **changed)
    assert_found(audit(story).report, 4, next(iter(changed)))


def test_a_statement_swapped_for_an_earlier_one(story, audit):
    story.begin()
    first = story.update("a", story.lease("a"))
    document = canonical.decode(story.book.entries[-1])
    story.book.append(canonical.encode(document | {"id": document["id"][:-1] + "f"}))
    assert_found(audit(story).report, 5, f"update {first.id} was received before")


def test_a_silo_that_was_shown_another_log(story, audit):
    story.begin()
    lease = story.lease("a")
    story.update("a", lease, seen=Checkpoint(ORIGIN, 5, b"\x05" * 32))
    assert_found(audit(story).report, 4, "not this log")


def test_a_silo_cannot_have_seen_the_future(story, audit):
    story.begin()
    lease = story.lease("a")
    story.update("a", lease, seen=Checkpoint(ORIGIN, 10_000, b"\x05" * 32))
    assert_found(audit(story).report, 4, "had seen a log of 10000 entries")


def test_two_silos_with_one_key(story, audit):
    story.begin()
    story.update_key = lambda silo: key(201)
    story.enrol("c")
    story.enrol("d")
    assert_found(audit(story).report, 4, "key of silo c, as update key of silo d")


# silos and jobs


def test_enrolled_without_an_invitation(story, audit):
    story.enrol("a")
    del story.book.entries[1]
    story.book.rebuild()
    assert_found(audit(story).report, 5, "was not invited with token t-a")


def test_a_token_used_twice(story, audit):
    story.enrol("a")
    document = canonical.decode(story.book.entries[-1])
    document["detail"]["csr_sha256"] = "d" * 64
    story.book.append(canonical.encode(document))
    assert_found(audit(story).report, 5, "token t-a was used before")


def test_an_enrolment_repeated_because_its_answer_was_lost(story, audit):
    story.enrol("a")
    story.book.append(story.book.entries[-1])
    assert audit(story).report.verified


def test_a_job_started_without_approvals(story, audit):
    story.enrol("a")
    story.submit()
    story.decide("a")
    story.start(["a", "b"])
    assert_found(audit(story).report, 5, "silo b has not decided")


def test_a_job_started_with_too_few_silos(story, audit):
    story.enrol("a")
    story.submit()
    story.decide("a")
    story.start(["a"])
    assert_found(audit(story).report, 5, "its terms ask for 2")


def test_work_for_a_silo_that_denied(story, audit):
    story.begin()
    story.decide("b", "withdraw")
    story.lease("b")
    assert_found(audit(story).report, 5, "silo b has withdrawn, not approved")


def test_a_job_whose_entry_differs_from_the_approved_terms(story, audit):
    story.enrol("a")
    story.submit()
    document = canonical.decode(story.book.entries[3])
    document["detail"]["archive_sha256"] = "e" * 64
    story.book.entries[3] = canonical.encode(document)
    story.book.rebuild()
    assert_found(audit(story).report, 5, "the terms silos approve say")


# leases and updates


def test_an_update_without_a_lease(story, audit):
    story.begin()
    lease = story.lease("a")
    story.book.entries.pop()
    story.book.rebuild()
    story.update("a", lease)
    assert_found(audit(story).report, 5, f"lease {lease} was never issued")


def test_a_lease_used_for_two_updates(story, audit):
    story.begin()
    lease = story.lease("a")
    story.update("a", lease)
    story.update("a", lease)
    assert_found(audit(story).report, 5, f"lease {lease} was used for update")


def test_an_update_on_another_silos_lease(story, audit):
    story.begin().update("b", story.lease("a"))
    assert_found(audit(story).report, 5, "was issued to silo a")


def test_an_update_on_an_evaluation_lease(story, audit):
    story.begin().update("a", story.lease("a", "evaluate"))
    assert_found(audit(story).report, 5, "was issued to evaluate")


@pytest.mark.parametrize("changed", [{"staleness": 3}, {"version": 7}], ids=str)
def test_a_staleness_or_base_the_lease_does_not_give(story, audit, changed):
    story.begin().update("a", story.lease("a"), **changed)
    assert_found(audit(story).report, 5, str(next(iter(changed.values()))))


def test_an_update_used_twice(story, audit):
    story.begin()
    update = story.update("a", story.lease("a"))
    story.aggregate([update])
    story.aggregate([update])
    assert_found(audit(story).report, 5, f"update {update.id} was merged before")


def test_an_update_used_twice_in_one_aggregation(story, audit):
    story.begin()
    update = story.update("a", story.lease("a"))
    story.aggregate([update, update])
    assert_found(audit(story).report, 5, f"update {update.id} was merged before")


def test_a_retired_update_used_all_the_same(story, audit):
    story.begin()
    update = story.update("a", story.lease("a"))
    story.retire(update, "withdrawn")
    story.aggregate([update])
    assert_found(audit(story).report, 5, f"update {update.id} was retired before")


def test_an_update_nobody_sent(story, audit):
    story.begin()
    update = story.update("a", story.lease("a"))
    story.aggregate([replace(update, id="update-invented")])
    assert_found(audit(story).report, 5, "update update-invented was never received")


def test_an_update_passed_off_as_another_silos(story, audit):
    story.begin()
    update = story.update("a", story.lease("a"))
    story.aggregate([replace(update, silo="b")])
    assert_found(audit(story).report, 5, "as another one than was received")


def test_a_received_update_refused_afterwards(story, audit):
    story.begin()
    update = story.update("a", story.lease("a"))
    detail = {"silo": "a", "code": "too_stale", "update": update.id}
    story.book.log("update.refused", Target(kind="update", id=update.id), detail, job=JOB)
    assert_found(audit(story).report, 5, "cannot be refused any more")


def test_an_update_left_behind_by_a_job_that_ended(story, audit):
    story.begin()
    update = story.update("a", story.lease("a"))
    story.change("job.completed")
    assert_found(audit(story).report, 5, f"update {update.id} has no fate")


# versions


def test_work_after_the_end(story, audit):
    story.begin().whole()
    story.lease("a")
    assert_found(audit(story).report, 5, "has ended before")


def test_a_version_from_nowhere(story, audit):
    story.begin()
    story.publish(parameters_sha256="f" * 64, parent=0, step="step-1")
    assert_found(audit(story).report, 5, "no aggregation made version 1")


def test_a_version_is_left_out(story, audit):
    story.begin().whole()
    published = [
        i
        for i, entry in enumerate(story.book.entries)
        if canonical.decode(entry)["type"] == "model.published"
    ]
    del story.book.entries[published[2]]
    story.book.rebuild()
    assert_found(audit(story).report, 5, "but the head is 1")


def test_version_zero_is_what_the_owner_submitted(story, audit):
    story.enrol("a")
    story.submit()
    document = canonical.decode(story.book.entries[-1])
    document["detail"]["parameters_sha256"] = "f" * 64
    story.book.entries[-1] = canonical.encode(document)
    story.book.rebuild()
    assert_found(audit(story).report, 5, "the version 0 is " + "f" * 64)


def test_an_export_of_another_model(story, audit):
    story.begin()
    detail = {"version": 0, "sha256": "f" * 64, "selector": "head"}
    story.book.log("model.exported", Target(kind="model", id=f"{JOB}/0"), detail, actor=ADMIN, job=JOB)
    assert_found(audit(story).report, 5, "which is not version 0")


def test_an_aggregation_that_skips_a_version(story, audit):
    story.begin()
    story.aggregate([story.update("a", story.lease("a"))], version=2, base=1)
    assert_found(audit(story).report, 5, "makes version 2 from 1, but the head is 0")


def test_the_profile_is_the_one_the_log_names(story):
    assert canonical.decode(story.book.entries[0])["detail"]["numeric_profile"] == NUMERIC_PROFILE
