"""Comparisons: what a person may write, who is tried, and what makes a run another run."""

from pathlib import Path

import numpy as np
import pytest

from anabranch.errors import Reason, Refused
from anabranch.terms import parse_job_file
from simulator.comparison import Entrant, entered, read_comparison
from simulator.contest import Contest, Score
from simulator.run import Told
from simulator.scenario import read_scenario
from simulator.statistics import Points
from tests.simulator import samples

NOTHING = Points(np.empty(0), np.empty(0))


def contest(folder: Path) -> Contest:
    comparison = read_comparison(folder / "compare.toml")
    file = parse_job_file((comparison.job / "job.toml").read_text())
    return Contest(comparison, Told(file, comparison.job), read_scenario(comparison.scenario), folder / "out")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("seeds = [0, 1, 2]", "seeds = [0, 100]"), "seeds and tuning_seeds share 100"),
        (("seeds = [0, 1, 2]", "seeds = [0, 0]"), "a seed is there twice"),
        (("seeds = [0, 1, 2]", "seeds = []"), "seeds: "),
        (("tuning_seeds = [100, 101]", ""), "no tuning_seeds"),
        (('name = "rounds"', 'name = "plain"'), "two entrants have one name"),
        (("budget = 2", "budgets = 2"), "unknown key budgets"),
        (("budget = 2", "budget = 0"), "budget: "),
        (('"aggregation.buffer" =', '"stop.versions" ='), "entrants.0.tune"),
        (("[0.5, 1.0] }", "[] }"), "entrants.1.tune"),
        (("[1, 3]", str(list(range(40_000)))), "120000 combinations to tune"),
        (("budget = 2", "budget = "), "is not TOML"),
    ],
)
def test_a_wrong_comparison_is_explained(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    path = samples.world(tmp_path)
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change))
    with pytest.raises(Refused, match=says) as refused:
        read_comparison(path)
    assert refused.value.code == Reason.MALFORMED


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('strategy = "fedavg"', 'strategy = "fedsum"'), r"entrant rounds with lr = 0.5: aggregation.strategy"),
        (("[0.5, 1.0] }", "[0.5, -1.0] }"), r"entrant rounds with lr = -1.0: aggregation.server_optimizer.lr"),
        (("aggregation.buffer", "aggregation.bufer"), "entrant buffered with .*: unknown key aggregation.bufer"),
    ],
)  # fmt: skip
def test_terms_that_are_none_are_told_before_anything_runs(
    tmp_path: Path, change: tuple[str, str], says: str
) -> None:
    path = samples.world(tmp_path)
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change))
    with pytest.raises(Refused, match=says):
        contest(tmp_path)


def test_what_is_measured_has_to_be_there(tmp_path: Path) -> None:
    samples.world(tmp_path)
    scenario = tmp_path / "scenario.toml"
    given = scenario.read_text()
    scenario.write_text(given.replace("[measure]\nevery", "[measure]\nrecords = 'test'\nevery"))
    contest(tmp_path)
    start, end = given.index("[measure]"), given.index("[[silos]]")
    scenario.write_text(given[:start] + given[end:])
    with pytest.raises(Refused, match=r"has no \[measure\]"):
        contest(tmp_path)
    scenario.write_text(
        given.replace("[synthetic]\nparameters = 30", '[data.default]\npath = "a.npz"\ntest = "b.npz"')
    )
    with pytest.raises(Refused, match=r"needs \[data.default\] validation"):
        contest(tmp_path)


def test_candidates_are_the_grid_or_as_many_of_it_as_the_budget_allows() -> None:
    tune = {"aggregation.buffer": (1, 2, 3), "training.local_steps": (10, 20)}
    entrant = Entrant(name="a", tune=tune)
    grid = entrant.candidates(6, 0)
    assert len(grid) == 6
    assert grid[0] == {"aggregation.buffer": 1, "training.local_steps": 10}
    assert grid[-1] == {"aggregation.buffer": 3, "training.local_steps": 20}
    drawn = [entrant.candidates(4, draw) for draw in range(20)]
    assert all(len(some) == 4 and all(one in grid for one in some) for some in drawn)
    assert all(len({str(one) for one in some}) == 4 for some in drawn)
    assert len({str(some) for some in drawn}) > 1
    assert drawn == [entrant.candidates(4, draw) for draw in range(20)]
    assert Entrant(name="a").candidates(3, 0) == [{}]


def test_an_entrant_s_keys_replace_those_of_the_job() -> None:
    job = parse_job_file(
        samples.JOB.replace("buffer = 2", 'buffer = 2\nserver_optimizer = { name = "sgd", momentum = 0.9 }')
    )
    adam = Entrant(name="a", aggregation={"server_optimizer": {"name": "adam", "lr": 0.01}})
    whole = entered(job, adam, {"aggregation.server_optimizer.lr": 0.5})
    assert whole.aggregation.server_optimizer.model_dump(exclude_unset=True) == {"name": "adam", "lr": 0.5}
    assert whole.aggregation.buffer == 2
    tuned = entered(
        job, Entrant(name="b"), {"aggregation.server_optimizer.lr": 0.5, "training.local_steps": 7}
    )
    assert tuned.aggregation.server_optimizer.momentum == 0.9
    assert tuned.training.local_steps == 7
    assert adam.aggregation == {"server_optimizer": {"name": "adam", "lr": 0.01}}
    assert job.aggregation.server_optimizer.lr == 1.0


def test_tuning_is_on_validation_records_and_the_verdict_on_test_records(tmp_path: Path) -> None:
    samples.world(tmp_path)
    made = contest(tmp_path)
    tuning, finals = made.tuning(), made.finals({"buffered": 1, "rounds": 0, "plain": 0})
    measures = [trial.plan.scenario.measure for trial in (*tuning, *finals)]
    assert [measure.records for measure in measures if measure] == ["validation"] * 8 + ["test"] * 9
    assert [measure.part for measure in measures if measure] == ["validation"] * 8 + ["test"] * 9
    assert {trial.seed for trial in tuning} == {100, 101}
    assert {trial.seed for trial in finals} == {0, 1, 2}
    assert {trial.entrant for trial in tuning} == {"buffered", "rounds"}  # plain has nothing to choose from
    assert len({trial.key for trial in (*tuning, *finals)}) == 17


def test_the_best_candidate_goes_on(tmp_path: Path) -> None:
    samples.world(tmp_path)
    made = contest(tmp_path)
    trials = made.tuning()
    finals = {("buffered", 0): 0.5, ("buffered", 1): 0.6, ("rounds", 0): 0.7, ("rounds", 1): 0.7}
    scores = {t.key: Score(finals[t.entrant, t.candidate], NOTHING, None) for t in trials}
    assert made.choose(trials, scores) == {"buffered": 1, "rounds": 0, "plain": 0}
    left = next(t.key for t in trials if (t.entrant, t.candidate) == ("buffered", 1))
    scores[left] = Score(None, NOTHING, None)  # left the numbers on one of its seeds
    assert made.choose(trials, scores)["buffered"] == 0
    lower = made.job.file.model_copy(
        update={"evaluation": made.job.file.evaluation.model_copy(update={"mode": "min"})}
    )
    smaller = Contest(made.comparison, Told(lower, made.job.folder), made.scenario, made.folder)
    assert smaller.choose(trials, scores)["buffered"] == 0
    scores[left] = Score(0.1, NOTHING, None)
    assert smaller.choose(trials, scores)["buffered"] == 1


def test_another_input_is_another_run(tmp_path: Path) -> None:
    samples.world(tmp_path)
    data = tmp_path / "records"
    data.mkdir()
    (data / "a.csv").write_text("1")
    (tmp_path / "test.csv").write_text("1")
    scenario = tmp_path / "scenario.toml"
    told = scenario.read_text().replace(
        "[synthetic]\nparameters = 30",
        '[data.default]\npath = "records"\ntest = "test.csv"\nvalidation = "test.csv"',
    )
    scenario.write_text(told)

    def keys() -> set[str]:
        return {trial.key for trial in contest(tmp_path).finals({"buffered": 0, "rounds": 0, "plain": 0})}

    seen = keys()
    assert keys() == seen
    changes = [
        lambda: scenario.write_text(told.replace("120s", "121s")),
        lambda: (data / "a.csv").write_text("2"),
        lambda: (data / "b.csv").write_text("2"),
        lambda: (tmp_path / "test.csv").write_text("2"),
        lambda: (tmp_path / "vector" / "task.py").write_text("class Vector: pass\n"),
        lambda: (tmp_path / "vector" / "job.toml").write_text(samples.JOB + "patience = 3\n"),
    ]
    for change in changes:
        change()
        assert not keys() & seen
        seen |= keys()
    (tmp_path / "elsewhere").mkdir()
    for name in ("vector", "records", "scenario.toml", "compare.toml", "test.csv"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    moved = contest(tmp_path / "elsewhere").finals({"buffered": 0, "rounds": 0, "plain": 0})
    assert {trial.key for trial in moved} <= seen  # where files lie is no input


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    samples.world(tmp_path)
    scenario = tmp_path / "scenario.toml"
    scenario.write_text(
        scenario.read_text().replace(
            "[synthetic]\nparameters = 30",
            '[data.default]\npath = "a.npz"\ntest = "b.npz"\nvalidation = "b.npz"',
        )
    )
    with pytest.raises(Refused, match=r"reads .*a.npz, and there is no such file"):
        contest(tmp_path).tuning()
    with pytest.raises(Refused, match="there is no comparison"):
        read_comparison(tmp_path / "nowhere.toml")
