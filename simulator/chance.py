"""How long things take: distributions a scenario names, drawn from a generator that belongs to one silo.

Every silo has its own generator, seeded by the run's seed and the silo's number, and draws in the order of its own
tasks. So what one silo does never changes what another one draws.
"""

from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, Field, model_validator

Positive = Annotated[float, Field(gt=0, le=1e9)]
Natural = Annotated[float, Field(ge=0, le=1e9)]


class Constant(BaseModel, extra="forbid", frozen=True):
    kind: Literal["constant"] = "constant"
    seconds: Natural

    def draw(self, _generator: np.random.Generator) -> float:
        return self.seconds


class Uniform(BaseModel, extra="forbid", frozen=True):
    kind: Literal["uniform"]
    low: Natural
    high: Natural

    @model_validator(mode="after")
    def _ordered(self) -> "Uniform":
        if self.high < self.low:
            raise ValueError(f"high ({self.high}) is below low ({self.low})")
        return self

    def draw(self, generator: np.random.Generator) -> float:
        return float(generator.uniform(self.low, self.high))


class Lognormal(BaseModel, extra="forbid", frozen=True):
    """`median` times e^(sigma z): what takes around `median`, seldom much longer."""

    kind: Literal["lognormal"]
    median: Positive
    sigma: Annotated[float, Field(ge=0, le=5)]

    def draw(self, generator: np.random.Generator) -> float:
        return self.median * float(np.exp(self.sigma * generator.standard_normal()))


class Exponential(BaseModel, extra="forbid", frozen=True):
    kind: Literal["exponential"]
    mean: Positive

    def draw(self, generator: np.random.Generator) -> float:
        return float(generator.exponential(self.mean))


Duration = Annotated[Constant | Uniform | Lognormal | Exponential, Field(discriminator="kind")]


def generator(*seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
