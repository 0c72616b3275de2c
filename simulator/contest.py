"""A comparison played: every candidate on the tuning seeds, the best of each entrant on the others.

A run that has ended is a folder named by its key, the digest of all it depends on. So what was interrupted goes on where
it was, and what was changed is made anew.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
import rfc8785

from anabranch import __version__
from anabranch.errors import Reason, Refused
from anabranch.terms import JobFile
from silo_agent.training.archive import pack
from simulator import reading, results
from simulator.comparison import Comparison, Entrant, Values, entered
from simulator.results import Files, described
from simulator.run import Told
from simulator.scenario import Measure, Scenario
from simulator.statistics import Points, reached
from simulator.work import FAILED, Plan

LIBRARIES = ("numpy", "torch")  # whose arithmetic a run is

Perform = Callable[[Sequence["Trial"], Callable[[int, Files], None]], None]


@dataclass(frozen=True)
class Trial:
    """One run of one candidate."""

    entrant: str
    phase: Literal["tuning", "final"]
    candidate: int
    values: Values
    plan: Plan
    key: str

    @property
    def seed(self) -> int:
        return self.plan.scenario.seed


@dataclass(frozen=True)
class Score:
    """What is kept of a run that was read."""

    final: float | None  # None: it came to no end
    curve: Points
    reached: float | None  # virtual seconds


@dataclass(frozen=True)
class Contest:
    comparison: Comparison
    job: Told
    scenario: Scenario
    folder: Path
    _digests: dict[Path, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises Refused for what cannot be run, before anything is."""
        if self.scenario.measure is None:
            raise Refused(
                Reason.MALFORMED, "the scenario has no [measure]: there is nothing to compare entrants by"
            )
        for name, data in self.scenario.data.items():
            needed = {
                "test": data.test,
                "validation": data.validation if self.comparison.tuning_seeds else "",
            }
            if missing := [what for what, path in needed.items() if path is None]:
                raise Refused(
                    Reason.MALFORMED, f"a comparison needs [data.{name}] {missing[0]}: records no silo has"
                )
        for entrant in self.comparison.entrants:
            for values in self.candidates(entrant):
                self.file(entrant, values)

    @property
    def metric(self) -> str:
        return self.comparison.metric or self.job.file.evaluation.metric

    @property
    def mode(self) -> Literal["max", "min"]:
        return self.job.file.evaluation.mode

    def candidates(self, entrant: Entrant) -> list[Values]:
        return entrant.candidates(self.comparison.budget, self.comparison.draw)

    def file(self, entrant: Entrant, values: Values) -> JobFile:
        return entered(self.job.file, entrant, values)

    def tuning(self) -> list[Trial]:
        """Of every entrant that has something to choose from."""
        return [
            self._trial(entrant, "tuning", candidate, seed)
            for entrant in self.comparison.entrants
            if len(self.candidates(entrant)) > 1
            for candidate in range(len(self.candidates(entrant)))
            for seed in self.comparison.tuning_seeds
        ]

    def finals(self, chosen: Mapping[str, int]) -> list[Trial]:
        return [
            self._trial(entrant, "final", chosen[entrant.name], seed)
            for entrant in self.comparison.entrants
            for seed in self.comparison.seeds
        ]

    def _trial(self, entrant: Entrant, phase: Literal["tuning", "final"], candidate: int, seed: int) -> Trial:
        values = self.candidates(entrant)[candidate]
        measure = self.scenario.measure
        assert isinstance(measure, Measure)
        looked = measure.model_copy(update={"records": "validation" if phase == "tuning" else "test"})
        scenario = self.scenario.model_copy(update={"seed": seed, "measure": looked})
        plan = Plan((Told(self.file(entrant, values), self.job.folder),), scenario, keep_failure=True)
        return Trial(entrant.name, phase, candidate, values, plan, key(plan, self._digests))

    def place(self, trial: Trial) -> Path:
        return self.folder / "runs" / trial.key

    def choose(self, trials: Sequence[Trial], scores: Mapping[str, Score]) -> dict[str, int]:
        """The best candidate of each entrant by the mean over the tuning seeds; of equals the first."""
        chosen = {entrant.name: (-math.inf, 0) for entrant in self.comparison.entrants}
        found: dict[tuple[str, int], list[float]] = {}
        for trial in trials:
            found.setdefault((trial.entrant, trial.candidate), []).append(self.goodness(scores[trial.key]))
        for (entrant, candidate), values in found.items():
            if fmean(values) > chosen[entrant][0]:
                chosen[entrant] = fmean(values), candidate
        return {name: candidate for name, (_, candidate) in chosen.items()}

    def goodness(self, score: Score) -> float:
        """Larger is better; what came to no end is worst."""
        if score.final is None:
            return -math.inf
        return score.final if self.mode == "max" else -score.final

    def score(self, trial: Trial) -> Score:
        """Raises Refused when the task does not tell the metric."""
        files = reading.load(self.place(trial))
        if FAILED in files:
            return Score(None, Points(np.empty(0), np.empty(0)), None)
        run = reading.played(files)
        name = self.job.file.job.name
        final = run.job(name)["final"]
        if self.metric not in final:
            raise Refused(
                Reason.MALFORMED,
                f"the runs were measured by {', '.join(final) or 'nothing'}, not by {self.metric}",
            )
        curve = reading.curve(run, name, self.metric)
        target, when = self.comparison.target, None
        if target is not None:
            when = reached(curve, target, self.comparison.looks, self.mode)
        return Score(final[self.metric], curve, when)


@dataclass(frozen=True)
class Outcome:
    contest: Contest
    chosen: Mapping[str, int]
    trials: Sequence[Trial]  # tuning first
    scores: Mapping[str, Score]  # by key


def play(contest: Contest, perform: Perform) -> Outcome:
    """Make the runs that are not there yet. Interrupted, what has ended is there."""
    scores: dict[str, Score] = {}

    def made(trials: list[Trial]) -> list[Trial]:
        wanted = {trial.key: trial for trial in trials if not contest.place(trial).exists()}
        missing = list(wanted.values())
        perform(missing, lambda number, files: results.write(contest.place(missing[number]), files))
        scores.update({trial.key: contest.score(trial) for trial in trials if trial.key not in scores})
        return trials

    tuning = made(contest.tuning())
    chosen = contest.choose(tuning, scores)
    finals = made(contest.finals(chosen))
    return Outcome(contest, chosen, [*tuning, *finals], scores)


def key(plan: Plan, digests: dict[Path, str]) -> str:
    """The digest of all that a run depends on: jobs, code, scenario with its seed, records, releases.

    `digests`: those of files and folders that were read before.
    """

    def known(path: Path, digest: Callable[[Path], str]) -> str:
        if path not in digests:
            digests[path] = digest(path)
        return digests[path]

    measure = plan.scenario.measure
    data = {}
    for name, one in plan.scenario.data.items():
        held = (one.validation if measure.records == "validation" else one.test) if measure else None
        data[name] = [known(path, tree_sha256) for path in (one.path, held) if path is not None]
    for name, model in plan.scenario.models.items():
        data[f"models.{name}"] = [known(model.path, tree_sha256)]
    jobs = [
        {"file": job.file.model_dump(mode="json"), "archive_sha256": known(job.folder, archive_sha256)}
        for job in plan.jobs
    ]
    document: dict[str, Any] = {
        "jobs": jobs,
        "scenario": described(plan.scenario),
        "data": data,
        "releases": {"anabranch": __version__, **{name: version(name) for name in LIBRARIES}},
    }
    return hashlib.sha256(rfc8785.dumps(document)).hexdigest()


def archive_sha256(folder: Path) -> str:
    return hashlib.sha256(pack(folder)).hexdigest()


def tree_sha256(path: Path) -> str:
    """Of a file; of a folder, that of its files' names and digests. Raises Refused(NOT_FOUND)."""
    if path.is_dir():
        lines = [
            f"{tree_sha256(file)} {file.relative_to(path)}\n"
            for file in sorted(path.rglob("*"))
            if file.is_file()
        ]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    if not path.is_file():
        raise Refused(Reason.NOT_FOUND, f"the scenario reads {path}, and there is no such file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
