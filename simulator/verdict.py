"""What a comparison found: compare.json, and every row of every run as Parquet."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

import pyarrow as pa

from anabranch import __version__
from simulator import reading
from simulator.comparison import Entrant
from simulator.contest import Outcome, Trial
from simulator.results import Files, described, encoded, packed
from simulator.statistics import Points, interval, paired
from simulator.work import FAILED

FORMAT = "anabranch-compare/1"


def document(outcome: Outcome) -> dict[str, Any]:
    """compare.json. Means, intervals and differences are of the final seeds, in the order of `seeds`."""
    contest = outcome.contest
    comparison = contest.comparison
    finals = {entrant.name: _finals(outcome, entrant) for entrant in comparison.entrants}
    whole = {name: values for name, values in finals.items() if None not in values}
    sign = 1 if contest.mode == "max" else -1
    best = max(whole, key=lambda name: sign * fmean(whole[name]), default=None)
    return {
        "format": FORMAT,
        "release": __version__,
        "job": contest.job.file.job.name,
        "metric": contest.metric,
        "mode": contest.mode,
        "target": comparison.target,
        "looks": comparison.looks,
        "budget": comparison.budget,
        "seeds": list(comparison.seeds),
        "tuning_seeds": list(comparison.tuning_seeds),
        "scenario": described(contest.scenario),
        "best": best,
        "entrants": [
            {
                **_entrant(outcome, entrant),
                "final": finals[entrant.name],
                "mean": asdict(interval(whole[entrant.name])) if entrant.name in whole else None,
                "to_best": (
                    asdict(paired(whole[entrant.name], whole[best]))
                    if best is not None and entrant.name in whole and entrant.name != best
                    else None
                ),
            }
            for entrant in comparison.entrants
        ],
    }


def _finals(outcome: Outcome, entrant: Entrant) -> list[Any]:
    return [outcome.scores[trial.key].final for trial in of(outcome, entrant.name, "final")]


def _entrant(outcome: Outcome, entrant: Entrant) -> dict[str, Any]:
    contest, chosen = outcome.contest, outcome.chosen[entrant.name]
    candidates = contest.candidates(entrant)
    finals = of(outcome, entrant.name, "final")
    times = [outcome.scores[trial.key].reached for trial in finals]
    known = [time for time in times if time is not None]
    return {
        "name": entrant.name,
        "combinations": entrant.combinations,
        "tried": [
            _candidate(outcome, entrant.name, number, values) for number, values in enumerate(candidates)
        ],
        "chosen": dict(candidates[chosen]),
        "file": contest.file(entrant, candidates[chosen]).model_dump(mode="json"),
        "runs": [trial.key for trial in finals],
        "reached": times,
        "mean_reached": fmean(known) if known and len(known) == len(times) else None,
    }


def _candidate(outcome: Outcome, name: str, number: int, values: Mapping[str, Any]) -> dict[str, Any]:
    trials = [trial for trial in of(outcome, name, "tuning") if trial.candidate == number]
    scores = [outcome.scores[trial.key].final for trial in trials]
    known = [score for score in scores if score is not None]
    mean = fmean(known) if known and len(known) == len(scores) else None
    return {"values": dict(values), "runs": [t.key for t in trials], "final": scores, "mean": mean}


def curves(outcome: Outcome) -> dict[str, list[Points]]:
    """Of each entrant, those of its final seeds that came to an end."""
    return {
        entrant.name: [
            outcome.scores[trial.key].curve
            for trial in of(outcome, entrant.name, "final")
            if outcome.scores[trial.key].final is not None
        ]
        for entrant in outcome.contest.comparison.entrants
    }


def of(outcome: Outcome, entrant: str, phase: str) -> list[Trial]:
    return [trial for trial in outcome.trials if (trial.entrant, trial.phase) == (entrant, phase)]


def files(outcome: Outcome) -> Files:
    """compare.json, runs.parquet, and updates, versions and metrics of all runs with the run's key as a column."""
    keys = list(dict.fromkeys(trial.key for trial in outcome.trials))
    rows: dict[str, list[pa.Table]] = {name: [] for name in reading.TABLES}
    for key in keys:
        run = reading.load(outcome.contest.folder / "runs" / key)
        for name, parts in rows.items() if FAILED not in run else ():
            part = reading.table(run, name)
            parts.append(part.add_column(0, "run", pa.array([key] * len(part), pa.string())))
    return {
        "compare.json": encoded(document(outcome)),
        "runs.parquet": packed(_runs(outcome)),
        **{f"{name}.parquet": packed(pa.concat_tables(parts)) for name, parts in rows.items() if parts},
    }


def _runs(outcome: Outcome) -> pa.Table:
    trials: Sequence[Trial] = outcome.trials
    scores = [outcome.scores[trial.key] for trial in trials]
    return pa.table(
        {
            "run": pa.array([trial.key for trial in trials], pa.string()),
            "entrant": pa.array([trial.entrant for trial in trials], pa.string()),
            "phase": pa.array([trial.phase for trial in trials], pa.string()),
            "candidate": pa.array([trial.candidate for trial in trials], pa.int64()),
            "seed": pa.array([trial.seed for trial in trials], pa.int64()),
            "final": pa.array([score.final for score in scores], pa.float64()),
            "reached": pa.array([score.reached for score in scores], pa.float64()),
        }
    )
