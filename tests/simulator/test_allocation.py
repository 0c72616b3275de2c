"""Several jobs over one set of silos, by shares: the same run on both servers, and nobody starves."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from anabranch.errors import Refused
from anabranch.terms import Evaluation, Stop
from server.core.allocation import Allocation
from simulator.engine import Run, silo_names
from simulator.memory import Memory, Planned
from simulator.rooms import Rooms
from simulator.rows import Rows
from simulator.scenario import read_scenario
from simulator.trainers import SyntheticTrainer
from tests.simulator.test_rooms import planned, scenario

RULES = {
    "turns": Allocation(),
    "equal": Allocation("fedast-static"),
    "stated": Allocation("fedast-static", {"one": 4.0}),
    "scores": Allocation("fedast"),
}


def endless(job: Planned) -> Planned:
    file = job.terms.file.model_copy(
        update={"stop": Stop(versions=10**6), "evaluation": Evaluation(every=10**6)}
    )
    return replace(job, terms=job.terms.model_copy(update={"file": file}))


@pytest.mark.parametrize("rule", RULES)
def test_two_jobs_on_both_servers(rule: str, tmp_path: Path) -> None:
    settings, allocation = scenario(), RULES[rule]
    assert settings.synthetic is not None
    trainer = SyntheticTrainer(settings.synthetic, settings.seed)
    jobs = [
        planned(trainer, "buffer = 2", "one"),
        planned(trainer, 'buffer = 3\nema = 0\nmax_wait = "3s"', "two"),
    ]
    light, full = Rows(), Rows()
    memory = Memory(jobs, silo_names(settings), light, allocation)
    Run(settings, memory, trainer, light).play()
    rooms = Rooms(jobs, silo_names(settings), full, tmp_path, settings.seed, allocation)
    Run(settings, rooms, trainer, full).play()
    assert full.updates == light.updates
    assert full.versions == light.versions
    with rooms.core.reader.connect() as connection:
        rows = {row.name: row.score for row in connection.exec_driver_sql("SELECT name, score FROM jobs")}
    assert rows == {name: memory.jobs[name].score for name in ("one", "two")}
    assert all((found is not None) == (rule == "scores") for found in rows.values())
    rooms.close()


@pytest.mark.parametrize(("rule", "least", "most"), [("equal", 0.4, 0.6), ("stated", 0.7, 0.9)])
def test_updates_follow_the_shares_at_every_silo(rule: str, least: float, most: float) -> None:
    """Ten silos of three speeds: no silo stays with one job, and work is shared as asked."""
    groups = [
        {"count": count, "train": {"kind": "lognormal", "median": median, "sigma": 0.3}}
        for count, median in ((3, 1.0), (4, 3.0), (3, 10.0))
    ]
    settings = scenario(silos=groups, horizon="400s", measure=None)
    assert settings.synthetic is not None
    trainer = SyntheticTrainer(settings.synthetic, settings.seed)
    jobs = [endless(planned(trainer, "buffer = 2", name)) for name in ("one", "two")]
    rows = Rows()
    Run(settings, Memory(jobs, silo_names(settings), rows, RULES[rule]), trainer, rows).play()
    counts = Counter(zip(rows.updates["silo"], rows.updates["job"], strict=True))
    for silo in silo_names(settings):
        one, two = counts[silo, "one"], counts[silo, "two"]
        assert two > 0
        assert least - 0.1 <= one / (one + two) <= most + 0.1
    total = Counter(rows.updates["job"])
    assert least <= total["one"] / total.total() <= most


def test_a_scenario_says_how_jobs_share(tmp_path: Path) -> None:
    text = """horizon = "1h"
allocation = "{rule}"
[shares]
one = 2
[synthetic]
[[silos]]
train = {{ kind = "constant", seconds = 1 }}
"""
    (tmp_path / "good.toml").write_text(text.format(rule="fedast-static"))
    found = read_scenario(tmp_path / "good.toml")
    assert (found.allocation, found.shares) == ("fedast-static", {"one": 2.0})
    (tmp_path / "bad.toml").write_text(text.format(rule="fedast"))
    with pytest.raises(Refused, match="fedast does not read them"):
        read_scenario(tmp_path / "bad.toml")
