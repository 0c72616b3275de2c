"""Who takes part in a simulation and how the time goes by there: one TOML file beside the job file.

seed = 1
horizon = "80h"                  # of virtual time; the job's own end may come first

[data.default]                   # what the binding `default` of the job file is at these silos
path = "fashion.npz"             # arrays x and y, or a CSV file, or a folder with one file per silo
deal = { kind = "dirichlet", alpha = 0.1 }

[[silos]]
count = 3
train = { kind = "lognormal", median = 1.0, sigma = 0.2 }      # seconds of a task of `local_steps` steps
download = { kind = "constant", seconds = 0.1 }
upload = { kind = "uniform", low = 0.1, high = 0.2 }
available = { every = "24h", from = "20h", lasts = "10h" }     # works only then
dropout = { probability = 0.02, away = { kind = "exponential", mean = 7200 } }
"""

import tomllib
from collections.abc import Sized
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from anabranch.errors import Reason, Refused
from anabranch.terms import LONGEST, NOT_TOML, SPLIT, Name, explain, seconds
from server.core.allocation import Rule, Weight, agree
from simulator.chance import Constant, Duration, Exponential, Uniform, generator

MOST_SILOS = 100_000
PROFILES = 1  # what the generator of (seed, this) draws; those of silos are (seed, 0, number)
NOTHING = Constant(seconds=0.0)


def _span(text: str) -> str:
    if not 0 < seconds(text) <= LONGEST:
        raise ValueError(f"{text!r} is not a duration above 0 and below ten years")
    return text


def _moment(text: str) -> str:
    if not 0 <= seconds(text) <= LONGEST:
        raise ValueError(f"{text!r} is not a time of day or a duration below ten years")
    return text


Span = Annotated[str, AfterValidator(_span)]
Moment = Annotated[str, AfterValidator(_moment)]


class Available(BaseModel, extra="forbid", frozen=True):
    """The window that opens `from` after the start of every period and `lasts` so long; it may reach into the next one."""

    every: Span = "24h"
    begins: Moment = Field(default="0h", alias="from")
    lasts: Span

    @model_validator(mode="after")
    def _fits(self) -> "Available":
        if seconds(self.lasts) > seconds(self.every) or seconds(self.begins) >= seconds(self.every):
            raise ValueError(f"a window from {self.begins} of {self.lasts} does not fit into {self.every}")
        return self

    def finish(self, start: float, work: float) -> float:
        """When `work` seconds are done that begin at `start` or later and rest while the window is closed."""
        every, begins, lasts = seconds(self.every), seconds(self.begins), seconds(self.lasts)
        number = (start - begins) // every
        opened = begins + number * every
        now = start
        if now >= opened + lasts:
            opened += every
            now = opened
        open_for = opened + lasts - now
        if work <= open_for:
            return now + work
        whole, rest = divmod(work - open_for, lasts)
        if rest == 0.0 and whole:
            whole, rest = whole - 1, lasts
        return opened + (whole + 1) * every + rest


class Dropout(BaseModel, extra="forbid", frozen=True):
    """With this probability a task is interrupted half-way; the silo comes back after `away` and does it again."""

    probability: float = Field(gt=0, lt=1)
    away: Duration


def _none(said: Sized) -> bool:
    """Such a key is not told: scenarios that do without it read as they always did."""
    return not said


class Group(BaseModel, extra="forbid", frozen=True):
    """`count` silos of one kind."""

    count: int = Field(default=1, ge=1, le=MOST_SILOS)
    names: tuple[Name, ...] = Field(default=(), exclude_if=_none)  # as a job's [link.tiers] names them
    train: Duration
    download: Duration = NOTHING
    upload: Duration = NOTHING
    evaluate: Duration = NOTHING
    available: Available | None = None
    dropout: Dropout | None = None

    @model_validator(mode="after")
    def _names_each(self) -> "Group":
        if self.names and len(self.names) != self.count:
            raise ValueError(f"names: {len(self.names)} of {self.count} silos; name each, or none")
        return self


class Dirichlet(BaseModel, extra="forbid", frozen=True):
    """The records of every class are dealt in shares drawn from a Dirichlet distribution; `alpha` small: uneven."""

    kind: Literal["dirichlet"]
    alpha: float = Field(gt=0, le=1e6)
    label: str = "y"  # array or column with the classes
    least: int = Field(default=1, ge=1)  # records of a silo; shares are drawn again until everyone has them


class Column(BaseModel, extra="forbid", frozen=True):
    """A column of a CSV file names the silo of each record: as many silos as it has values."""

    kind: Literal["column"]
    name: str


class Files(BaseModel, extra="forbid", frozen=True):
    """Every file of the folder is a silo."""

    kind: Literal["files"]
    pattern: str = "*"


class Same(BaseModel, extra="forbid", frozen=True):
    """Every silo reads the whole of `path`; the task tells them apart by `data.params["silo"]`."""

    kind: Literal["same"] = "same"


Deal = Annotated[Dirichlet | Column | Files | Same, Field(discriminator="kind")]


class Data(BaseModel, extra="forbid", frozen=True):
    path: Path
    deal: Deal = Same()
    test: Path | None = None  # records no silo has: `measure` looks at them
    validation: Path | None = (
        None  # others that no silo has: a comparison tunes on these, and reports on `test`
    )


class Model(BaseModel, extra="forbid", frozen=True):
    path: Path


class Measure(BaseModel, extra="forbid", frozen=True):
    """What the experimenter sees and no silo spends time on: the head, looked at now and again."""

    every: Span
    records: Literal["test", "validation"] = "test"  # which of the two files of [data.NAME]
    split: Annotated[str, Field(pattern=SPLIT)] | None = None  # what the task is asked for; else as `records`
    silos: bool = False  # on every silo's records as well
    average: bool = False  # the average beside the head (`aggregation.ema`) as well

    @property
    def part(self) -> str:
        return self.split or self.records


class Synthetic(BaseModel, extra="forbid", frozen=True):
    """No data and no model code: silos pull a vector towards a place of their own, for measuring the simulator."""

    parameters: int = Field(default=1000, ge=1, le=10**9)
    spread: float = Field(default=1.0, ge=0)
    noise: float = Field(default=0.1, ge=0)


class Scenario(BaseModel, extra="forbid", frozen=True):
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    horizon: Span
    log: bool = (
        False  # the server's own rooms, with signatures and a log that is exported: slower, the same run
    )
    allocation: Rule = "turns"  # how jobs that run together share silos, as in server.toml
    shares: dict[Name, Weight] = {}  # with fedast-static: weights by the name of a job; others weigh 1
    aggregation_seconds: float = Field(default=0.0, ge=0, le=1e6)  # the server's, for each version
    revival_seconds: float = Field(default=0.0, ge=0, le=1e6)  # the reviver's, for each revival
    delays: Literal["revive-default", "revive-shifted"] | None = None  # `silos` then gives numbers only
    silos: tuple[Group, ...] = ()
    population: int | None = Field(default=None, ge=1, le=MOST_SILOS)  # with `delays`
    data: dict[Name, Data] = {}  # by the name a job file gives to the binding
    models: dict[Name, Model] = Field(default={}, exclude_if=_none)  # base models, likewise
    measure: Measure | None = None
    synthetic: Synthetic | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> "Scenario":
        if (self.delays is None) == (not self.silos):
            raise ValueError("say who the silos are: either [[silos]] groups, or delays with population")
        if (self.delays is None) != (self.population is None):
            raise ValueError("delays and population go together")
        if bool(self.data) == (self.synthetic is not None):
            raise ValueError("say what silos train on: [data.NAME] for a job's task, or [synthetic]")
        if sum(group.count for group in self.silos) > MOST_SILOS:
            raise ValueError(f"at most {MOST_SILOS} silos")
        agree(self.allocation, self.shares)
        return self

    def profiles(self) -> list[Group]:
        """One for each silo, in order."""
        if self.delays is not None and self.population is not None:
            return published(self.delays, self.population, self.seed)
        return [group for group in self.silos for _ in range(group.count)]


def published(delays: Literal["revive-default", "revive-shifted"], population: int, seed: int) -> list[Group]:
    """The delay schedules of FedRevive (arXiv 2511.00655, appendix D.1; NVFlare pull request 5274).

    A silo keeps the mean of its exponential training time and the middle of its uniform upload time for good.
    """
    chance = generator(seed, PROFILES)
    found = []
    for _ in range(population):
        if delays == "revive-default":
            mean = float(chance.choice([1.0, 1.3, 1.6], p=[0.25, 0.5, 0.25]))
            download, middle, half = 0.1, float(chance.choice([0.15, 0.25])), 0.02
        else:
            mean, download, middle, half = 0.1, 0.02, float(chance.choice([0.05, 0.10])), 0.01
        found.append(
            Group(
                train=Exponential(kind="exponential", mean=mean),
                download=Constant(seconds=download),
                upload=Uniform(kind="uniform", low=middle - half, high=middle + half),
            )
        )
    return found


def read_scenario(path: Path) -> Scenario:
    """Raises Refused(MALFORMED) naming the key and what it should be."""
    try:
        scenario = Scenario.model_validate(tomllib.loads(path.read_text("utf-8")))
    except FileNotFoundError as error:
        raise Refused(Reason.NOT_FOUND, f"there is no scenario {path}") from error
    except ValidationError as error:
        raise Refused(Reason.MALFORMED, f"{path}: {explain(error)}") from error
    except NOT_TOML as error:
        raise Refused(Reason.MALFORMED, f"{path} is not TOML: {error}") from error
    models = {name: Model(path=path.parent / model.path) for name, model in scenario.models.items()}
    data = {name: _beside(path, data) for name, data in scenario.data.items()}
    return scenario.model_copy(update={"data": data, "models": models})


def _beside(file: Path, data: Data) -> Data:
    """Paths of a scenario are relative to its file."""
    paths = {"path": data.path, "test": data.test, "validation": data.validation}
    return data.model_copy(
        update={name: file.parent / path for name, path in paths.items() if path is not None}
    )
