"""`[aggregation]` of a job file: from updates to a version. `anabranch.terms` is where others import it from."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from anabranch.unsaid import unsaid

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
    weight_decay: float | None = Field(default=None, ge=0, exclude_if=unsaid)  # decoupled
    delay_threshold: int | None = Field(
        default=None, ge=0, exclude_if=unsaid
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
    alpha: float | None = Field(default=None, gt=0, le=1, exclude_if=unsaid)  # of the silo's model in the mix
    hinge: Hinge | None = Field(default=None, exclude_if=unsaid)  # instead of staleness_exponent
    s_max: float | None = Field(
        default=None, gt=0, exclude_if=unsaid
    )  # versions; half of an update counts at this staleness, nothing at twice of it
    interval: str | None = Field(default=None, exclude_if=unsaid)  # a version at the end of each
    min_arrival: float | None = Field(
        default=None, gt=0, le=1, exclude_if=unsaid
    )  # no measured arrival rate counts as less: an update weighs at most 1/min_arrival
    mixes: Literal["models", "deltas"] | None = Field(
        default=None, exclude_if=unsaid
    )  # the silo's whole model, base and delta, or what it adds
    local_steps_min: int | None = Field(
        default=None, ge=1, le=2**31 - 1, exclude_if=unsaid
    )  # of a task, so that a slow silo arrives with the others; training.local_steps is the most
    latest_factor: float | None = Field(
        default=None, ge=1, le=100, exclude_if=unsaid
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
