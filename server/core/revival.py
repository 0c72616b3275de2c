"""When a reviver has something to do, and whether its result is in time: pure decisions.

One thing at a time for a job: a task is in somebody's hands, or a result waits for the next aggregation.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, cast, get_args

from pydantic import BaseModel, Field, ValidationError

from anabranch.errors import Reason, Refused, plain
from anabranch.terms import Revival, explain
from anabranch.tlog.fields import Count, Device, FieldName, Release
from anabranch.wire import limits
from server.core.turn import Rest

PATIENCE = 600.0  # seconds until a task that nothing came of is given up
SOON, LATER = 0.5, 2.0  # seconds

Ending = Literal["warmup", "not_worth", "unsupported", "failed"]  # what a reviver may say instead of a result
Outcome = Literal["claimed", "done", "used", "dropped", "skipped"]  # of a task: at work, waits, or its end
Share = Annotated[float, Field(ge=0, le=1)]


class Report(BaseModel, extra="forbid", frozen=True):
    """What a reviver says of its result; it is logged."""

    seed: Count
    device: Device
    libraries: Annotated[dict[FieldName, Release], Field(max_length=8)]  # torch → 2.13.0
    seconds: Annotated[float, Field(ge=0, le=1e9)]
    agreement_before: Share | None = None  # of head and teachers, on inputs held back; None: not measured
    agreement_after: Share | None = None
    accuracy_before: Share | None = None  # of the head, on the job's public records
    accuracy_after: Share | None = None

    @property
    def effect(self) -> tuple[float, float] | None:
        """The agreement before and after."""
        before, after = self.agreement_before, self.agreement_after
        return None if before is None or after is None else (before, after)


def parse_ending(text: str) -> Ending:
    """Raises Refused(MALFORMED)."""
    for known in get_args(Ending):
        if text == known:
            return cast(Ending, known)
    raise Refused(Reason.MALFORMED, f"{plain(text, 40)!r} is none of {', '.join(get_args(Ending))}")


def parse_report(data: bytes) -> Report:
    """Raises Refused(SIZE_LIMIT, MALFORMED)."""
    if len(data) > limits.REPORT:
        raise Refused(Reason.SIZE_LIMIT, f"report of {len(data)} bytes; at most {limits.REPORT}")
    try:
        return Report.model_validate_json(data)
    except ValidationError as error:
        raise Refused(Reason.MALFORMED, f"report: {explain(error)}") from error


@dataclass(frozen=True)
class Standing:
    """Of one running job."""

    head: int
    last: int  # the version it stops at
    teachers: int  # silos that allow it and gave an update that was merged
    newest: int | None  # version of the newest task there was
    open: Literal["claimed", "done"] | None  # whether a task is in flight, or its result waits


def rest(rule: Revival, at: Standing) -> Rest | None:
    """None: there is a task to give out, on the head. Else how long to wait, and why."""
    if at.open is not None:
        waits = (
            "another reviver is at it" if at.open == "claimed" else "its result waits for the next version"
        )
        return Rest(SOON, waits)
    if at.head >= at.last:
        return Rest(LATER, "the job has reached its last version")
    if at.head < rule.freeze:
        return Rest(LATER, f"revival begins at version {rule.freeze}")
    if at.newest is not None and at.newest >= at.head:
        return Rest(SOON, "waiting for the next version")
    if at.teachers == 0:
        return Rest(LATER, "no silo with a merged update allows it")
    return None


def in_time(rule: Revival, head: int, version: int) -> bool:
    """Whether a result that was made from `version` may still become part of the one after `head`."""
    return head - version < rule.late
