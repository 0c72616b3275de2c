"""What the log says is not kept any more: an explanation when it was due, a finding when it was not."""

import json

import pytest

from auditor.export import Export
from auditor.gaps import find_gaps
from auditor.replay import replay
from auditor.retention import pruned_objects
from tests.auditor import trouble


@pytest.fixture
def found(audit):
    """found(story) -> what the auditor has against it."""
    return lambda story: [finding.what for finding in audit(story).report.findings]


def remove(story, checked):
    """What the log says is gone, gone."""
    gone = pruned_objects(checked.history)
    for digest in gone:
        story.book.path(digest).unlink()
    return gone


def expired(story):
    """A whole job, after its window: all is pruned but the head (and the best, which is version 1)."""
    story.begin().whole()
    trouble.best(story, 1)
    story.prune("updates", 30, [(0, 0), (2, 2)])
    story.prune("updates", 0, [])
    return story


def test_a_pruned_job_rests_on_digests_and_that_is_no_fault(story, audit, tmp_path):
    gone = remove(expired(story), audit(story))
    assert len(gone) == 1 + 3 + 6  # version 0, version 2 with optimizer and average, all deltas
    checked = audit(story)
    assert checked.report.verified
    assert all((one.pruned is not None) == (one.kind != "statements") for one in checked.report.missing)
    assert {one.digest for one in checked.report.missing} == gone.keys()
    done = replay(Export(story.book.directory), checked.history, tmp_path)
    assert (done.exact, [one.version for one in done.digest_only], done.missing) == (0, [1, 2, 3], [])
    assert "delta of update" in " ".join(done.digest_only[0].pruned)
    assert done.ok
    assert not [gap for gap in find_gaps(checked.report, checked.history) if "not in the export" in gap.rule]


def test_snapshots_in_between_are_recomputed(story, audit, tmp_path):
    story.begin().whole()
    story.prune("snapshots", 8, [(2, 2)])
    assert len(remove(story, audit(story))) == 3
    checked = audit(story)
    done = replay(Export(story.book.directory), checked.history, tmp_path)
    assert (done.exact, done.digest_only, done.missing) == (3, [], [])


def test_what_is_missing_besides_is_a_failure(story, audit, tmp_path):
    story.begin().whole()
    story.prune("snapshots", 8, [(2, 2)])
    remove(story, audit(story))
    received = [json.loads(data)["detail"] for data in story.book.entries if b"update.received" in data]
    story.book.path(received[1]["delta_sha256"]).unlink()
    checked = audit(story)
    done = replay(Export(story.book.directory), checked.history, tmp_path)
    assert [one.version for one in done.missing] == [2]
    # it needs version 2, which could not be made again
    assert [one.version for one in done.digest_only] == [3]
    assert not done.ok
    [gap] = [
        gap for gap in find_gaps(checked.report, checked.history) if gap.rule == "content not in the export"
    ]
    assert gap.what.startswith("1 deltas are not in the export, and no entry says they were pruned")


def test_content_that_another_version_names_is_not_explained(story, audit):
    """Version 2 has the average of version 1 as its parameters, say: it goes with the last that names it."""
    story.begin().whole()
    story.prune("snapshots", 8, [(2, 2)])
    published = [json.loads(data) for data in story.book.entries if b"model.published" in data]
    shared = published[2]["detail"]["ema_sha256"]
    head = published[3]["detail"]["ema_sha256"]
    story.book.entries[:] = [data.replace(head.encode(), shared.encode()) for data in story.book.entries]
    story.book.rebuild()
    assert shared not in pruned_objects(audit(story).history)


@pytest.mark.parametrize(
    ("rule", "days", "versions", "changed", "said"),
    [
        ("snapshots", 6.9, [(2, 2)], {}, "prunes version 2 before its time"),
        ("snapshots", 8, [(3, 3)], {}, "prunes version 3 before its time"),
        ("snapshots", 8, [(1, 2)], {}, "prunes version 1, which is the head or the best"),
        ("snapshots", 8, [(0, 0)], {}, "from which a replay starts"),
        ("snapshots", 8, [(2, 4)], {}, "version 4, which was not published"),
        ("snapshots", 8, [(2, 2), (2, 2)], {"seconds": 1}, "prunes after 1 s, the terms say 604800 s"),
        ("snapshots", 31, [], {}, "deltas before their job has ended"),
        ("updates", 29.9, [], {}, "needs before its time"),
        ("updates", 29.9, [(0, 0)], {}, "needs before its time"),
        ("updates", 31, [(0, 3)], {}, "which is the head or the best"),
    ],
)
def test_what_no_honest_server_prunes(story, found, rule, days, versions, changed, said):
    story.begin().whole()
    trouble.best(story, 1)
    story.prune(rule, days, versions, **changed)
    [what] = found(story)
    assert said in what


def test_a_running_job_keeps_what_a_replay_and_its_silos_need(story, found):
    story.begin()
    story.aggregate([story.update("a", story.lease("a"))])
    story.lease("b")
    story.aggregate([story.update("a", story.lease("a"))])
    story.aggregate([story.update("a", story.lease("a"))])
    story.prune("snapshots", 8, [(1, 1)])
    story.prune("snapshots", 0, [(2, 2)])
    story.prune("snapshots", 0, [(2, 2)])
    story.lease("a", version=2)
    story.prune("updates", 31, [])
    assert [what.partition(",")[0] for what in found(story)] == [
        "prunes version 1",  # silo b is at work on it
        "version 2 was pruned before",
        "hands out version 2",
        "prunes what a replay of job digits-1 needs before the job has ended",
    ]


def test_a_release_begins_the_window_anew(story, found):
    story.begin().whole()
    story.book.skipped += 20 * 86400
    trouble.export(story, 3)
    story.prune("updates", 29, [])
    assert ["needs before its time" in what for what in found(story)] == [True]


def test_commands_tell_what_was_pruned(story, run, audit, asked, tmp_path):
    remove(expired(story), audit(story))
    export = story.book.write()
    code, out, _ = run("replay", export)
    assert code == 0
    assert "no step could be recomputed any more; 3 more rest on digests only" in " ".join(out.split())
    code, out, _ = run("verify", export)
    assert code == 0
    assert "10 pruned, as the log says, 0 not in the export" in " ".join(out.replace("│", "").split())
    traced = asked("lineage", export)["lineage"]
    assert traced["pruned"] == {"snapshot_entry": None, "deltas_entry": len(story.book.entries) - 1}
    document = asked("report", export, "-o", tmp_path / "out")
    (one,) = document["releases"]
    assert one["replay"]["verdict"] == "digests"
    assert (
        "0 of 3 steps recomputed bit for bit; 3 rest on digests only (version 1 to 3)"
        in one["replay"]["words"]
    )
    assert [line["what"] for line in document["admin"] if line["type"] == "retention.pruned"] == [
        "snapshots of versions 0, 2 of digits-1 not kept any more, 30 days after its end and last release",
        "deltas of all updates of digits-1 not kept any more, 30 days after its end and last release",
    ]
    assert "on digests only, their inputs pruned as the log says: 3 versions" in document["attention"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "0 versions recomputed, 3 on digests only" in page
    assert "10 pruned, as the log says, 0 not in the export" in page
