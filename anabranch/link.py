"""How versions and updates of a job are encoded on their way: `[link]` of a job file (FLASC, arXiv 2406.05233).

A version travels as a *view*: the entries of largest |w|, ranked over all trainable tensors together. An update travels as
the entries of largest |delta|, taken from what was trained out of the view. The two choices have nothing to do with
each other. What is left out of an update is gone, unless `upload_feedback` has the silo keep it for its next one
(SparseLoCo, arXiv 2508.15706, whose updates are ranked in chunks and sent in two bits).

Densities may fall with the version, and a *tier* of silos may have densities and values of its own. So how a file travels
follows from the terms, the version and the silo; of an update the version is its base.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from pydantic import BaseModel, Field, model_validator

from anabranch.names import Name
from anabranch.unsaid import unsaid

Values = Literal["fp32", "bf16", "fp16", "int8", "int2"]
Way = Literal["download", "upload"]
BITS: Final[Mapping[Values, int]] = MappingProxyType(
    {"fp32": 32, "bf16": 16, "fp16": 16, "int8": 8, "int2": 2}
)  # of a value
LARGEST_CHUNK: Final = 1 << 16  # elements; chunks must not cross the blocks of a packed file
LEAST: Final = 2.0**-38  # density: one entry of the largest model there may be
EVERYONE_ELSE: Final = ""  # the tier of silos that are in none


@dataclass(frozen=True)
class Packing:
    """How a file of tensors travels."""

    density: float  # of the trainable elements, at most this part; above 0, at most 1
    values: Values
    chunk: int | None = None  # elements of a tensor that are ranked together; None: all of the file are

    def kept(self, elements: int) -> int:
        """At most so many of `elements` that are ranked together, and one where there is one."""
        return max(math.floor(self.density * elements), min(elements, 1))

    def most(self, tensors: Iterable[int]) -> int:
        """At most so many of trainable tensors of so many elements each."""
        if self.chunk is None:
            return self.kept(sum(tensors))
        return sum(n // self.chunk * self.kept(self.chunk) + self.kept(n % self.chunk) for n in tensors)


class Tier(BaseModel, extra="forbid", frozen=True):
    """Silos that have densities or values of their own. What is left out is the link's."""

    silos: tuple[Name, ...] = Field(min_length=1)
    download_density: float | None = Field(default=None, gt=0, le=1, exclude_if=unsaid)
    upload_density: float | None = Field(default=None, gt=0, le=1, exclude_if=unsaid)
    download_values: Values | None = Field(default=None, exclude_if=unsaid)
    upload_values: Values | None = Field(default=None, exclude_if=unsaid)

    @model_validator(mode="after")
    def _says_something(self) -> "Tier":
        if self.model_fields_set <= {"silos"}:
            raise ValueError("says nothing: give it a density or values of its own, or leave it out")
        return self


def _constant(decay: float) -> bool:
    return decay == 1


class Link(BaseModel, extra="forbid", frozen=True):
    download_density: float = Field(default=1.0, gt=0, le=1)  # of a version's entries
    upload_density: float = Field(default=1.0, gt=0, le=1)  # of an update's
    download_values: Values = "fp32"
    upload_values: Values = "fp32"
    # An update's entries are ranked within every so many of a tensor; without it all together.
    upload_chunk: int | None = Field(default=None, ge=1, le=LARGEST_CHUNK, exclude_if=unsaid)
    # A silo keeps what its updates leave out, and adds this part of it to the next one; without it nothing is kept.
    upload_feedback: float | None = Field(default=None, gt=0, le=1, exclude_if=unsaid)
    download_decay: float = Field(default=1.0, gt=0, le=1, exclude_if=_constant)
    upload_decay: float = Field(default=1.0, gt=0, le=1, exclude_if=_constant)
    decay_every: int | None = Field(default=None, ge=1, le=2**31 - 1, exclude_if=unsaid)  # versions
    tiers: dict[Name, Tier] = Field(default={}, exclude_if=lambda tiers: not tiers)

    def tier(self, silo: str) -> str:
        return next((name for name, tier in self.tiers.items() if silo in tier.silos), EVERYONE_ELSE)

    def download(self, version: int, silo: str) -> Packing | None:
        """How a version travels to a silo; None: as it is stored."""
        return self._packing("download", version, self.tier(silo))

    def upload(self, base: int, silo: str) -> Packing | None:
        """How a silo's update of version `base` travels; None: as it was made."""
        return self._packing("upload", base, self.tier(silo))

    def views(self, version: int) -> dict[str, Packing]:
        """By tier, how a version travels. Not named are tiers that get it as it is stored."""
        found = {tier: self._packing("download", version, tier) for tier in self._tiers}
        return {tier: packing for tier, packing in found.items() if packing is not None}

    @property
    def densities(self) -> list[float]:
        """All that are said."""
        own = [
            density
            for tier in self.tiers.values()
            for density in (tier.download_density, tier.upload_density)
        ]
        return [self.download_density, self.upload_density, *(one for one in own if one is not None)]

    def packs(self, way: Way) -> bool:
        """Whether anything travels that way in another form than it is stored or made in."""
        decay: float = getattr(self, f"{way}_decay")
        return decay < 1 or any(self._packing(way, 0, tier) for tier in self._tiers)

    @property
    def _tiers(self) -> list[str]:
        return [EVERYONE_ELSE, *self.tiers]

    def _packing(self, way: Way, version: int, tier: str) -> Packing | None:
        own = self.tiers.get(tier)
        density, values = (
            getattr(own, f"{way}_{what}", None) or getattr(self, f"{way}_{what}")
            for what in ("density", "values")
        )
        if self.decay_every is not None:
            density = _decayed(density, getattr(self, f"{way}_decay"), version // self.decay_every)
        if (density, values) == (1.0, "fp32"):
            return None
        return Packing(density, values, self.upload_chunk if way == "upload" and density < 1 else None)

    @model_validator(mode="after")
    def _fits(self) -> "Link":
        if "int2" in (self.download_values, *(tier.download_values for tier in self.tiers.values())):
            raise ValueError(
                "download_values: two magnitudes are too few for a model; int2 is for updates, take int8"
            )
        if self.upload_chunk is not None and self.upload_chunk & (self.upload_chunk - 1):
            raise ValueError(f"upload_chunk: {self.upload_chunk} is no power of two; 4096 is one")
        if self.upload_chunk is not None and not self._ranks_updates:
            raise ValueError("upload_chunk: where everything is sent nothing is ranked; give upload_density")
        if self.upload_feedback is not None and not self.packs("upload"):
            raise ValueError(
                "upload_feedback: an update that is sent as it is leaves nothing out; give upload_density or upload_values"
            )
        return self

    @model_validator(mode="after")
    def _says_something(self) -> "Link":
        if not self.packs("download") and not self.packs("upload"):
            raise ValueError(
                "says nothing: give a density below 1 or values other than fp32, or leave it out"
            )
        return self

    @property
    def _ranks_updates(self) -> bool:
        said = [self.upload_density, *(tier.upload_density or 1 for tier in self.tiers.values())]
        return self.upload_decay < 1 or min(said) < 1

    @model_validator(mode="after")
    def _decays(self) -> "Link":
        falls = self.download_decay < 1 or self.upload_decay < 1
        if falls and self.decay_every is None:
            raise ValueError("decay_every: after how many versions do densities fall, each time?")
        if not falls and self.decay_every is not None:
            raise ValueError("decay_every: no density falls; give download_decay or upload_decay below 1")
        return self

    @model_validator(mode="after")
    def _tiers_are_apart(self) -> "Link":
        silos = [silo for tier in self.tiers.values() for silo in tier.silos]
        twice = sorted({silo for silo in silos if silos.count(silo) > 1})
        if twice:
            raise ValueError(
                f"tiers: {', '.join(twice)} stands in them twice; a silo is in one tier or in none"
            )
        return self


def _decayed(density: float, decay: float, times: int) -> float:
    """`density * decay**times`, by multiplications alone: those round alike on every machine, powers do not."""
    while times:
        if times & 1:
            density *= decay
        decay *= decay
        times >>= 1
    return max(density, LEAST)
