"""Recomputing versions: exact where the server was honest, and the first difference named where it was not."""

import math

import pytest

from anabranch.rules import step
from anabranch.terms import Aggregation, Job, JobFile, ServerOptimizer, Silos
from anabranch.wire import canonical
from anabranch.wire.tensors import read_tensors, write_tensors
from auditor.export import Export
from auditor.replay import replay
from tests.auditor.story import MANIFEST, TERMS


@pytest.fixture
def rerun(audit, tmp_path):
    """rerun(story) -> Replay of a verified export"""

    def run(story):
        checked = audit(story)
        assert checked.report.verified, checked.report.findings
        return replay(Export(story.book.directory), checked.history, tmp_path)

    return run


def job(aggregation, weighting="equal"):
    return JobFile(
        job=Job(name="digits", task="task.py:Digits"),
        silos=Silos(min=2, weighting=weighting),
        aggregation=aggregation,
    )


@pytest.mark.parametrize(
    "file",
    [
        TERMS,
        job(Aggregation(strategy="fedavg", ema=None)),
        job(Aggregation(staleness_exponent=0.5, normalise="count"), "examples"),
        job(Aggregation(server_optimizer=ServerOptimizer(lr=0.7, momentum=0.9))),
    ],
    ids=["adam, power, examples", "fedavg", "root, count, examples", "momentum"],
)
def test_every_step_of_an_honest_server_is_exact(story, rerun, file):
    done = rerun(story.begin(file).whole())
    assert [one.version for one in done.steps if one.exact] == [1, 2, 3]
    assert done.ok
    assert done.document() == {"replayed": 3, "exact": 3, "different": [], "digest_only": [], "missing": []}


def test_a_model_that_does_not_follow_from_its_updates(story, rerun):
    """The published file fits its digest, the log is signed, only the arithmetic disagrees."""
    honest = story.compute

    def slipped(*arguments):
        made = honest(*arguments)
        if story.head == 1:
            arrays = read_tensors(story.book.path(made["parameters"]), MANIFEST)
            arrays["weight"][2, 3] += 1
            made["parameters"] = write_tensors(story.book.directory / "lie", MANIFEST, arrays)
            (story.book.directory / "lie").rename(story.book.path(made["parameters"]))
        return made

    story.compute = slipped
    done = rerun(story.begin().whole())
    assert [one.version for one in done.different] == [2]
    assert "parameters" in done.different[0].differs
    assert "tensor weight, element 13" in done.different[0].differs
    assert [one.version for one in done.steps if one.exact] == [1, 3]
    assert not done.ok


def test_an_average_or_optimizer_state_of_its_own(story, rerun):
    honest = story.compute

    def slipped(*arguments):
        made = honest(*arguments)
        return made | {"ema": made["parameters"]} if story.head == 0 else made

    story.compute = slipped
    done = rerun(story.begin().whole())
    assert "ema" in done.different[0].differs


def lie(story, change):
    """One honest version, then one whose scalars are `change`d."""
    story.begin()
    story.aggregate([story.update("a", story.lease("a"))])
    late = story.lease("b", version=0)
    updates = [story.update("a", story.lease("a")), story.update("b", late)]
    powers = {f"staleness_weight_{late}": (1.0 + late) ** -0.3 for late in (0, 1)}
    honest = step.Scalars(
        powers, step.optimizers.step_scalars(TERMS.aggregation.server_optimizer, story.optimizer, 1)
    )
    story.aggregate(updates, change(honest))


def test_a_scalar_in_its_last_bit_is_taken_from_the_log(story, rerun):
    """Another maths library may round a power differently; replay follows the log and is exact."""

    def nudge(scalars):
        weight = math.nextafter(scalars.strategy["staleness_weight_1"], 1.0)
        return step.Scalars({**scalars.strategy, "staleness_weight_1": weight}, scalars.optimizer)

    lie(story, nudge)
    assert rerun(story).exact == 2


@pytest.mark.parametrize("name", ["staleness_weight_1", "beta1_power", "lr"])
def test_a_scalar_of_its_own_is_found(story, rerun, name):
    def change(scalars):
        strategy, optimizer = dict(scalars.strategy), dict(scalars.optimizer)
        table = strategy if name in strategy else optimizer
        table[name] *= 0.999
        return step.Scalars(strategy, optimizer)

    lie(story, change)
    done = rerun(story)
    assert [one.version for one in done.different] == [2]
    assert name in done.different[0].differs


def test_a_coefficient_of_its_own_is_found(story, rerun):
    story.begin()
    update = story.update("a", story.lease("a"))
    entry = {
        "update": update.id,
        "silo": "a",
        "delta_sha256": update.delta,
        "base": 0,
        "staleness": 0,
        "weight": canonical.hexfloat(float(update.examples)),
        "coefficient": canonical.hexfloat(0.5),
    }
    story.aggregate([update], inputs=[entry])
    assert update.id in rerun(story).different[0].differs


def test_a_strategy_the_terms_do_not_say(story, rerun):
    story.begin()
    story.aggregate([story.update("a", story.lease("a"))], strategy="fedavg")
    assert "which the terms do not say" in rerun(story).different[0].differs


def test_an_unknown_profile_is_not_recomputed(story, rerun):
    story.begin()
    story.aggregate([story.update("a", story.lease("a"))])
    story.aggregate([story.update("a", story.lease("a"))], numeric_profile="anabranch-np-9")
    done = rerun(story)
    assert [one.version for one in done.missing] == [2]
    assert "anabranch-np-9" in done.missing[0].missing[0]
    assert not done.ok


def digests(story, type, part):
    documents = [canonical.decode(entry) for entry in story.book.entries]
    return [one["detail"][part] for one in documents if one["type"] == type and part in one["detail"]]


def test_a_delta_that_is_missing_without_a_reason_is_a_failure(story, rerun):
    story.begin().whole()
    story.book.path(digests(story, "update.received", "delta_sha256")[1]).unlink()
    done = rerun(story)
    assert [one.version for one in done.steps if one.exact] == [1, 3]
    assert [one.version for one in done.missing] == [2]
    assert "delta of update" in done.missing[0].missing[0]
    assert not done.digest_only
    assert not done.ok


def test_versions_between_are_not_needed(story, rerun):
    """Version 0 and the deltas are enough: every step starts from what the one before reproduced."""
    story.begin().whole()
    for part in ("parameters_sha256", "optimizer_sha256", "ema_sha256"):
        for digest in digests(story, "model.published", part):
            if digest != story.terms.initial_sha256:
                story.book.path(digest).unlink()
    assert rerun(story).exact == 3


def test_nothing_to_recompute_from_is_not_a_success(story, rerun):
    story.begin().whole()
    for digest in digests(story, "update.received", "delta_sha256"):
        story.book.path(digest).unlink()
    done = rerun(story)
    assert (done.exact, len(done.missing)) == (0, 3)
    assert not done.ok


@pytest.mark.parametrize("part", ["terms_sha256", "manifest_sha256"])
def test_a_job_without_its_terms_or_manifest(story, rerun, part):
    story.begin().whole()
    story.book.path(digests(story, "job.submitted", part)[0]).unlink()
    done = rerun(story)
    assert part.split("_")[0] in done.missing[0].missing[0]
    assert not done.ok


def test_a_log_without_versions_has_nothing_to_replay(story, rerun):
    done = rerun(story.begin())
    assert done.steps == []
    assert done.ok


def test_nothing_is_left_behind(story, rerun, tmp_path):
    rerun(story.begin().whole())
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
