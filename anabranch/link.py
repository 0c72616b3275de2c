"""How versions and updates of a job are encoded on their way: `[link]` of a job file (FLASC, arXiv 2406.05233).

A version travels as a *view*: the entries of largest |w|, ranked over all trainable tensors together. An update travels as
the entries of largest |delta|, taken from what was trained out of the view. The two choices have nothing to do with
each other. What is left out of an update is gone, unless `upload_feedback` has the silo keep it for its next one
(SparseLoCo, arXiv 2508.15706, whose updates are ranked in chunks and sent in two bits).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from pydantic import BaseModel, Field, model_validator

from anabranch.unsaid import unsaid

Values = Literal["fp32", "bf16", "fp16", "int8", "int2"]
BITS: Final[Mapping[Values, int]] = MappingProxyType(
    {"fp32": 32, "bf16": 16, "fp16": 16, "int8": 8, "int2": 2}
)  # of a value
LARGEST_CHUNK: Final = 1 << 16  # elements; chunks must not cross the blocks of a packed file


@dataclass(frozen=True)
class Packing:
    """How a file of tensors travels."""

    density: float  # of the trainable elements, at most this part; above 0, at most 1
    values: Values
    chunk: int | None = None  # elements of a tensor that are ranked together; None: all of the file are

    def kept(self, elements: int) -> int:
        """At most so many of `elements` that are ranked together."""
        kept = math.floor(self.density * elements)
        return kept if self.chunk is None else max(kept, min(elements, 1))

    def most(self, tensors: Iterable[int]) -> int:
        """At most so many of trainable tensors of so many elements each."""
        if self.chunk is None:
            return self.kept(sum(tensors))
        return sum(n // self.chunk * self.kept(self.chunk) + self.kept(n % self.chunk) for n in tensors)


class Link(BaseModel, extra="forbid", frozen=True):
    download_density: float = Field(default=1.0, gt=0, le=1)  # of a version's entries
    upload_density: float = Field(default=1.0, gt=0, le=1)  # of an update's
    download_values: Values = "fp32"
    upload_values: Values = "fp32"
    # An update's entries are ranked within every so many of a tensor; without it all together.
    upload_chunk: int | None = Field(default=None, ge=1, le=LARGEST_CHUNK, exclude_if=unsaid)
    # A silo keeps what its updates leave out, and adds this part of it to the next one; without it nothing is kept.
    upload_feedback: float | None = Field(default=None, gt=0, le=1, exclude_if=unsaid)

    @property
    def download(self) -> Packing | None:
        """None: a version travels as it is stored."""
        return _packing(self.download_density, self.download_values)

    @property
    def upload(self) -> Packing | None:
        """None: an update travels as it was made."""
        return _packing(self.upload_density, self.upload_values, self.upload_chunk)

    @model_validator(mode="after")
    def _fits(self) -> "Link":
        if self.download_values == "int2":
            raise ValueError(
                "download_values: two magnitudes are too few for a model; int2 is for updates, take int8"
            )
        if self.upload_chunk is not None and self.upload_chunk & (self.upload_chunk - 1):
            raise ValueError(f"upload_chunk: {self.upload_chunk} is no power of two; 4096 is one")
        if self.upload_chunk is not None and self.upload_density == 1:
            raise ValueError("upload_chunk: where everything is sent nothing is ranked; give upload_density")
        if self.upload_feedback is not None and self.upload is None:
            raise ValueError(
                "upload_feedback: an update that is sent as it is leaves nothing out; give upload_density or upload_values"
            )
        return self

    @model_validator(mode="after")
    def _says_something(self) -> "Link":
        if self.download is None and self.upload is None:
            raise ValueError(
                "says nothing: give a density below 1 or values other than fp32, or leave it out"
            )
        return self


def _packing(density: float, values: Values, chunk: int | None = None) -> Packing | None:
    return None if (density, values) == (1.0, "fp32") else Packing(density, values, chunk)
