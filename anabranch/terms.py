"""Job terms: the frozen, hashable description of a job that every silo approves.

The canonical JSON (RFC 8785) of `JobTerms` is hashed with SHA-256; that digest is what a silo approves and what the
audit log names. `JobFile` is the part a person writes as TOML; submission adds the digests of what it goes with.
"""

import hashlib
import tomllib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import rfc8785
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from anabranch.errors import Reason, Refused, plain
from anabranch.link import Link, Packing

NAME = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"  # silos, jobs, data bindings: a DNS label
DIGEST = r"^[0-9a-f]{64}$"
SPLIT = r"^[a-z0-9]([a-z0-9_-]{0,46}[a-z0-9])?$"  # a part of a silo's records: it is named in the audit log
METRIC = r"^[A-Za-z]([A-Za-z0-9_./@-]{0,62}[A-Za-z0-9])?$"  # "val/accuracy"; likewise
Name = Annotated[str, Field(pattern=NAME)]
Digest = Annotated[str, Field(pattern=DIGEST)]

LONGEST = 3653 * 86400.0  # seconds: deadlines are dates in the log
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

NOT_TOML = (ValueError, RecursionError)  # what `tomllib` raises; not all of it is TOMLDecodeError
FAULTS = 20  # of one document are explained
FAULT = 300  # characters of each

Strategy = Literal["fedavg", "fedbuff", "fedasync", "afl-dw", "ca2fl", "fedfix", "fedcompass"]

# Keys that only some strategies or server optimizers read. Standing at their default they say nothing, so they may.
READ_BY: Mapping[str, tuple[str, ...]] = {
    "buffer": ("fedbuff", "ca2fl"),
    "staleness_exponent": ("fedbuff", "fedasync", "fedcompass"),
    "normalise": ("fedbuff",),
    "alpha": ("fedasync", "fedcompass"),
    "hinge": ("fedasync", "fedcompass"),
    "mixes": ("fedcompass",),
    "local_steps_min": ("fedcompass",),
    "latest_factor": ("fedcompass",),
    "s_max": ("afl-dw",),
    "interval": ("fedfix",),
    "min_arrival": ("fedfix",),
    "momentum": ("sgd",),
    "beta1": ("adam", "adamw", "yogi"),
    "beta2": ("adam", "adamw", "yogi"),
    "epsilon": ("adam", "adamw", "yogi"),
    "weight_decay": ("adamw",),
}
# Defaults of their own.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "fedasync": {"buffer": 1, "alpha": 0.6},
    "afl-dw": {"buffer": 1},
    "fedfix": {"min_arrival": 0.1},
    "fedcompass": {"alpha": 0.9, "mixes": "models", "latest_factor": 1.2},
    "adamw": {"weight_decay": 0.01},
}
# What the job file has to say, and why.
NEEDED: Mapping[str, tuple[str, str]] = {
    "afl-dw": (
        "s_max",
        "the staleness at which half of an update counts; about 0.75 times the number of silos",
    ),
    "fedfix": ("interval", "how long a window is, for example 10m"),
    "fedcompass": (
        "local_steps_min",
        "the fewest steps of a task; training.local_steps is the most, for example five times as many",
    ),
}
CALIBRATED = (
    50  # updates per version with ca2fl, at most: the log entry of a version names every silo besides
)
EQUAL = ("fedasync", "afl-dw", "ca2fl", "fedfix", "fedcompass")  # no record count enters these rules


def _unsaid(value: Any) -> bool:
    """Such a key is not in the canonical form: terms that do without it have the digest they always had."""
    return value is None


def seconds(text: str | int | float) -> float:
    """`"10m"` → 600.0. A bare number is seconds. Raises ValueError."""
    if isinstance(text, int | float):
        return float(text)
    number, unit = text[:-1], text[-1:]
    if unit not in _UNITS:
        raise ValueError(f"{text!r} is not a duration; write for example 30s, 10m, 6h or 30d")
    return float(number) * _UNITS[unit]


class Job(BaseModel, extra="forbid", frozen=True):
    name: Annotated[Name, Field(max_length=48)]  # a job's id is longer by nine
    task: str  # "task.py:Class" (managed training) or "train.py" (a script with its own loop)
    data: Name = "default"  # the binding a silo's policy resolves to a path
    requires: tuple[str, ...] = ()  # distributions that must be importable at the silo; never installed
    seed: int = Field(default=0, ge=0, le=2**31 - 1)  # of Task.model()
    params: dict[str, str | int | float | bool] = {}  # handed to the task as given

    @field_validator("task")
    @classmethod
    def _inside_the_archive(cls, task: str) -> str:
        path = PurePosixPath(task.partition(":")[0])
        if path.suffix != ".py" or path.is_absolute() or ".." in path.parts:
            raise ValueError(
                f"{task!r}: name a Python file inside the job folder, as task.py:Class or train.py"
            )
        return task

    @property
    def managed(self) -> bool:
        """Whether the platform owns the training loop."""
        return ":" in self.task


class Silos(BaseModel, extra="forbid", frozen=True):
    min: int = Field(default=1, ge=1)  # approvals before the job starts
    weighting: Literal["equal", "examples"] = "equal"  # "examples" puts record counts into the log


class Optimizer(BaseModel, extra="forbid", frozen=True):
    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = Field(default=0.1, gt=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)  # sgd
    weight_decay: float = Field(default=0.0, ge=0)


class Training(BaseModel, extra="forbid", frozen=True):
    local_steps: int = Field(default=20, ge=1, le=2**31 - 1)  # of a task; with fedcompass the most
    batch_size: int = Field(default=32, ge=1, le=2**31 - 1)
    optimizer: Optimizer = Optimizer()
    proximal: float | None = Field(
        default=None, gt=0, exclude_if=_unsaid
    )  # FedProx's mu: adds (mu/2) * |w - base|^2 to the loss
    buffers: Literal["average", "local", "none"] = "average"  # BatchNorm running statistics and the like
    precision: Literal["fp32"] = "fp32"
    save_every: str = "5m"  # optimizer, RNG and sampler, so that a killed agent resumes inside a cycle
    progress_timeout: str = "10m"  # a task that makes no step for this long is stopped


def _with_own_defaults(data: Any, key: str, otherwise: str) -> Any:
    if not isinstance(data, dict):
        return data
    name = data.get(key, otherwise)
    return {**DEFAULTS.get(name, {}), **data} if isinstance(name, str) else data


def _only_what_is_read(said: BaseModel, name: str) -> None:
    """Raises ValueError for a key that `name` does not read, and for one it cannot do without."""
    for key, field in type(said).model_fields.items():
        readers = READ_BY.get(key, (name,))
        silent = DEFAULTS.get(name, {}).get(key, field.default)
        if name not in readers and getattr(said, key) != silent:
            raise ValueError(
                f"{key} is a key of {' and '.join(readers)}; {name} does not read it, leave it out"
            )
    key, why = NEEDED.get(name, ("", ""))
    if key and getattr(said, key) is None:
        raise ValueError(f"{name} needs {key}: {why}")


class ServerOptimizer(BaseModel, extra="forbid", frozen=True):
    """`theta += lr * direction`; formulas in `anabranch.rules.optimizers`."""

    name: Literal["sgd", "adam", "adamw", "yogi"] = "sgd"
    lr: float = Field(default=1.0, gt=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.99, ge=0, lt=1)
    epsilon: float = Field(default=1e-3, gt=0)
    weight_decay: float | None = Field(default=None, ge=0, exclude_if=_unsaid)  # decoupled
    delay_threshold: int | None = Field(
        default=None, ge=0, exclude_if=_unsaid
    )  # versions; an older update in the buffer lowers lr to 1/its staleness

    @model_validator(mode="before")
    @classmethod
    def _own_defaults(cls, data: Any) -> Any:
        return _with_own_defaults(data, "name", "sgd")

    @model_validator(mode="after")
    def _fits(self) -> "ServerOptimizer":
        _only_what_is_read(self, self.name)
        return self


class Hinge(BaseModel, extra="forbid", frozen=True):
    """Weight 1 up to a staleness of `until`, then 1 / (slope * (staleness - until) + 1)."""

    slope: float = Field(default=10.0, gt=0)
    until: int = Field(default=4, ge=0)  # versions


class Aggregation(BaseModel, extra="forbid", frozen=True):
    """From updates to a version; formulas in `anabranch.rules`, each key explained in docs/strategies.md."""

    strategy: Strategy = "fedbuff"
    buffer: int = Field(default=2, ge=1, le=100)  # updates per version
    max_wait: str = "10m"  # closes a buffer (or a fedavg round) that would stall
    staleness_exponent: float = Field(default=0.0, ge=0, le=1)  # weight (1+staleness)^-a; 0 switches it off
    normalise: Literal["count", "weights"] = "weights"  # divide by the number of updates, or their weights
    alpha: float | None = Field(
        default=None, gt=0, le=1, exclude_if=_unsaid
    )  # of the silo's model in the mix
    hinge: Hinge | None = Field(default=None, exclude_if=_unsaid)  # instead of staleness_exponent
    s_max: float | None = Field(
        default=None, gt=0, exclude_if=_unsaid
    )  # versions; half of an update counts at this staleness, nothing at twice of it
    interval: str | None = Field(default=None, exclude_if=_unsaid)  # a version at the end of each
    min_arrival: float | None = Field(
        default=None, gt=0, le=1, exclude_if=_unsaid
    )  # no measured arrival rate counts as less: an update weighs at most 1/min_arrival
    mixes: Literal["models", "deltas"] | None = Field(
        default=None, exclude_if=_unsaid
    )  # the silo's whole model, base and delta, or what it adds
    local_steps_min: int | None = Field(
        default=None, ge=1, le=2**31 - 1, exclude_if=_unsaid
    )  # of a task, so that a slow silo arrives with the others; training.local_steps is the most
    latest_factor: float | None = Field(
        default=None, ge=1, le=100, exclude_if=_unsaid
    )  # a group that is expected in 10 minutes is waited for 10 * latest_factor
    max_staleness: int = Field(default=1000, ge=0)  # versions
    max_update_norm: float | None = Field(default=None, gt=0)
    server_optimizer: ServerOptimizer = ServerOptimizer()
    ema: float | None = Field(
        default=0.9, ge=0, lt=1
    )  # decay per version of the average beside the head; 0: no average

    @field_validator("ema")
    @classmethod
    def _none_for_zero(cls, ema: float | None) -> float | None:
        return ema or None

    @model_validator(mode="before")
    @classmethod
    def _own_defaults(cls, data: Any) -> Any:
        return _with_own_defaults(data, "strategy", "fedbuff")

    @model_validator(mode="after")
    def _fits(self) -> "Aggregation":
        _only_what_is_read(self, self.strategy)
        if self.hinge is not None and self.staleness_exponent:
            raise ValueError("staleness_exponent and hinge are two ways to weight by staleness; keep one")
        if self.strategy == "ca2fl" and self.buffer > CALIBRATED:
            raise ValueError(f"buffer is at most {CALIBRATED} with ca2fl")
        return self


class Revival(BaseModel, extra="forbid", frozen=True):
    """What silos' newest models agree on is distilled into the head, on inputs made without data (FedRevive, arXiv
    2511.00655); docs/revival.md. Mode "paper" blends as published, and runs in simulations only.
    """

    mode: Literal["additive", "paper"] = "additive"
    gain: float = Field(default=0.3, gt=0, le=1)  # of the distilled step is added
    late: int = Field(default=10, ge=1)  # versions: a result that is older than this is dropped
    freeze: int = Field(default=10, ge=0)  # versions before anything is synthesised
    warmup: int = Field(default=30, ge=0)  # versions before anything is distilled
    steps: int = Field(default=5, ge=1, le=1000)  # of distillation
    lr: float = Field(default=1e-3, gt=0)
    samples: int = Field(default=8, ge=1, le=4096)  # inputs of a step, for each teacher
    synthesis: Literal["generator", "noise", "public"] = "generator"
    synthesis_every: int = Field(default=4, ge=1)  # revivals
    synthesis_steps: int = Field(default=5, ge=1, le=1000)
    synthesis_batch: int = Field(default=64, ge=2, le=4096)
    synthesis_teachers: int = Field(default=3, ge=1, le=100)  # drawn for each synthesis
    s_max: float | None = Field(
        default=None, gt=0, exclude_if=_unsaid
    )  # paper: half of an update is replaced at this staleness, all of it at twice of it

    @model_validator(mode="after")
    def _fits(self) -> "Revival":
        if (self.mode == "paper") != (self.s_max is not None):
            raise ValueError(
                "s_max, about 0.75 times the number of silos, belongs to mode paper, which needs it"
            )
        return self


class Evaluation(BaseModel, extra="forbid", frozen=True):
    every: int = Field(default=5, ge=1)  # versions
    split: Annotated[str, Field(pattern=SPLIT)] = "validation"
    metric: Annotated[str, Field(pattern=METRIC)] = "accuracy"
    mode: Literal["max", "min"] = "max"


class Stop(BaseModel, extra="forbid", frozen=True):
    versions: int = Field(default=80, ge=1)
    patience: int | None = Field(default=None, ge=1)  # evaluations without improvement


class Retention(BaseModel, extra="forbid", frozen=True):
    """How long the server keeps what only a reviewer needs. The head and the best version stay."""

    updates: str = "30d"  # after the job has ended and a model of it was last handed out: replay covers this
    snapshots: str = "7d"  # of a version after the next one was published: replay recomputes it


class JobFile(BaseModel, extra="forbid", frozen=True):
    """What a person writes: one TOML file beside the code folder."""

    job: Job
    silos: Silos = Silos()
    training: Training = Training()
    aggregation: Aggregation = Aggregation()
    evaluation: Evaluation = Evaluation()
    stop: Stop = Stop()
    retention: Retention = Retention()
    revival: Revival | None = Field(default=None, exclude_if=_unsaid)
    link: Link | None = Field(default=None, exclude_if=_unsaid)

    @property
    def download(self) -> Packing | None:
        """How a version travels; None: as it is stored."""
        return self.link.download if self.link else None

    @property
    def upload(self) -> Packing | None:
        """How an update travels; None: as it was made."""
        return self.link.upload if self.link else None

    @property
    def steps(self) -> str:
        """Of a task, in words; with fedcompass the server chooses, within these bounds."""
        least, most = self.aggregation.local_steps_min, self.training.local_steps
        return str(most) if least is None else f"{least} to {most}"

    @model_validator(mode="after")
    def _durations_parse(self) -> "JobFile":
        for text in (
            self.training.save_every,
            self.training.progress_timeout,
            self.aggregation.max_wait,
            self.retention.updates,
            self.retention.snapshots,
            *filter(None, [self.aggregation.interval]),
        ):
            if not 0 <= seconds(text) <= LONGEST:
                raise ValueError(f"{text!r} is not a duration between 0 s and ten years")
        if self.aggregation.interval is not None and seconds(self.aggregation.interval) < 1:
            raise ValueError("aggregation.interval is at least 1s")
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> "JobFile":
        strategy = self.aggregation.strategy
        if strategy in EQUAL and self.silos.weighting != "equal":
            raise ValueError(f"silos.weighting: {strategy} weighs silos equally, and needs no record counts")
        least = self.aggregation.local_steps_min
        if least is not None and least > self.training.local_steps:
            raise ValueError(
                f"aggregation.local_steps_min ({least}) is above training.local_steps "
                f"({self.training.local_steps}), which is the most"
            )
        if self.revival is not None and not self.job.managed:
            raise ValueError(
                f"revival: {self.job.task} has a loop of its own; only a task says what its inputs are"
            )
        if self.revival is not None and strategy not in ("fedbuff", "fedasync", "ca2fl"):
            raise ValueError(f"revival: {strategy} has no place for a step that is not an update's")
        if self.revival is not None and self.revival.mode == "paper":
            rule = self.aggregation
            if (strategy, rule.buffer, rule.server_optimizer.name) != ("fedbuff", 1, "sgd"):
                raise ValueError(
                    "revival: mode paper blends one update at a time: fedbuff, buffer = 1 and sgd"
                )
        mixes_models = strategy == "fedasync" or self.aggregation.mixes == "models"
        if mixes_models and self.download is not None:
            raise ValueError(
                f"link: {strategy} mixes whole models, base and update, and the base is not what silos began from; "
                "leave download_density and download_values out, or take a strategy that adds updates"
            )
        if self.training.proximal is not None and not self.job.managed:
            raise ValueError(
                f"training.proximal: {self.job.task} has a loop of its own; add the term to its loss"
            )
        return self

    @model_validator(mode="after")
    def _has_a_canonical_form(self) -> "JobFile":
        rfc8785.dumps(self.model_dump(mode="json"))  # no infinity, no integer that JSON readers round
        return self


class JobTerms(BaseModel, extra="forbid", frozen=True):
    """What silos approve. `digest()` names it everywhere."""

    v: Literal[1] = 1
    file: JobFile
    archive_sha256: Digest  # the code
    initial_sha256: Digest  # version 0, canonical safetensors
    manifest_sha256: Digest  # names, shapes and classes of the tensors that travel

    def encode(self) -> bytes:
        """Canonical JSON, UTF-8."""
        return rfc8785.dumps(self.model_dump(mode="json"))

    def digest(self) -> str:
        return hashlib.sha256(self.encode()).hexdigest()


def parse_job_file(text: str, where: str = "job file") -> JobFile:
    """Read the TOML a person wrote. Raises Refused(MALFORMED) naming the key and what it should be."""
    try:
        return JobFile.model_validate(tomllib.loads(text))
    except ValidationError as error:
        raise Refused(Reason.MALFORMED, f"{where}: {explain(error)}") from error
    except NOT_TOML as error:
        raise Refused(Reason.MALFORMED, f"{where} is not TOML: {error}") from error


@lru_cache(128)
def parse_terms(data: bytes) -> JobTerms:
    """Read canonical terms. Raises Refused(MALFORMED), also when `data` is not the canonical encoding.

    Kept, because every decision about a job reads its terms: nobody changes what this returns.
    """
    try:
        terms = JobTerms.model_validate_json(data)
    except ValidationError as error:
        raise Refused(Reason.MALFORMED, f"job terms: {explain(error)}") from error
    if terms.encode() != data:
        raise Refused(Reason.MALFORMED, "job terms are not in canonical form (RFC 8785)")
    return terms


def explain(error: ValidationError) -> str:
    """The first faults, each naming its key, for a person who wrote the file. Its keys may be a stranger's."""

    def line(fault: Any) -> str:
        key = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            return f"unknown key {key}"
        return f"{key}: {fault['msg']}" if key else str(fault["msg"])

    faults = error.errors(include_url=False)
    more = [f"and {len(faults) - FAULTS} more"] if len(faults) > FAULTS else []
    return "; ".join([plain(line(fault), FAULT) for fault in faults[:FAULTS]] + more)
