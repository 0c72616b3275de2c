"""Runs in virtual time: who waits for whom, when, and the same every time."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from anabranch.terms import JobTerms, parse_job_file
from anabranch.wire.canonical import sha256
from simulator.engine import Run, silo_names
from simulator.memory import Memory, Planned
from simulator.rows import Rows
from simulator.scenario import Scenario
from simulator.trainers import SyntheticTrainer


@dataclass(frozen=True)
class Played:
    server: Memory
    rows: Rows


JOB = '[job]\nname = "vector"\ntask = "task.py:Vector"\n[evaluation]\nevery = {every}\n[stop]\nversions = {versions}\n'


def fast(count: int = 1, seconds: float = 1.0, **more: Any) -> dict[str, Any]:
    return {"count": count, "train": {"kind": "constant", "seconds": seconds}, **more}


def played(
    groups: list[dict[str, Any]],
    aggregation: str = "buffer = 1",
    horizon: str = "100s",
    versions: int = 100_000,
    every: int = 1_000_000,
    seed: int = 0,
    names: tuple[str, ...] = ("vector",),
    **scenario: Any,
) -> Played:
    settings = Scenario.model_validate(
        {"seed": seed, "horizon": horizon, "silos": groups, "synthetic": {"parameters": 50}, **scenario}
    )
    assert settings.synthetic is not None
    trainer = SyntheticTrainer(settings.synthetic, seed)
    jobs = []
    for name in names:
        text = JOB.format(every=every, versions=versions).replace('"vector"', f'"{name}"')
        file = parse_job_file(f"{text}[aggregation]\n{aggregation}\n")
        terms = JobTerms(
            file=file,
            archive_sha256=sha256(b""),
            initial_sha256=trainer.initial.digest(),
            manifest_sha256=trainer.manifest.digest(),
        )
        jobs.append(Planned(name, terms, trainer.manifest, b"", trainer.initial))
    rows = Rows()
    server = Memory(jobs, silo_names(settings), rows)
    Run(settings, server, trainer, rows).play()
    return Played(server, rows)


def of_silo(run: Played, silo: int) -> list[dict[str, Any]]:
    columns = run.rows.updates
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return [row for row in rows if row["silo"] == f"silo-{silo:05}"]


def test_one_silo_alone_is_never_late() -> None:
    run = played([fast()], horizon="10s")
    assert run.rows.updates["received_at"] == [float(n) for n in range(1, 11)]
    assert run.rows.updates["staleness"] == [0] * 10
    assert run.server.jobs["vector"].head == 10


def test_a_slow_silo_is_as_many_versions_late_as_the_others_made() -> None:
    run = played([fast(3, 1.0), fast(1, 10.0)], horizon="30s")
    slow = of_silo(run, 3)
    # Ten versions of each of three silos go by while it trains, and its own before.
    assert [row["received_at"] for row in slow] == [10.0, 20.0, 30.0]
    assert slow[0]["staleness"] in (27, 30)
    assert [row["base"] + row["staleness"] + 1 for row in slow] == [row["version"] for row in slow]


def test_fedavg_waits_for_the_slowest() -> None:
    run = played([fast(2, 1.0), fast(1, 5.0)], 'strategy = "fedavg"\nmax_wait = "1h"', horizon="50s")
    assert run.rows.versions["published_at"] == [5.0 * n for n in range(1, 11)]
    assert set(run.rows.versions["closed_by"]) == {"full"}
    assert Counter(run.rows.updates["silo"]).most_common(1)[0][1] == 10


def test_fedavg_goes_on_without_the_missing_after_its_deadline() -> None:
    run = played([fast(2, 1.0), fast(1, 500.0)], 'strategy = "fedavg"\nmax_wait = "20s"', horizon="100s")
    assert run.rows.versions["published_at"] == [20.0, 40.0, 60.0, 80.0, 100.0]
    assert set(run.rows.versions["absent"]) == {"silo-00002"}


def test_a_buffer_that_would_stall_closes_after_max_wait() -> None:
    run = played([fast(1, 1.0)], 'buffer = 5\nmax_wait = "2s"', horizon="20s")
    assert run.rows.versions["inputs"][0] == 2  # of 1 and 2 seconds; the third comes when it is closed
    assert run.rows.versions["closed_by"][0] == "max_wait"


def test_the_server_takes_its_time() -> None:
    run = played([fast(1, 1.0)], horizon="9s", aggregation_seconds=2.0)
    assert run.rows.versions["published_at"] == [3.0, 5.0, 7.0, 9.0]
    assert run.rows.updates["base"][:3] == [0, 0, 0]  # the head moves only then


def test_staleness_is_bounded_by_the_terms() -> None:
    run = played([fast(3, 1.0), fast(1, 10.0)], "buffer = 1\nmax_staleness = 5", horizon="30s")
    assert {row["reason"] for row in of_silo(run, 3)} == {"too_stale"}
    assert {row["outcome"] for row in of_silo(run, 3)} == {"refused"}


def test_a_job_ends_when_every_silo_has_evaluated_its_last_version() -> None:
    run = played([fast(2, 1.0, evaluate={"kind": "constant", "seconds": 3.0})], versions=4, every=2)
    job = run.server.jobs["vector"]
    assert (job.status, job.head) == ("completed", 4)
    versions = [v for v, kind in zip(run.rows.metrics["version"], run.rows.metrics["kind"], strict=True)]
    assert set(versions) == {2, 4} or set(versions) == {4}
    assert job.ended_at is not None
    assert job.ended_at >= 5.0
    assert not job.waiting


def test_every_update_has_one_end() -> None:
    groups = [
        fast(3, 1.0),
        fast(2, 7.0, dropout={"probability": 0.3, "away": {"kind": "exponential", "mean": 9}}),
    ]
    run = played(groups, "buffer = 3\nmax_staleness = 4", versions=30)
    outcomes = Counter(run.rows.updates["outcome"])
    assert sum(outcomes.values()) == len(run.rows.updates["update"])
    assert outcomes["merged"] == sum(run.rows.versions["inputs"])
    assert len(set(run.rows.updates["update"])) == len(run.rows.updates["update"])
    assert outcomes["refused"]
    assert not outcomes["waiting"] or run.server.jobs["vector"].status == "running"


def test_two_jobs_share_their_silos() -> None:
    run = played([fast(2, 1.0)], horizon="40s", names=("one", "two"))
    counts = Counter(run.rows.updates["job"])
    assert counts["one"] == counts["two"] == 40
    assert len(set(run.rows.updates["update"])) == 80


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_seed_is_the_same_run(seed: int) -> None:
    groups = [
        {
            "count": 5,
            "train": {"kind": "lognormal", "median": 1.0, "sigma": 0.5},
            "upload": {"kind": "uniform", "low": 0.1, "high": 0.3},
            "dropout": {"probability": 0.1, "away": {"kind": "exponential", "mean": 3.0}},
        }
    ]
    one, two = (played(groups, "buffer = 2", seed=seed, horizon="50s", measure={"every": "5s"}) for _ in "12")
    other = played(groups, "buffer = 2", seed=seed + 7, horizon="50s", measure={"every": "5s"})
    assert one.rows.updates == two.rows.updates
    assert one.rows.metrics == two.rows.metrics
    digests = [run.server.jobs["vector"].newest.parameters.digest() for run in (one, two, other)]
    assert digests[0] == digests[1] != digests[2]


def test_what_one_silo_draws_never_changes_what_another_draws() -> None:
    noisy = {"train": {"kind": "lognormal", "median": 1.0, "sigma": 0.5}}
    alone = played([noisy], horizon="20s")
    together = played([noisy, fast(3, 0.7)], horizon="20s")
    mine = [row["received_at"] for row in of_silo(together, 0)]
    assert mine == [row["received_at"] for row in of_silo(alone, 0)]


def test_memory_does_not_grow_with_the_length_of_a_run() -> None:
    run = played([fast(4, 1.0), fast(1, 20.0)], horizon="400s")
    job = run.server.jobs["vector"]
    assert job.head > 1500
    assert len(job.versions) < 200


def test_training_draws_silos_to_their_middle() -> None:
    run = played([fast(10, 1.0)], 'strategy = "fedavg"', horizon="200s", measure={"every": "10s"})
    distances = [
        value
        for name, value in zip(run.rows.metrics["metric"], run.rows.metrics["value"], strict=True)
        if name == "distance"
    ]
    assert distances[-1] < 0.2 * distances[0]
    assert np.isfinite(distances).all()
