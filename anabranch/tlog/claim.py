"""What a silo claims about the privacy of one update: signed in its statement, copied into the log's entry."""

from typing import Annotated

from pydantic import BaseModel, Field

from anabranch.privacy import Unit
from anabranch.terms import Digest
from anabranch.tlog.fields import HexFloat
from anabranch.wire import canonical

Positive = Annotated[int, Field(strict=True, ge=1, le=canonical.MAX_INT)]


class PrivacyClaim(BaseModel, extra="forbid", frozen=True):
    """So many steps of Poisson-sampled, clipped and noised training made this update, and the silo's ledger says so.

    Nobody but the silo can know it. What follows from a claim that is true, anybody can compute.
    """

    unit: Unit
    sample_rate: HexFloat
    noise_multiplier: HexFloat  # of the clipping norm
    max_grad_norm: HexFloat
    steps: Positive
    delta: HexFloat
    cycles: Positive  # charged for this job at this silo, this one included
    ledger_head: Digest
