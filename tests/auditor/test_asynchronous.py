"""Asynchronous strategies in a story: what an honest server logs is exact, what another one logs is found."""

from collections import defaultdict
from math import cos, nextafter, pi

import pytest

from anabranch.rules import step
from anabranch.terms import Aggregation, Job, JobFile, ServerOptimizer, Silos
from anabranch.tlog.entry import parse_entry
from anabranch.wire import canonical
from auditor import lineage
from auditor.chronicle import Chronicle
from auditor.export import Export
from auditor.replay import replay
from tests.auditor.book import Book
from tests.auditor.story import Story

RULES = {
    "fedasync": Aggregation(strategy="fedasync", alpha=0.5, staleness_exponent=0.3),
    "hinge": Aggregation.model_validate({"strategy": "fedasync", "hinge": {}, "ema": 0}),
    "afl-dw": Aggregation(strategy="afl-dw", s_max=3.0, server_optimizer=ServerOptimizer(name="yogi")),
    "ca2fl": Aggregation(
        strategy="ca2fl", server_optimizer=ServerOptimizer(name="adamw", delay_threshold=0, lr=2.0)
    ),
    "fedcompass": Aggregation(strategy="fedcompass", local_steps_min=4, staleness_exponent=0.3),
    "fedfix": Aggregation(strategy="fedfix", interval="1m"),
}


def begin(story, rule):
    file = JobFile(job=Job(name="digits", task="task.py:Digits"), silos=Silos(min=2), aggregation=RULES[rule])
    story.begin(file)
    story.enrol("c")
    story.decide("c")
    return story


def tell(story, rule, **changed):
    """Five versions; b is slow, c joins, a leaves and comes back. `changed`: of the last one's entry."""
    begin(story, rule)
    late = story.lease("b")
    for turn in range(5):
        last = changed if turn == 4 else {}
        if turn == 3:
            story.decide("a", "withdraw")
        silo = "c" if turn == 3 else "a"
        updates = [story.update(silo, story.lease(silo))]
        if turn in (2, 4) and story.terms.file.aggregation.buffer > 1:
            updates.append(story.update("b", late))
        if turn == 2 and story.terms.file.aggregation.buffer == 1:
            updates = [story.update("b", late)]
        if turn == 3:
            story.decide("a")
        if turn >= 2:
            late = story.lease("b")
        story.aggregate(updates, **last)
    return story


@pytest.fixture
def rerun(audit, tmp_path):
    def run(story):
        checked = audit(story)
        assert checked.report.verified, checked.report.findings
        return replay(Export(story.book.directory), checked.history, tmp_path)

    return run


def performed(story):
    entries = [canonical.decode(entry) for entry in story.book.entries]
    return [one["detail"] for one in entries if one["type"] == "aggregation.performed"]


@pytest.mark.parametrize("rule", RULES)
def test_every_step_of_an_honest_server_is_exact(story, rerun, rule):
    done = rerun(tell(story, rule))
    assert done.exact == 5, done.document()
    assert any(one["inputs"][-1]["staleness"] for one in performed(story))


@pytest.mark.parametrize("rule", RULES)
def test_versions_between_are_not_needed(story, rerun, rule):
    """Even those that a much later version mixes in: they are made again and kept until then."""
    tell(story, rule)
    for entry in map(canonical.decode, story.book.entries):
        if entry["type"] == "model.published" and entry["detail"]["version"]:
            for part in ("parameters_sha256", "optimizer_sha256", "ema_sha256"):
                if part in entry["detail"]:
                    story.book.path(entry["detail"][part]).unlink()
    assert rerun(story).exact == 5


def test_no_more_is_kept_than_a_later_step_reads(story, audit, tmp_path):
    tell(story, "hinge")
    read = {term["version"] for one in performed(story) for term in one.get("further", ())}
    for entry in map(canonical.decode, story.book.entries):
        if entry["type"] == "model.published" and entry["detail"]["version"]:
            story.book.path(entry["detail"]["parameters_sha256"]).unlink()
    held = []

    def look(*_):
        [directory] = (path for path in tmp_path.iterdir() if path.name.startswith("anabranch-replay"))
        held.append(len(list(directory.iterdir())))

    assert replay(Export(story.book.directory), audit(story).history, tmp_path, look).exact == 5
    assert read == {0, 2}
    assert max(held) <= 2


def changed_input(detail, **changed):
    return [{**detail["inputs"][0], **changed}, *detail["inputs"][1:]]


def retold(audit, tmp_path, rule, change):
    """The findings of the audit and the replay when the last version's entry is `change`d."""
    honest = performed(tell(Story(Book(tmp_path / "honest")), rule))[-1]
    story = tell(Story(Book(tmp_path / "changed")), rule, **change(honest))
    checked = audit(story)
    done = replay(Export(story.book.directory), checked.history, tmp_path)
    return [one.what for one in checked.report.findings], [one.differs for one in done.different]


@pytest.mark.parametrize(
    ("rule", "change", "words"),
    [
        ("ca2fl", lambda d: {"participants": ["a", "b"]}, "counts the silos ('a', 'b')"),
        ("ca2fl", lambda d: {"participants": None}, "counts the silos None"),
        ("fedfix", lambda d: {"participants": ["a", "b", "c", "d"]}, "but those that approve are"),
        ("fedasync", lambda d: {"participants": ["a", "b", "c"]}, "but those that approve are None"),
        ("fedfix", lambda d: {"inputs": changed_input(d, arrived=2)}, "arrived in 2 of"),
        ("fedfix", lambda d: {"inputs": changed_input(d, windows=99)}, "arrived in 1 of 99 windows"),
        (
            "fedasync",
            lambda d: {"further": [{"version": 9, "coefficient": "0x1.0000000000000p+0"}]},
            "rests on 9, which is no version and no merged update of its job",
        ),
        (
            "ca2fl",
            lambda d: {"further": [{"update": "update-x", "coefficient": "0x1.0000000000000p+0"}]},
            "rests on update-x",
        ),
    ],
)
def test_what_is_counted_is_what_the_log_tells(audit, tmp_path, rule, change, words):
    found, _ = retold(audit, tmp_path, rule, change)
    assert any(words in one for one in found), found


@pytest.mark.parametrize(
    ("rule", "change", "words"),
    [
        ("ca2fl", lambda d: {"further": d["further"][:-1]}, "the further terms are"),
        ("ca2fl", lambda d: {"further": None}, "the further terms are []"),
        (
            "ca2fl",
            lambda d: {
                "further": [{**d["further"][0], "coefficient": "0x1.0000000000000p-9"}, *d["further"][1:]]
            },
            "0x1.0000000000000p-9",
        ),
        (
            "afl-dw",
            lambda d: {"inputs": changed_input(d, coefficient="0x1.0000000000000p-1")},
            "recomputed ('0x1.",
        ),
        (
            "ca2fl",
            lambda d: {"optimizer": {**d["optimizer"], "lr": "0x1.0000000000000p+1"}},
            "optimizer scalars",
        ),
        ("ca2fl", lambda d: {"optimizer": {**d["optimizer"], "staleness": "0x0.0p+0"}}, "optimizer scalars"),
    ],
)
def test_a_term_of_its_own_is_found(audit, tmp_path, rule, change, words):
    _, different = retold(audit, tmp_path, rule, change)
    assert any(words in one for one in different), different


@pytest.mark.parametrize(("off", "exact"), [(nextafter(1.0, 2.0), 2), (0.999, 1)])
def test_a_cosine_is_taken_from_the_log_unless_it_is_another_one(story, rerun, off, exact):
    """Another maths library may round its last bit differently."""
    begin(story, "afl-dw")
    late = story.lease("b")
    story.aggregate([story.update("a", story.lease("a"))])
    update = story.update("b", late)
    rule = story.terms.file.aggregation.server_optimizer
    logged = {"cosine": cos(pi / 6) * off}
    story.aggregate([update], step.Scalars(logged, step.optimizers.step_scalars(rule, {}, 1)))
    done = rerun(story)
    assert done.exact == exact
    assert all("cosine" in one.differs for one in done.different)


def test_a_cached_delta_counts_for_its_silo(story, audit):
    """In lineage and review alike: a slow silo's last word is in every version."""
    checked = audit(tell(story, "ca2fl"))
    owner = {name: update.silo for name, update in checked.history.updates.items()}
    given = defaultdict(float)
    for detail in performed(story):
        for one in (*detail["inputs"], *detail.get("further", ())):
            given[owner[one["update"]]] += float.fromhex(one["coefficient"])
    shares = {silo: value / sum(given.values()) for silo, value in given.items()}

    export = Export(story.book.directory)
    chosen = lineage.choose(checked.history, None, "head")
    traced = lineage.trace(export, checked.history, chosen)
    assert {one.silo: one.share for one in traced.shares} == pytest.approx(shares)
    assert [len(step["further"]) for step in lineage.document(traced)["steps"]] == [0, 1, 1, 2, 3]

    told = Chronicle()
    for index, data in enumerate(story.book.entries):
        told.see(index, parse_entry(data))
    total = sum(part.coefficient for part in told.parts.values())
    found = {silo: part.coefficient / total for (_, silo), part in told.parts.items() if part.coefficient}
    assert found == pytest.approx(shares)
