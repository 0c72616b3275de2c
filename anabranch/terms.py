"""Job terms: the frozen, hashable description of a job that every silo approves.

The canonical JSON (RFC 8785) of `JobTerms` is hashed with SHA-256; that digest is what a silo approves and what the
audit log names. `JobFile` is the part a person writes as TOML; submission adds the digests of what it goes with.
"""

import hashlib
import tomllib
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import rfc8785
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from anabranch.adapting import Adapter as Adapter
from anabranch.aggregating import CALIBRATED as CALIBRATED
from anabranch.aggregating import EQUAL
from anabranch.aggregating import Aggregation as Aggregation
from anabranch.aggregating import Hinge as Hinge
from anabranch.aggregating import ServerOptimizer as ServerOptimizer
from anabranch.aggregating import Strategy as Strategy
from anabranch.errors import Reason, Refused, plain
from anabranch.link import EVERYONE_ELSE, Link, Packing
from anabranch.names import NAME as NAME
from anabranch.names import Name as Name
from anabranch.unsaid import unsaid

DIGEST = r"^[0-9a-f]{64}$"
SPLIT = r"^[a-z0-9]([a-z0-9_-]{0,46}[a-z0-9])?$"  # a part of a silo's records: it is named in the audit log
METRIC = r"^[A-Za-z]([A-Za-z0-9_./@-]{0,62}[A-Za-z0-9])?$"  # "val/accuracy"; likewise
Digest = Annotated[str, Field(pattern=DIGEST)]

LONGEST = 3653 * 86400.0  # seconds: deadlines are dates in the log
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

NOT_TOML = (ValueError, RecursionError)  # what `tomllib` raises; not all of it is TOMLDecodeError
FAULTS = 20  # of one document are explained
FAULT = 300  # characters of each


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
    base: Name | None = Field(
        default=None, exclude_if=unsaid
    )  # the model binding a silo's policy resolves to the folder that Task.model(base) reads
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
        default=None, gt=0, exclude_if=unsaid
    )  # FedProx's mu: adds (mu/2) * |w - base|^2 to the loss
    buffers: Literal["average", "local", "none"] = "average"  # BatchNorm running statistics and the like
    precision: Literal["fp32"] = "fp32"
    save_every: str = "5m"  # optimizer, RNG and sampler, so that a killed agent resumes inside a cycle
    progress_timeout: str = "10m"  # a task that makes no step for this long is stopped


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
        default=None, gt=0, exclude_if=unsaid
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
    adapter: Adapter | None = Field(default=None, exclude_if=unsaid)
    aggregation: Aggregation = Aggregation()
    evaluation: Evaluation = Evaluation()
    stop: Stop = Stop()
    retention: Retention = Retention()
    revival: Revival | None = Field(default=None, exclude_if=unsaid)
    link: Link | None = Field(default=None, exclude_if=unsaid)

    @property
    def requires(self) -> tuple[str, ...]:
        """Distributions that a silo has to have, those of the platform's own work for this job included."""
        lora = self.adapter is not None and self.adapter.kind == "lora"
        return (*self.job.requires, *(["peft"] if lora else []))

    def tier(self, silo: str) -> str:
        """Whose views it gets."""
        return self.link.tier(silo) if self.link else EVERYONE_ELSE

    def views(self, version: int) -> dict[str, Packing]:
        """By tier, how a version travels. Not named are tiers that get it as it is stored."""
        return self.link.views(version) if self.link else {}

    def download(self, version: int, silo: str) -> Packing | None:
        """How a version travels to a silo; None: as it is stored."""
        return self.link.download(version, silo) if self.link else None

    def upload(self, base: int, silo: str) -> Packing | None:
        """How a silo's update of version `base` travels; None: as it was made."""
        return self.link.upload(base, silo) if self.link else None

    @property
    def feedback(self) -> float | None:
        """This part of what a silo's updates left out is added to its next one; None: nothing is kept of it."""
        return self.link.upload_feedback if self.link else None

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
        if not self.job.managed and (self.adapter is not None or self.job.base is not None):
            said = "adapter" if self.adapter is not None else "job.base"
            raise ValueError(
                f"{said}: {self.job.task} has a loop of its own and builds its model by itself; name a task.py:Class"
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
        if mixes_models and self.link is not None and self.link.packs("download"):
            raise ValueError(
                f"link: {strategy} mixes whole models, base and update, and the base is not what silos began from; "
                "leave its download_ keys out, or take a strategy that adds updates"
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
    base_sha256: Digest | None = Field(
        default=None, exclude_if=unsaid
    )  # what the model holds and neither trains nor sends; None: nothing is frozen

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
