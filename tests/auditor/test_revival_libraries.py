"""Results computed with different libraries are inputs of a replay: exact whoever replays, and a reviewer is told."""

from anabranch.wire import canonical
from auditor.export import Export
from auditor.lineage import revivals
from auditor.replay import replay
from auditor.words import revived as words_of
from tests.auditor import revived


def test_results_of_another_torch_are_replayed_exactly_and_told(story, audit, tmp_path):
    updates = revived.begin(story)
    for number, release in enumerate(("2.13.0", "9.9.9"), start=1):
        revived.perform(
            story, f"r-{number}", updates, libraries={"torch": release}, seconds=canonical.hexfloat(2.0)
        )
        revived.go_on(story, f"r-{number}")
    audited = audit(story)
    assert audited.report.findings == []
    done = replay(Export(story.book.directory), audited.history, tmp_path)
    assert (done.exact, done.different, done.missing) == (3, [], [])
    [job] = audited.history.jobs.values()
    told = revivals(job, 3)
    assert told["libraries"] == {"torch 2.13.0": 1, "torch 9.9.9": 1}
    assert "computed with torch 2.13.0 1 time, torch 9.9.9 1 time" in words_of(told)
    assert revivals(job, 2)["libraries"] == {"torch 2.13.0": 1}
