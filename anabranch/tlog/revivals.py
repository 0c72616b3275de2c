"""What entries say of revivals."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from anabranch.terms import Digest, Name
from anabranch.tlog.fields import EXCEPTION, Count, Device, FieldName, HexFloat, Id, Release

SkipReason = Literal[
    "deadline",  # nothing came in time: the reviver died, or hangs
    "late",  # the head had moved on too far
    "withdrawn",  # one of its teachers no longer allows it
    "job_ended",
    "warmup",  # by the terms, inputs are synthesised first
    "not_worth",  # the teachers agree with the head as it is
    "unsupported",  # the reviver cannot do this job
    "failed",
]


class Teacher(BaseModel, extra="forbid", frozen=True):
    """A silo's newest model: the base of its newest merged update, and that update."""

    silo: Name
    update: Id


class Effect(BaseModel, extra="forbid", frozen=True):
    """How far the head agrees with its teachers on inputs held back, before and after; on a job's public records also how
    often it is right."""

    agreement_before: HexFloat
    agreement_after: HexFloat
    accuracy_before: HexFloat | None = None
    accuracy_after: HexFloat | None = None


class RevivalPerformed(BaseModel, extra="forbid", frozen=True):
    """A reviver distilled silos' newest models into a version; the result waits for the next aggregation.

    It was computed with torch, perhaps on a GPU, so it is an input of a replay and not recomputed.
    """

    revival: Id
    version: Count  # the head it began from
    delta_sha256: Digest  # trained head - head
    norm: HexFloat
    teachers: Annotated[tuple[Teacher, ...], Field(min_length=1)]
    seed: Count
    device: Device
    libraries: Annotated[dict[FieldName, Release], Field(max_length=8)]
    seconds: HexFloat
    effect: Effect | None = None  # not measured every time


class RevivalSkipped(BaseModel, extra="forbid", frozen=True):
    """A task of a reviver ended without a result, or a result will not be used."""

    revival: Id
    version: Count
    reason: SkipReason
    why: Annotated[str, Field(pattern=EXCEPTION)] | None = None  # type of an exception, or what does not pay
