"""What an honest server computes, for a story: the same rules on the story's files."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from anabranch.rules import step
from anabranch.rules.buffer import Buffer, Delta, Input, Plan, Snapshot
from anabranch.rules.strategies import COUNTING
from anabranch.terms import Aggregation, JobTerms
from anabranch.wire.tensors import Manifest, TensorFile, TensorWriter
from tests.auditor.book import Book


class Signed(Protocol):
    id: str
    silo: str
    base: int
    examples: int


def buffer_of(
    rule: Aggregation,
    head: int,
    updates: Sequence[Signed],
    merged: Sequence[tuple[int, Signed]],
    approved: Mapping[str, int],
    revival: str | None = None,
) -> Buffer:
    """`merged`: version and update, in log order; `approved`: silo -> the head when it last approved."""

    def windows(silo: str) -> tuple[int, int]:
        since = approved[silo]
        arrived = {version for version, one in merged if one.silo == silo and version > since}
        return len(arrived) + 1, head - since + 1

    inputs = [
        Input(
            *(one.id, one.silo, one.base, head - one.base, one.examples, order),
            *(windows(one.silo) if rule.strategy == "fedfix" else ()),
        )
        for order, one in enumerate(updates)
    ]
    cached = {one.silo: one.id for _, one in merged if one.silo in approved}
    participants = tuple(sorted(approved)) if rule.strategy in COUNTING else ()
    return Buffer(head, inputs, participants, cached if rule.strategy == "ca2fl" else {}, revival)


def compute(
    book: Book,
    terms: JobTerms,
    manifest: Manifest,
    plan: Plan,
    scalars: step.Scalars,
    deltas: Mapping[str, str],
    heads: Sequence[Mapping[str, Path]],
) -> dict[str, str]:
    """Part -> digest of the next version. `deltas`: update or revival -> digest; `heads`: the files of every version."""
    rule = terms.file.aggregation
    keeps = step.optimizer_manifest(manifest, rule.server_optimizer)
    kept = {"parameters": manifest, "optimizer": keeps, "ema": manifest if rule.ema else None}
    layouts = {part: layout for part, layout in kept.items() if layout is not None}
    with ExitStack() as files:

        def opened(path: Path, layout: Manifest) -> TensorFile:
            return files.enter_context(TensorFile(path, layout))

        head = heads[plan.head]
        sources = {
            source: opened(
                heads[source.version]["parameters"]
                if isinstance(source, Snapshot)
                else book.path(deltas[source.update if isinstance(source, Delta) else source.revival]),
                manifest,
            )
            for source in plan.sources
        }
        sinks = {part: TensorWriter(book.directory / part, layout) for part, layout in layouts.items()}
        step.aggregate(
            terms,
            manifest,
            plan,
            sources,
            opened(head["optimizer"], layouts["optimizer"]) if "optimizer" in head else None,
            opened(head["ema"], manifest) if "ema" in head else None,
            scalars,
            step.Outputs(**sinks),
        )
    return {part: book.adopt(writer) for part, writer in sinks.items()}
