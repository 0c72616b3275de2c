"""What is said of a version when it leaves: its entries in the log, and version 0's row."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import insert

from anabranch.rules import step as rules
from anabranch.rules.buffer import Delta, Term
from anabranch.rules.profile import NUMERIC_PROFILE
from anabranch.terms import JobTerms
from anabranch.tlog.entry import Actor, Target
from anabranch.wire import canonical
from server import freezing
from server.core.allocation import Sketches
from server.state.tables import versions
from server.state.writer import Transaction
from server.step import Step, hexed
from server.views import Encoded, record


@dataclass(frozen=True)
class Computed:
    """Digests of a computed version; its blobs are on stable storage."""

    parameters: str
    optimizer: str | None
    ema: str | None
    views: tuple[Encoded, ...] = ()
    sketches: tuple[Sketches, ...] = ()  # of its newest inputs, where jobs share silos by scores


def publish_initial(
    tx: Transaction, actor: Actor, job: str, terms: JobTerms, size: int, encoded: Sequence[Encoded]
) -> None:
    """Version 0 is what the job's owner submitted; its blobs are already on stable storage."""
    digest = terms.initial_sha256
    row = {
        "job": job,
        "number": 0,
        "parameters": digest,
        "scalars": "{}",
        "published_at": tx.now,
        "entry": log_version(tx, actor, job, 0, Computed(digest, None, None), size, None),
    }
    tx.connection.execute(insert(versions).values(row))
    record(tx, actor, job, 0, encoded)


def log_aggregation(tx: Transaction, observer: Actor, frozen: Step, terms: JobTerms) -> None:
    plan, number = rules.plan(terms, frozen.buffer, frozen.scalars), frozen.buffer.head + 1
    taken = [Delta(one.update) for one in frozen.buffer.inputs]
    deltas = freezing.files(tx.connection, frozen.job, terms, taken)
    inputs = [
        {
            "update": one.update,
            "silo": one.silo,
            "delta_sha256": deltas[Delta(one.update)].digest,
            "base": one.base,
            "staleness": one.staleness,
            "weight": canonical.hexfloat(weight),
            "coefficient": canonical.hexfloat(coefficient),
            **({"arrived": one.arrived, "windows": one.windows} if one.windows else {}),
        }
        for one, weight, coefficient in zip(
            frozen.buffer.inputs, plan.weights, plan.coefficients, strict=True
        )
    ]
    tx.log(
        "aggregation.performed",
        actor=observer,
        target=Target(kind="model", id=f"{frozen.job}/{number}"),
        job=frozen.job,
        detail={
            "version": number,
            "base": frozen.buffer.head,
            "step": frozen.id,
            "strategy": terms.file.aggregation.strategy,
            "inputs": inputs,
            "further": [_further(term) for term in plan.further] or None,
            "participants": list(frozen.buffer.participants) or None,
            "revival": frozen.buffer.revival,
            "scalars": hexed(frozen.scalars.strategy),
            "optimizer": {
                "name": terms.file.aggregation.server_optimizer.name,
                **hexed(frozen.scalars.optimizer),
            },
            "absent": list(frozen.absent),
            "closed_by": frozen.closed_by,
            "numeric_profile": NUMERIC_PROFILE,
        },
    )


def log_version(
    tx: Transaction, actor: Actor, job: str, number: int, snapshot: Computed, size: int, step: str | None
) -> int:
    detail = {
        "version": number,
        "parent": number - 1 if number else None,
        "parameters_sha256": snapshot.parameters,
        "optimizer_sha256": snapshot.optimizer,
        "ema_sha256": snapshot.ema,
        "bytes": size,
        "step": step,
    }
    target = Target(kind="model", id=f"{job}/{number}", sha256=snapshot.parameters)
    known = {name: value for name, value in detail.items() if value is not None}
    return tx.log("model.published", actor=actor, target=target, job=job, detail=known)


def _further(term: Term) -> dict[str, Any]:
    return {**vars(term.source), "coefficient": canonical.hexfloat(term.coefficient)}
