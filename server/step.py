"""A frozen aggregation, and how it stands in its row until its version is published."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from anabranch.rules import step as rules
from anabranch.rules.buffer import Buffer, Input
from anabranch.wire import canonical


@dataclass(frozen=True)
class Step:
    """A frozen aggregation: everything its result depends on. Updates and versions stand for their files' digests."""

    id: str
    job: str
    buffer: Buffer
    scalars: rules.Scalars
    closed_by: str
    absent: tuple[str, ...]


def hexed(scalars: Any) -> dict[str, str]:
    return {name: canonical.hexfloat(value) for name, value in scalars.items()}


def dump(step: Step) -> str:
    return json.dumps(
        {
            "buffer": asdict(step.buffer),
            "strategy": hexed(step.scalars.strategy),
            "optimizer": hexed(step.scalars.optimizer),
            "closed_by": step.closed_by,
            "absent": step.absent,
        }
    )


def load(row: Any) -> Step:
    plan = json.loads(row.plan)
    buffer = plan["buffer"]

    def floats(name: str) -> dict[str, float]:
        return {key: canonical.from_hexfloat(text) for key, text in plan[name].items()}

    return Step(
        id=row.id,
        job=row.job,
        buffer=Buffer(
            head=buffer["head"],
            inputs=tuple(Input(**one) for one in buffer["inputs"]),
            participants=tuple(buffer["participants"]),
            cached=buffer["cached"],
            revival=buffer.get("revival"),  # a step that an earlier release froze has none
        ),
        scalars=rules.Scalars(floats("strategy"), floats("optimizer")),
        closed_by=plan["closed_by"],
        absent=tuple(plan["absent"]),
    )
