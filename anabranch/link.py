"""How versions and updates of a job are encoded on their way: `[link]` of a job file (FLASC, arXiv 2406.05233).

A version travels as a *view*: the entries of largest |w|, ranked over all trainable tensors together. An update travels as
the entries of largest |delta|, taken from what was trained out of the view. The two choices have nothing to do with
each other, and what is left out of an update is gone: nobody keeps it for later.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from pydantic import BaseModel, Field, model_validator

Values = Literal["fp32", "bf16", "fp16", "int8"]
WIDTH: Final[Mapping[Values, int]] = MappingProxyType(
    {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
)  # bytes of a value


@dataclass(frozen=True)
class Packing:
    """How a file of tensors travels."""

    density: float  # of the trainable elements, at most this part; above 0, at most 1
    values: Values

    def kept(self, elements: int) -> int:
        """At most so many of `elements`."""
        return math.floor(self.density * elements)


class Link(BaseModel, extra="forbid", frozen=True):
    download_density: float = Field(default=1.0, gt=0, le=1)  # of a version's entries
    upload_density: float = Field(default=1.0, gt=0, le=1)  # of an update's
    download_values: Values = "fp32"
    upload_values: Values = "fp32"

    @property
    def download(self) -> Packing | None:
        """None: a version travels as it is stored."""
        return _packing(self.download_density, self.download_values)

    @property
    def upload(self) -> Packing | None:
        """None: an update travels as it was made."""
        return _packing(self.upload_density, self.upload_values)

    @model_validator(mode="after")
    def _says_something(self) -> "Link":
        if self.download is None and self.upload is None:
            raise ValueError(
                "says nothing: give a density below 1 or values other than fp32, or leave it out"
            )
        return self


def _packing(density: float, values: Values) -> Packing | None:
    return None if (density, values) == (1.0, "fp32") else Packing(density, values)
