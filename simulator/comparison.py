"""What a person writes to have strategies compared: one TOML file that names a job, a scenario and the entrants.

job = "digits"                     # folder or TOML file; paths are relative to this file
scenario = "scenario.toml"
tuning_seeds = [100, 101]          # candidates are tuned on these, measured on validation records
seeds = [0, 1, 2, 3, 4]            # the chosen ones run on these, measured on test records
budget = 6                         # candidates of each entrant
target = 0.8                       # of the metric, for the time it takes to get there

[[entrants]]
name = "fedbuff"
aggregation = { buffer = 2 }       # keys that replace those of the job
training = { local_steps = 20 }
tune = { "aggregation.server_optimizer.lr" = [0.1, 0.3, 1.0] }
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, ValidationError, model_validator

from anabranch.errors import Reason, Refused
from anabranch.terms import METRIC, NOT_TOML, JobFile, Name, explain
from simulator.chance import generator

MOST = 100_000  # combinations of one entrant's values
CANDIDATES = 4  # what the generator of (draw, this) draws
SECTIONS = ("aggregation", "training", "revival", "link", "adapter")  # of a job, that an entrant may change
TUNABLE = rf"^({'|'.join(SECTIONS)})(\.[a-z0-9_]+)+$"

Value = bool | int | float | str
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Values = Mapping[str, Value]


class Entrant(BaseModel, extra="forbid", frozen=True):
    name: Name
    aggregation: dict[str, Any] = {}
    training: dict[str, Any] = {}
    revival: dict[str, Any] | None = None  # {}: with it, as its defaults are
    link: dict[str, Any] | None = None
    adapter: dict[str, Any] | None = None
    tune: dict[Annotated[str, Field(pattern=TUNABLE)], Annotated[tuple[Value, ...], Field(min_length=1)]] = {}

    @model_validator(mode="after")
    def _few_enough(self) -> "Entrant":
        if self.combinations > MOST:
            raise ValueError(f"{self.combinations} combinations to tune; at most {MOST}")
        return self

    @property
    def combinations(self) -> int:
        return int(np.prod([len(values) for values in self.tune.values()], dtype=object))

    def candidates(self, budget: int, draw: int) -> list[Values]:
        """All combinations, or `budget` of them drawn without repetition, in the order of the grid."""
        chosen = np.arange(self.combinations)
        if self.combinations > budget:
            chosen = np.sort(generator(draw, CANDIDATES).choice(self.combinations, budget, replace=False))
        shape = [len(values) for values in self.tune.values()]
        places = [np.unravel_index(number, shape) if shape else () for number in chosen]
        return [
            {key: values[at] for (key, values), at in zip(self.tune.items(), place, strict=True)}
            for place in places
        ]


class Comparison(BaseModel, extra="forbid", frozen=True):
    job: Path
    scenario: Path
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    tuning_seeds: tuple[Seed, ...] = ()
    budget: int = Field(default=1, ge=1, le=1000)
    draw: Seed = 0  # of the candidates, where there are more than the budget allows
    metric: Annotated[str, Field(pattern=METRIC)] | None = None  # else the job's
    target: float | None = None
    looks: int = Field(default=5, ge=1, le=1000)  # whose mean has to reach the target
    entrants: Annotated[tuple[Entrant, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _fair(self) -> "Comparison":
        names = [entrant.name for entrant in self.entrants]
        if len(set(names)) != len(names):
            raise ValueError(f"two entrants have one name: {', '.join(names)}")
        for seeds in (self.seeds, self.tuning_seeds):
            if len(set(seeds)) != len(seeds):
                raise ValueError(f"a seed is there twice: {', '.join(map(str, seeds))}")
        if both := sorted(set(self.seeds) & set(self.tuning_seeds)):
            raise ValueError(
                f"seeds and tuning_seeds share {', '.join(map(str, both))}: tuned on what it is judged by"
            )
        if not self.tuning_seeds and any(entrant.combinations > 1 for entrant in self.entrants):
            raise ValueError("there is something to tune, and no tuning_seeds to do it with")
        return self


def read_comparison(path: Path) -> Comparison:
    """Raises Refused(MALFORMED) naming the key and what it should be."""
    try:
        found = Comparison.model_validate(tomllib.loads(path.read_text("utf-8")))
    except FileNotFoundError as error:
        raise Refused(Reason.NOT_FOUND, f"there is no comparison {path}") from error
    except ValidationError as error:
        raise Refused(Reason.MALFORMED, f"{path}: {explain(error)}") from error
    except NOT_TOML as error:
        raise Refused(Reason.MALFORMED, f"{path} is not TOML: {error}") from error
    return found.model_copy(update={"job": path.parent / found.job, "scenario": path.parent / found.scenario})


def entered(job: JobFile, entrant: Entrant, values: Values) -> JobFile:
    """The job as an entrant has it. Its keys replace those of the job, whole; `values` are set in what that makes.

    Raises Refused(MALFORMED), naming the entrant and the key.
    """
    document = job.model_dump(mode="python", exclude_unset=True)
    for section in SECTIONS:
        keys = getattr(entrant, section)
        if keys is not None:
            document[section] = {**document.get(section, {}), **keys}
    for key, value in values.items():
        document = _with(document, key.split("."), value)
    try:
        return JobFile.model_validate(document)
    except ValidationError as error:
        where = f" with {words(values)}" if values else ""
        raise Refused(Reason.MALFORMED, f"entrant {entrant.name}{where}: {explain(error)}") from error


def _with(table: Any, path: list[str], value: Value) -> dict[str, Any]:
    """A copy in which the key at `path` is `value`. What is no table on the way becomes one, and is refused as such."""
    first, *rest = path
    known = table if isinstance(table, dict) else {}
    return {**known, first: _with(known.get(first), rest, value) if rest else value}


def words(values: Values) -> str:
    """`lr = 0.1, buffer = 2`: by the last part of each key where that is enough."""
    short = {key: key.rpartition(".")[2] for key in values}
    unique = len(set(short.values())) == len(short)
    return ", ".join(f"{short[key] if unique else key} = {value}" for key, value in values.items())
