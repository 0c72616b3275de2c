"""Revivals before the auditor: told, replayed bit by bit, and found out where no honest server writes so."""

from typing import get_args

import pytest

from anabranch.terms import Revival
from anabranch.tlog.revivals import SkipReason
from auditor import words
from auditor.export import Export
from auditor.gaps import find_gaps
from auditor.replay import replay
from auditor.retention import pruned_objects
from tests.auditor import revived


@pytest.fixture
def found(audit):
    """found(story) -> what the auditor has against it."""
    return lambda story: [finding.what for finding in audit(story).report.findings]


@pytest.fixture
def replayed(audit, tmp_path):
    """replayed(story) -> what becomes of its steps."""

    def replayed(story):
        return replay(Export(story.book.directory), audit(story).history, tmp_path)

    return replayed


def whole(story):
    """A result that is used, one that is dropped, tasks without one, and the end."""
    updates = revived.begin(story)
    revived.perform(story, "r-1", updates)
    revived.go_on(story, "r-1")
    revived.skip(story, "r-2", "warmup")
    revived.skip(story, "r-3", "failed", why="RuntimeError")
    revived.perform(story, "r-4", updates)
    story.decide("b", teaches=False)
    revived.skip(story, "r-4", "withdrawn")
    revived.go_on(story)
    revived.perform(story, "r-5", updates[:1])
    story.change("job.completed")
    revived.skip(story, "r-5", "job_ended")
    return updates


def test_a_story_with_revivals_is_verified_and_replayed(story, found, replayed):
    whole(story)
    assert found(story) == []
    done = replayed(story)
    assert (done.exact, done.different, done.missing) == (3, [], [])


def test_a_step_that_adds_more_than_the_terms_say_is_not_reproduced(story, found, replayed):
    updates = revived.begin(story)
    revived.perform(story, "r-1", updates)
    update, honest = story.update("a", story.lease("a")), story.terms
    more = revived.REVIVED.model_copy(update={"revival": Revival(freeze=0, warmup=1, late=2, gain=0.9)})
    story.terms = honest.model_copy(update={"file": more})
    story.aggregate([update], revival="r-1")
    story.terms = honest
    assert found(story) == []
    [step] = replayed(story).different
    assert (step.version, "parameters: published" in step.differs) == (2, True)


def test_a_step_that_hides_its_revival_is_not_reproduced(story, found, replayed):
    updates = revived.begin(story)
    revived.perform(story, "r-1", updates)
    honest = story.book.log
    story.book.log = lambda type, target, detail, **more: honest(
        type, target, {**detail, "revival": None} if type == "aggregation.performed" else detail, **more
    )
    revived.go_on(story, "r-1")
    assert found(story) == []
    assert [step.version for step in replayed(story).different] == [2]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s, u: revived.perform(s, "r-1", u, version=0), "revives version 0, the terms begin with 1"),
        (lambda s, u: revived.perform(s, "r-1", u, version=2), "version 2 was not published"),
        (lambda s, u: revived.perform(s, "r-1", [u[0], u[0]]), "has a silo teach twice"),
        (lambda s, u: taught_by(s, "b", u[0]), "which is no merged update of silo b"),
        (lambda s, u: taught_by(s, "a", s.update("a", s.lease("a"))), "which is no merged update of silo a"),
        (
            lambda s, u: silenced(s, u, lambda: s.decide("b", teaches=False)),
            "silo b does not allow its models",
        ),
        (lambda s, u: silenced(s, u, lambda: s.decide("b", "withdraw")), "silo b does not allow its models"),
        (lambda s, u: silenced(s, u, lambda: s.decide("b", "deny")), "silo b does not allow its models"),
        (lambda s, u: silenced(s, u, lambda: s.revoke("b")), "silo b does not allow its models"),
        (lambda s, u: twice(s, u), "revival r-1 has ended before"),
        (lambda s, u: after_its_end(s, u), "revival r-1 has ended before"),
        (lambda s, u: late(s, u), "revival r-1 is 2 versions late, the terms take less than 2"),
        (lambda s, u: revived.go_on(s, "r-1"), None),
    ],
)
def test_what_no_honest_server_says_was_performed(story, found, change, said):
    updates = revived.begin(story)
    if said is None:  # used, and never performed: there is not even a file
        story.deltas["r-1"] = story.deltas[updates[0].id]
        said = "uses revival r-1, which was never performed"
    change(story, updates)
    assert [said in what for what in found(story)] == [True]


def taught_by(story, silo, update):
    revived.perform(story, "r-1", [], teachers=[{"silo": silo, "update": update.id}])


def silenced(story, updates, leave):
    leave()
    revived.perform(story, "r-1", updates)


def twice(story, updates):
    revived.perform(story, "r-1", updates)
    revived.perform(story, "r-1", updates)


def after_its_end(story, updates):
    revived.skip(story, "r-1", "deadline")
    revived.perform(story, "r-1", updates)


def late(story, updates):
    revived.go_on(story)
    revived.go_on(story)
    revived.perform(story, "r-1", updates, version=1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: revived.go_on(s, "r-1"), "uses revival r-1, which was used before; it counts once"),
        (lambda s: revived.skip(s, "r-1", "late", version=1), "revival r-1 was used before"),
    ],
)
def test_a_result_counts_once(story, found, change, said):
    updates = revived.begin(story)
    revived.perform(story, "r-1", updates)
    revived.go_on(story, "r-1")
    change(story)
    assert [said in what for what in found(story)] == [True]


@pytest.mark.parametrize(
    ("between", "said"),
    [
        (lambda s: (revived.go_on(s), revived.go_on(s)), "is 2 versions late, the terms take less than 2"),
        (lambda s: s.decide("b", teaches=False), "silo b does not allow its models to teach, and does"),
        (lambda s: s.revoke("b"), "silo b does not allow its models to teach, and does"),
        (lambda s: revived.skip(s, "r-1", "late"), "uses revival r-1, which was dropped before"),
        (lambda s: revived.skip(s, "r-1", "late", version=0), "says revival r-1 began elsewhere"),
    ],
)
def test_a_result_that_may_not_be_used(story, found, between, said):
    updates = revived.begin(story)
    revived.perform(story, "r-1", updates)
    between(story)
    revived.go_on(story, "r-1")
    assert any(said in what for what in found(story))


def test_a_job_without_revival_has_none(story, found):
    story.begin()
    updates = [story.update("a", story.lease("a")), story.update("b", story.lease("b"))]
    story.aggregate(updates)
    revived.perform(story, "r-1", updates)
    assert found(story) == ["revival r-1 is of a job without [revival]"]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ({"teaches": False}, []),
        ({"teaches": None}, ["says of revival what the job does not ask, or nothing"]),
        ({"teaches": False, "revival": True}, ["logs revival = True, but the silo signed revival = False"]),
    ],
)
def test_a_silos_word_is_what_it_signed(story, found, word, said):
    story.begin(revived.REVIVED)
    story.decide("a", **word)
    assert found(story) == said


def test_a_job_that_ended_leaves_no_result_open(story, found):
    updates = revived.begin(story)
    revived.perform(story, "r-1", updates)
    story.change("job.completed")
    assert found(story) == ["is the last one: job digits-1 has ended, and revival r-1 has no fate"]


def test_a_result_that_waits_is_an_open_end(story, audit):
    updates = revived.begin(story)
    revived.perform(story, "r-1", updates)
    checked = audit(story)
    [gap] = [gap for gap in find_gaps(checked.report, checked.history) if gap.rule == "revival not used yet"]
    assert (gap.kind, "revival r-1 of digits-1 waits for its aggregation" in gap.what) == ("open", True)


def test_a_pruned_result_is_explained(story, audit, replayed):
    whole(story)
    story.prune("updates", 31, [])
    gone = pruned_objects(audit(story).history)
    assert {story.deltas[name] for name in ("r-1", "r-4", "r-5")} <= gone.keys()
    for digest in gone:
        story.book.path(digest).unlink()
    assert audit(story).report.verified
    done = replayed(story)
    assert ([one.version for one in done.digest_only], done.missing) == ([1, 2, 3], [])
    assert "delta of revival r-1" in done.digest_only[1].pruned


def test_lineage_report_and_silo_tell_of_revivals(story, asked, run, tmp_path):
    whole(story)
    story.book.write()
    key = ("--vkey", story.book.signer.vkey)
    traced = asked("lineage", story.book.directory, "--version", "head", *key)["lineage"]
    told = {
        "used_in": [2],
        "teachers": {"a": 1, "b": 1},
        "libraries": {"torch 2.13.0": 1},
        "performed": 3,
        "not_used": {"failed": 1, "job_ended": 1, "warmup": 1, "withdrawn": 1},
    }
    assert traced["revivals"] == told
    assert [step["revival"] for step in traced["steps"]] == [None, "r-1", None]
    assert asked("silo", story.book.directory, "b", *key)["silo"]["revivals_taught"] == 2
    report = asked("report", story.book.directory, "-o", tmp_path / "out", *key)
    assert (report["jobs"][0]["revivals"], report["jobs"][0]["teaching"]) == (told, ["a"])
    assert [one["what"] for one in report["incidents"]] == [
        "revival r-3 of digits-1 from version 2 is not used: it failed"
    ]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Revivals: used in 1 version (2 to 2)" in page
    assert "Silos that allow their models to teach: a." in page
    _, out, _ = run("lineage", story.book.directory, "--version", "head", *key)
    assert "used in 1 version (2 to 2), taught by a 1 time, b 1 time" in " ".join(out.split())


def test_every_reason_has_words():
    assert words.SKIPPED.keys() == set(get_args(SkipReason))
