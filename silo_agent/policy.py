"""The silo's policy (policy.toml): it denies by default and no job can loosen it.

The agent re-reads the file while it runs. A policy that cannot be read allows nothing.
"""

import re
import tomllib
from dataclasses import dataclass
from datetime import datetime, time
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, ValidationError, field_validator, model_validator

from anabranch.errors import Reason, Refused, wording
from anabranch.terms import NOT_TOML, Digest, JobTerms, Name, explain, seconds
from silo_agent.config import Home

_UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}

TEMPLATE = """\
# What federated jobs may do at this site. This file wins over every job, and by default it denies:
# as it stands, nothing runs. It is re-read while the agent runs (interpreter, isolation, gpus and
# processes at its start);
# check it with `anabranch-silo check`.

# --- Data: the name a job asks for -> where it lies here ------------------------------------------------
# [data.default]
# path = "/srv/data/digits"             # handed to the job's dataset() as data.path
# params = { site = "north" }           # loader parameters of this site, data.params
# transform = "transform.py:normalise"  # this site's own transform, beside this file

# --- Base models: the name a job asks for -> the folder it lies in here, read only --------------------------
# [models.minilm]
# path = "/srv/models/minilm"           # handed to the job's model() as base
# [models.bert]                         # of the Hugging Face hub: `anabranch-silo models fetch bert` brings it,
# hub = "google-bert/bert-base-uncased" # the agent itself never does
# revision = "…"                        # 40 digits: git ls-remote https://huggingface.co/ORG/NAME HEAD

# --- Jobs whose terms may start without asking ----------------------------------------------------------
# A job is named by the SHA-256 of its terms (code, settings, initial model): `anabranch-silo jobs` shows it.
# Without an entry here a person approves each job: `anabranch-silo approve JOB`.
[approve]
terms = []

# --- How they run -----------------------------------------------------------------------------------------
[run]
# interpreter = "/opt/venv/bin/python"  # Python with the packages jobs need; default: the agent's own
isolation = "required"                  # "allowed-without": run job code even where it cannot be fenced off
max_update_bytes = "1GiB"               # largest model and update
# jobs_at_once = 1                      # jobs that may work at a time; default: all that are approved
# turn = "1m"                           # then a job makes room, between two tasks, for one that has worked less
# hours = ["20:00-06:00"]               # local time in which work may start; default: always
# gpus = [0]                            # indices a job may see; [] for none; default: all
# processes = 4                         # of a job that is a script, as torchrun has them: one a GPU; default: 1
allow_revival = false                   # jobs with [revival]: this site's models may teach the shared one
"""


def _bytes(text: str) -> str:
    parse_bytes(text)
    return text


def absolute(path: Path) -> Path:
    """Raises ValueError."""
    if not path.is_absolute():
        raise ValueError(f"{str(path)!r} must be an absolute path")
    return path


def _span(text: str) -> str:
    if not 0 <= seconds(text) <= 86400:
        raise ValueError(f"{text!r}: a turn lasts at most a day")
    return text


def _window(text: str) -> str:
    parse_window(text)
    return text


def _repository(text: str) -> str:
    """Also one folder's name, with `--` for the slash."""
    part = r"[A-Za-z0-9_](?:[A-Za-z0-9_]|-(?!-)|\.(?!\.))*"
    if len(text) > 96 or not re.fullmatch(f"{part}(?:/{part})?", text):
        raise ValueError(
            f"{text[:40]!r} is no model of the hub; write for example google-bert/bert-base-uncased"
        )
    return text


class Binding(BaseModel, extra="forbid", frozen=True):
    """A data set of this site."""

    path: Path
    params: dict[str, str | int | float | bool] = {}
    transform: str | None = None  # FILE.py:NAME, relative to policy.toml

    @field_validator("path")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        return absolute(path)


class Model(BaseModel, extra="forbid", frozen=True):
    """A base model of this site: what jobs adapt, and what never leaves. A folder, or a commit of the Hugging Face hub."""

    path: Annotated[Path, AfterValidator(absolute)] | None = None
    hub: Annotated[str, AfterValidator(_repository)] | None = None
    revision: str | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError("say where it is: either path, or hub with revision")
        if self.hub is None and self.revision is not None:
            raise ValueError("revision goes with hub")
        if self.hub is not None and not re.fullmatch("[0-9a-f]{40}", self.revision or ""):
            raise ValueError(
                "hub needs revision, the 40 hexadecimal digits of a commit (a branch can move): "
                f"`git ls-remote https://huggingface.co/{self.hub} HEAD` prints it"
            )
        return self

    def placed(self, models: Path) -> Self:
        """With the path below `models` that a model of the hub is fetched to."""
        if self.hub is None:
            return self
        path = models / self.hub.replace("/", "--") / str(self.revision)
        return self.model_copy(update={"path": path})

    @property
    def folder(self) -> Path:
        assert self.path is not None, "parse_policy places models"
        return self.path

    def lacks(self, name: str) -> tuple[str, str] | None:
        """What is wrong where its folder is not there, and what to do. `name`: what the policy calls it."""
        if self.folder.exists():
            return None
        if self.hub is None:
            return (
                f"policy.toml [models.{name}]: {self.path} does not exist here",
                "Correct the path, or put the base model there",
            )
        return (
            f"policy.toml [models.{name}]: {self.hub} at {self.revision} has not been fetched",
            f"anabranch-silo models fetch {name}",
        )


@dataclass(frozen=True)
class Bound:
    """What one job may use here."""

    data: Binding
    base: Path | None  # folder of the base model, if the job names one


class Approve(BaseModel, extra="forbid", frozen=True):
    terms: tuple[Digest, ...] = ()  # digests of job terms that need no further question


class Run(BaseModel, extra="forbid", frozen=True):
    interpreter: Path | None = None
    isolation: Literal["required", "allowed-without"] = "required"
    max_update_bytes: Annotated[str, AfterValidator(_bytes)] = "1GiB"
    hours: tuple[Annotated[str, AfterValidator(_window)], ...] = ()  # empty: always
    gpus: tuple[Annotated[int, Field(ge=0)], ...] | None = None  # None: all; empty: none
    processes: int = Field(default=1, ge=1, le=64)  # of a script; a managed task has one
    jobs_at_once: int | None = Field(default=None, ge=1)  # None: all
    turn: Annotated[str, AfterValidator(_span)] = "1m"
    allow_revival: bool = False


class Policy(BaseModel, extra="forbid", frozen=True):
    data: dict[Name, Binding] = {}
    models: dict[Name, Model] = {}
    approve: Approve = Approve()
    run: Run = Run()


def parse_bytes(text: str) -> int:
    """`"1GiB"` → 1073741824. Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?i?B)", text)
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"{text!r} is not a size; write for example 500MB or 1GiB")
    try:
        return int(float(match[1]) * _UNITS[match[2]])
    except OverflowError as error:
        raise ValueError(
            f"{text[:40]!r} is more than anybody has; write for example 500MB or 1GiB"
        ) from error


def parse_window(text: str) -> tuple[time, time]:
    """`"20:00-06:00"` → the two times of day; the window may span midnight. Raises ValueError."""
    start, dash, end = text.partition("-")
    try:
        times = time.fromisoformat(start.strip()), time.fromisoformat(end.strip())
        if (
            dash and times[0] != times[1] and not any(one.tzinfo for one in times)
        ):  # local time, as the clock here
            return times
    except ValueError:
        pass
    raise ValueError(f"{text!r} is not a window of hours; write for example 20:00-06:00")


def parse_policy(text: str, where: str) -> Policy:
    """`where`: the file; models of the hub lie beside it. Raises Refused(POLICY) naming the file and every wrong key."""
    try:
        rules = Policy.model_validate(tomllib.loads(text))
    except ValidationError as error:
        raise Refused(
            Reason.POLICY, f"{where}: {explain(error)}; until it is corrected nothing runs"
        ) from error
    except NOT_TOML as error:
        raise Refused(
            Reason.POLICY, f"{where} is not TOML: {error}; until it is corrected nothing runs"
        ) from error
    models = Home(Path(where).parent).models
    return rules.model_copy(
        update={"models": {name: one.placed(models) for name, one in rules.models.items()}}
    )


def load_policy(path: Path) -> Policy:
    """Read policy.toml. Raises Refused(POLICY), also when the file is missing: no policy allows nothing."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(
            Reason.POLICY, f"{path} cannot be read ({wording(error)}); without a policy nothing runs"
        ) from error
    return parse_policy(text, str(path))


def admit(policy: Policy, terms: JobTerms, model_bytes: int | None = None) -> Bound:
    """The data and the base model these terms may use here. Raises Refused(POLICY) naming the rule that forbids them.

    `model_bytes` is the size of the model file, when it is already known; an update has the same size.
    """
    name, base = terms.file.job.data, terms.file.job.base
    if name not in policy.data:
        raise Refused(
            Reason.POLICY,
            f"policy.toml [data.{name}]: job {terms.file.job.name} asks for data {name!r} and this site binds "
            f"{', '.join(sorted(policy.data)) or 'none'}; add [data.{name}] with its path to allow it",
        )
    if base is not None and base not in policy.models:
        raise Refused(
            Reason.POLICY,
            f"policy.toml [models.{base}]: job {terms.file.job.name} adapts the base model {base!r} and this site binds "
            f"{', '.join(sorted(policy.models)) or 'none'}; add [models.{base}] with its folder's path, or with "
            "hub and revision, to allow it",
        )
    if model_bytes is not None and model_bytes > parse_bytes(policy.run.max_update_bytes):
        raise Refused(
            Reason.POLICY,
            f"policy.toml [run] max_update_bytes = {policy.run.max_update_bytes!r}: updates of job "
            f"{terms.file.job.name} have {model_bytes} bytes",
        )
    return Bound(policy.data[name], policy.models[base].folder if base is not None else None)


def bound(policy: Policy, terms: JobTerms) -> Bound | None:
    """What these terms name, if this site binds all of it."""
    job = terms.file.job
    data, model = policy.data.get(job.data), policy.models.get(job.base or "")
    if data is None or (job.base is not None and model is None):
        return None
    return Bound(data, model.folder if model is not None else None)


def admit_isolation(policy: Policy, isolated: bool, finding: str) -> None:
    """Raises Refused(POLICY) when job code could not be fenced off here and the policy insists on it."""
    if not isolated and policy.run.isolation == "required":
        raise Refused(
            Reason.POLICY,
            f'policy.toml [run] isolation = "required": {finding}; '
            'write "allowed-without" only if every approved job is trusted with the agent\'s keys',
        )


def open_now(policy: Policy, now: datetime) -> bool:
    """Whether work may start at this local time. Work that has started is finished."""

    def inside(window: str) -> bool:
        start, end = parse_window(window)
        clock = now.time()
        return start <= clock < end if start <= end else clock >= start or clock < end

    return not policy.run.hours or any(inside(window) for window in policy.run.hours)
