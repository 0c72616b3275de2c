"""What `anabranch simulate` and `anabranch compare` do."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from anabranch import durable
from anabranch.errors import Reason, Refused
from anabranch.terms import seconds
from console import output
from console.simulation import comparison_page, parts, run_page
from console.simulation.progress import board
from console.submit import read
from simulator import contest, reading, results, verdict
from simulator.cluster import by_ray
from simulator.comparison import read_comparison, words
from simulator.contest import Contest, Trial
from simulator.reading import Played
from simulator.results import Files
from simulator.run import Told
from simulator.scenario import read_scenario
from simulator.work import Plan, by_processes

MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Workers:
    """Who computes."""

    processes: int | None  # None: as many as there are cores
    ray: str | None  # the address of a cluster

    def perform(
        self,
        plans: Sequence[Plan],
        labels: Sequence[str],
        done: Callable[[int, Files], None],
        quiet: bool,
    ) -> None:
        if not plans:
            return
        processes = min(self.processes or len(os.sched_getaffinity(0)), len(plans))
        with board(labels, seconds(plans[0].scenario.horizon), quiet) as shown:

            def ended(number: int, files: Files) -> None:
                done(number, files)
                shown.done(number)

            if self.ray is None:
                by_processes(plans, processes, ended, shown.at)
            else:
                by_ray(plans, self.ray, processes, ended)


def simulate(
    jobs: Sequence[Path],
    scenario: Path,
    out: Path,
    seeds: str,
    like: Path | None,
    workers: Workers,
    as_json: bool,
) -> None:
    base = read_scenario(scenario.absolute())
    told = tuple(_told(job) for job in jobs)
    wanted = parse_seeds(seeds) if seeds else [base.seed]
    recording = like.absolute() if like is not None else None
    plans = [Plan(told, base.model_copy(update={"seed": seed}), recording) for seed in wanted]
    durable.make_dir(out)
    runs: dict[int, Played] = {}

    def done(number: int, files: Files) -> None:
        runs[number] = reading.played(files)
        page = run_page.render([runs[number]]).encode()
        results.write(out / f"seed-{wanted[number]}", {**files, "index.html": page})

    try:
        workers.perform(plans, [f"seed {seed}" for seed in wanted], done, as_json)
    finally:  # interrupted: a page of what there is
        found = [run for _, run in sorted(runs.items()) if (out / f"seed-{run.seed}").exists()]
        if found:
            durable.write(out / "index.html", run_page.render(found).encode())
    document = {"page": str(out / "index.html"), "runs": [_brief(run) for run in found]}
    output.show(document, _seeds_table(found, out), as_json)


def compare(path: Path, out: Path, workers: Workers, as_json: bool) -> None:
    comparison = read_comparison(path.absolute())
    made = Contest(comparison, _told(comparison.job), read_scenario(comparison.scenario), out)
    durable.make_dir(out)

    def perform(trials: Sequence[Trial], done: Callable[[int, Files], None]) -> None:
        labels = [_label(trial) for trial in trials]
        workers.perform([trial.plan for trial in trials], labels, done, as_json)

    outcome = contest.play(made, perform)
    document = verdict.document(outcome)
    for name, data in verdict.files(outcome).items():
        durable.write(out / name, data)
    page = comparison_page.render(document, verdict.curves(outcome))
    durable.write(out / "index.html", page.encode())
    output.show(document, _results_table(document, out), as_json)


def parse_seeds(text: str) -> list[int]:
    """`0-4`, `0,3,7`, `0-2,9`: ascending, each once. Raises Refused(MALFORMED)."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,10})(?:-(\d{1,10}))?", part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < 2**31 or last - first >= MOST_SEEDS:
            raise Refused(
                Reason.MALFORMED,
                f"--seeds {text}: write for example 0-4 or 0,3,7; at most {MOST_SEEDS} of them",
            )
        found.update(range(first, last + 1))
    return sorted(found)


def _told(path: Path) -> Told:
    folder, file = read(path.absolute())
    return Told(file, folder)


def _label(trial: Trial) -> str:
    values = f" {words(trial.values)}" if trial.values else ""
    return f"{trial.entrant}{values}, {trial.phase} seed {trial.seed}"


def _brief(run: Played) -> dict[str, Any]:
    jobs = [{key: value for key, value in job.items() if key != "file"} for job in run.document["jobs"]]
    brief = {"seed": run.seed, "virtual_seconds": run.document["virtual_seconds"], "jobs": jobs}
    return brief | ({"like": run.document["like"]} if "like" in run.document else {})


def _seeds_table(runs: Sequence[Played], out: Path) -> Table:
    table = Table("seed", "job", "metric", "versions", "merged", "refused", "retired", "staleness", box=None)
    for run in runs:
        for job in run.document["jobs"]:
            metric = reading.metric(run, job["job"])
            final = job["final"].get(metric)
            shown = f"{metric} {parts.value(final, final is not None and parts.is_share(metric, [final]))}"
            updates, late = job["updates"], job["staleness"]
            counts = (str(updates[name]) for name in ("merged", "refused", "retired"))
            mean = f"{late['mean']:.1f}" if late else "–"
            table.add_row(str(run.seed), job["job"], shown, str(job["versions"]), *counts, mean)
    table.caption = "\n".join([*filter(None, map(_likeness, runs)), str(out / "index.html")])
    return table


def _likeness(run: Played) -> str:
    """What a run in the order of an export has of it, in a sentence."""
    like = run.document.get("like")
    if like is None:
        return ""
    if not like["same_terms"]:
        return (
            f"seed {run.seed}: other terms than the export's; {like['left_out']} tasks of its silos left out"
        )
    first = like["first_different"]
    same = f"seed {run.seed}: {like['equal']} of {like['versions']} versions are the export's, byte for byte"
    return same if first is None else f"{same}; version {first} is the first that is not"


def _results_table(document: dict[str, Any], out: Path) -> Table:
    table = Table(
        "entrant", document["metric"], "95 % interval", "to the best", "95 % interval", "p", box=None
    )
    for one in document["entrants"]:
        values = [value for value in one["final"] if value is not None]
        share = parts.is_share(document["metric"], values)
        mean = parts.value(one["mean"]["mean"], share) if one["mean"] else "left the numbers"
        to_best = one["to_best"]
        other = ("–", "–", "–")
        if to_best is not None:
            p = "–" if to_best["p"] is None else f"{to_best['p']:.3f}"
            other = (parts.signed(to_best["mean"], share), parts.bounds(to_best, share, sign=True), p)
        table.add_row(one["name"], mean, parts.bounds(one["mean"], share), *other)
    table.caption = str(out / "index.html")
    return table
