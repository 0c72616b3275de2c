"""`[privacy]` of a job file: differential privacy of the people in a silo's records, made and accounted at the silo.

`anabranch.terms` is where others import it from.
"""

from typing import Literal

from pydantic import BaseModel, Field, model_validator

Unit = Literal["example", "subject"]


class Privacy(BaseModel, extra="forbid", frozen=True):
    """DP-SGD (Abadi et al., arXiv 1607.00133) in every step of managed training, Poisson-sampled.

    All that a silo sends during the job is (epsilon, delta)-indistinguishable for two data sets of it that differ in one
    unit. The noise is made for `cycles_max` cycles of one silo, so there are never more.
    """

    unit: Unit = "example"
    epsilon: float = Field(gt=0)  # of the whole job, at each silo
    delta: float = Field(gt=0, lt=1)
    cycles_max: int = Field(ge=1, le=2**31 - 1)  # of one silo
    max_grad_norm: float = Field(default=1.0, gt=0)  # L2, of one unit's gradient
    clipping: Literal["flat", "per_layer"] = "flat"
    method: Literal["hooks", "ghost"] = "hooks"  # how per-unit gradients come about; ghost takes less memory
    physical_batch: int | None = Field(
        default=None, ge=1
    )  # records in memory at a time; None: all of a batch

    @model_validator(mode="after")
    def _can_be_ghost(self) -> "Privacy":
        if self.method == "ghost" and (self.unit, self.clipping) != ("example", "flat"):
            raise ValueError(
                "method: ghost clipping knows the norm of a record's whole gradient and nothing more; take hooks with "
                'unit "subject" and with clipping "per_layer"'
            )
        return self
