"""A frozen aggregation, and how it stands in its row until its version is published."""

import json
from dataclasses import dataclass
from typing import Any

from anabranch.rules import step as rules
from anabranch.rules.strategies import Input
from anabranch.wire import canonical


@dataclass(frozen=True)
class Step:
    """A frozen aggregation: everything its result depends on."""

    id: str
    job: str
    head: int
    inputs: tuple[Input, ...]
    deltas: tuple[str, ...]  # digests, in the order of `inputs`
    scalars: rules.Scalars
    closed_by: str
    absent: tuple[str, ...]


def hexed(scalars: Any) -> dict[str, str]:
    return {name: canonical.hexfloat(value) for name, value in scalars.items()}


def dump(step: Step) -> str:
    return json.dumps(
        {
            "inputs": [vars(one) for one in step.inputs],
            "deltas": step.deltas,
            "strategy": hexed(step.scalars.strategy),
            "optimizer": hexed(step.scalars.optimizer),
            "closed_by": step.closed_by,
            "absent": step.absent,
        }
    )


def load(row: Any) -> Step:
    plan = json.loads(row.plan)

    def floats(name: str) -> dict[str, float]:
        return {key: canonical.from_hexfloat(text) for key, text in plan[name].items()}

    return Step(
        id=row.id,
        job=row.job,
        head=row.head,
        inputs=tuple(Input(**one) for one in plan["inputs"]),
        deltas=tuple(plan["deltas"]),
        scalars=rules.Scalars(floats("strategy"), floats("optimizer")),
        closed_by=plan["closed_by"],
        absent=tuple(plan["absent"]),
    )
