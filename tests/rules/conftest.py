"""Steps on tensors held in memory."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from anabranch.rules import step
from anabranch.rules.buffer import Buffer, Delta, Input, Plan, Snapshot
from anabranch.terms import Aggregation, Job, JobFile, JobTerms, Silos, Training
from anabranch.wire.manifest import Manifest, TensorSpec

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Held:
    arrays: Mapping[str, np.ndarray]

    def read(self, name: str, start: int, stop: int, out: np.ndarray) -> None:
        assert out.dtype == np.float32
        assert out.shape == (stop - start,)
        np.copyto(out, self.arrays[name].reshape(-1)[start:stop])


@dataclass(frozen=True)
class Collected:
    """Keeps what is written, copied at once: the step reuses its buffers."""

    chunks: list[np.ndarray] = field(default_factory=list)

    def write(self, chunk: np.ndarray) -> None:
        assert chunk.dtype == np.float32
        self.chunks.append(chunk.copy())

    def arrays(self, layout: Manifest) -> Arrays:
        flat = np.concatenate([*self.chunks, np.empty(0, np.float32)])
        found, offset = {}, 0
        for spec in layout.specs:
            size = spec.elements
            found[spec.name] = flat[offset : offset + size].reshape(spec.shape)
            offset += size
        assert offset == flat.size
        return found


@dataclass(frozen=True)
class Outcome:
    parameters: Arrays
    optimizer: Arrays
    ema: Arrays
    plan: Plan
    scalars: step.Scalars


def _terms(aggregation: Aggregation, weighting: str = "equal", buffers: str = "average") -> JobTerms:
    file = JobFile(
        job=Job(name="digits", task="task.py:Digits"),
        silos=Silos(weighting=weighting),
        training=Training(buffers=buffers),
        aggregation=aggregation,
    )
    return JobTerms(file=file, archive_sha256="a" * 64, initial_sha256="b" * 64, manifest_sha256="c" * 64)


def _run(
    terms: JobTerms,
    base: Arrays,
    updates: Sequence[tuple[Input, Arrays]],
    *,
    roles: Mapping[str, str] | None = None,
    optimizer: Arrays | None = None,
    ema: Arrays | None = None,
    previous: Mapping[str, float] | None = None,
    chunk: int = step.CHUNK,
    participants: Sequence[str] = (),
    cached: Mapping[str, tuple[str, Arrays]] | None = None,
    snapshots: Mapping[int, Arrays] | None = None,
) -> Outcome:
    """`base` is the head; `cached`: silo -> (update, delta); `snapshots`: earlier versions by number."""
    roles, cached = roles or {}, cached or {}
    layout = Manifest(
        tuple(TensorSpec(name, array.shape, roles.get(name, "trainable")) for name, array in base.items())
    )
    state = step.optimizer_manifest(layout, terms.file.aggregation.server_optimizer)
    sinks = step.Outputs(
        parameters=Collected(),
        optimizer=None if state is None else Collected(),
        ema=None if terms.file.aggregation.ema is None else Collected(),
    )
    head = updates[0][0].base + updates[0][0].staleness
    names = {silo: name for silo, (name, _) in cached.items()}
    buffer = Buffer(head, [one for one, _ in updates], participants, names)
    scalars = step.measure(terms, buffer, previous or {})
    plan = step.plan(terms, buffer, scalars)
    sources = {Delta(one.update): Held(arrays) for one, arrays in updates}
    sources |= {Delta(name): Held(arrays) for name, arrays in cached.values()}
    sources |= {Snapshot(number): Held(arrays) for number, arrays in (snapshots or {}).items()}
    sources[Snapshot(head)] = Held(base)
    assert set(plan.sources) <= set(sources)
    step.aggregate(
        terms,
        layout,
        plan,
        sources,
        None if optimizer is None else Held(optimizer),
        None if ema is None else Held(ema),
        scalars,
        sinks,
        chunk=chunk,
    )
    return Outcome(
        parameters=sinks.parameters.arrays(layout),
        optimizer={} if state is None else sinks.optimizer.arrays(state),
        ema={} if sinks.ema is None else sinks.ema.arrays(layout),
        plan=plan,
        scalars=scalars,
    )


def _inputs(staleness: Sequence[int], examples: Sequence[int | None] | None = None) -> list[Input]:
    counts = examples if examples is not None else [None] * len(staleness)
    return [
        Input(update=f"u{i}", silo=f"silo-{i}", base=100 - late, staleness=late, examples=count, order=i)
        for i, (late, count) in enumerate(zip(staleness, counts, strict=True))
    ]


@pytest.fixture(scope="session")
def terms() -> Callable[..., JobTerms]:
    """terms(aggregation, weighting=, buffers=)"""
    return _terms


@pytest.fixture(scope="session")
def run() -> Callable[..., Any]:
    """run(terms, base, [(input, arrays)], roles=, optimizer=, ema=, previous=, chunk=, participants=, cached=,
    snapshots=) -> Outcome
    """
    return _run


@pytest.fixture(scope="session")
def inputs() -> Callable[..., list[Input]]:
    """inputs(staleness, examples=None), in order"""
    return _inputs
