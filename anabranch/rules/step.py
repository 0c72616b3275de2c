"""One aggregation, streamed: updates and the head go in, the next version comes out.

Memory is a handful of buffers of `CHUNK` elements, whatever the size of the model and the number of updates.
Readers are positional, writers sequential, so nothing here seeks, maps or keeps files open.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from anabranch.errors import Misuse, Reason, Refused
from anabranch.rules import optimizers, strategies
from anabranch.rules.buffer import Buffer, Distilled, Plan, Snapshot, Source, Term
from anabranch.terms import JobTerms, ServerOptimizer
from anabranch.wire.manifest import Manifest, TensorSpec

CHUNK = 1 << 16  # elements: 256 KiB per read; all buffers of a chunk together fit the cache of a core

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


class TensorReader(Protocol):
    """A stored tensor file."""

    def read(self, name: str, start: int, stop: int, out: Float32) -> None:
        """Fill `out`, shape (stop - start,), with elements start..stop of tensor `name` in C order."""


class TensorSink(Protocol):
    """A tensor file being written."""

    def write(self, chunk: Float32) -> None:
        """Append the next elements in canonical order. `chunk` is reused after the call returns."""


@dataclass(frozen=True)
class Scalars:
    """The numbers of one step that are frozen before it is computed, and logged with it."""

    strategy: Mapping[str, float]  # `strategies.measure`
    optimizer: Mapping[str, float]  # `optimizers.step_scalars`


@dataclass(frozen=True)
class Outputs:
    """Where a step writes. `optimizer` has the layout of `optimizer_manifest`, `ema` that of `parameters`."""

    parameters: TensorSink
    optimizer: TensorSink | None = None
    ema: TensorSink | None = None


def optimizer_manifest(manifest: Manifest, server_optimizer: ServerOptimizer) -> Manifest | None:
    """Layout of the optimizer state file: `<state>/<tensor>` per trainable tensor. None: nothing is kept.

    Raises Refused(SIZE_LIMIT, MALFORMED) where that many tensors, or names that long, are above the limits.
    """
    names = optimizers.state_names(server_optimizer)
    if not names:
        return None
    trainable = manifest.trainable()
    return Manifest(tuple(replace(spec, name=f"{name}/{spec.name}") for name in names for spec in trainable))


def measure(job: JobTerms, buffer: Buffer, previous: Mapping[str, float]) -> Scalars:
    """The scalars to freeze. `previous`: what the step that made the head logged for its optimizer, or {}."""
    aggregation = job.file.aggregation
    oldest = max(one.staleness for one in buffer.inputs)
    return Scalars(
        strategy=strategies.measure(aggregation, buffer),
        optimizer=optimizers.step_scalars(aggregation.server_optimizer, previous, oldest),
    )


def plan(job: JobTerms, buffer: Buffer, scalars: Scalars) -> Plan:
    """What `aggregate` is to sum up."""
    planned = strategies.plan(job.file.aggregation, job.file.silos.weighting, buffer, scalars.strategy)
    if buffer.revival is None:
        return planned
    if job.file.revival is None:
        raise Misuse(f"revival {buffer.revival} belongs to a job without [revival]")
    return replace(planned, after=(Term(job.file.revival.gain, Distilled(buffer.revival)),))


def aggregate(
    job: JobTerms,
    manifest: Manifest,
    plan: Plan,
    sources: Mapping[Source, TensorReader],
    optimizer: TensorReader | None,
    ema: TensorReader | None,
    scalars: Scalars,
    outputs: Outputs,
    chunk: int = CHUNK,
) -> None:
    """Compute the next version from the head and the files the plan names; `sources` has all of `plan.sources`.

    trainable   direction = sum of coefficient * tensor; the server optimizer; what comes after; one rounding to float32
    buffer      sum of coefficient * value, if the job averages buffers; else the head's value
    ema         decay * ema + (1 - decay) * new, over every tensor of the rounded new version

    `optimizer` is None for the first step; `ema` is None while the head has none (it starts at the head's own
    values). The result depends on plan, scalars and files only, never on `chunk`. Raises Refused(NONFINITE), naming
    the tensor, if the new version overflows: what was written is then worthless.
    """
    step = _Step(job, plan, scalars, sources, optimizer, ema, chunk)
    names = optimizers.state_names(job.file.aggregation.server_optimizer)
    _check_outputs(job, names, outputs)
    with np.errstate(over="ignore", invalid="ignore"):  # an overflow is found, and refused, when it is stored
        for tensor, start, stop in _spans(manifest, chunk):
            new = step.parameters(tensor, start, stop)
            outputs.parameters.write(new)
            if outputs.ema is not None:
                outputs.ema.write(step.average(tensor, start, stop, new))
            if outputs.optimizer is not None and tensor.role == "trainable":
                outputs.optimizer.write(step.state(tensor, names[0], stop - start))
        if outputs.optimizer is not None:
            _write_other_states(manifest, names[1:], step, outputs.optimizer, chunk)


def _write_other_states(
    manifest: Manifest, names: Sequence[str], step: "_Step", sink: TensorSink, chunk: int
) -> None:
    """The file is sequential, state by state, so each further state costs one more pass over the inputs."""
    for name in names:
        for tensor, start, stop in _spans(manifest, chunk):
            if tensor.role == "trainable":
                step.parameters(tensor, start, stop)
                sink.write(step.state(tensor, name, stop - start))


def _check_outputs(job: JobTerms, names: Sequence[str], outputs: Outputs) -> None:
    if bool(names) != (outputs.optimizer is not None):
        raise Misuse(f"optimizer state {tuple(names)} needs a sink exactly when there is any")
    if (job.file.aggregation.ema is not None) != (outputs.ema is not None):
        raise Misuse("an EMA sink is needed exactly when the job keeps an EMA")


def _spans(manifest: Manifest, chunk: int) -> Iterator[tuple[TensorSpec, int, int]]:
    """Every element of every tensor once, in canonical order, at most `chunk` at a time."""
    for tensor in manifest.specs:
        for start in range(0, tensor.elements, chunk):
            yield tensor, start, min(start + chunk, tensor.elements)


class _Step:
    """The buffers of one step and the arithmetic on one span of one tensor. Calls reuse the same memory."""

    def __init__(
        self,
        job: JobTerms,
        plan: Plan,
        scalars: Scalars,
        sources: Mapping[Source, TensorReader],
        optimizer: TensorReader | None,
        ema: TensorReader | None,
        chunk: int,
    ) -> None:
        self._terms = job.file
        self._plan = plan
        self._scalars = scalars
        self._sources = sources
        self._base = sources[Snapshot(plan.head)]
        self._optimizer = optimizer
        self._ema = ema
        self._read = np.empty(chunk, np.float32)
        self._new = np.empty(chunk, np.float32)
        self._theta = np.empty(chunk, np.float64)
        self._direction = np.empty(chunk, np.float64)
        self._scratch = np.empty(chunk, np.float64)
        names = optimizers.state_names(self._terms.aggregation.server_optimizer)
        self._state = {name: np.empty(chunk, np.float64) for name in names}

    def parameters(self, tensor: TensorSpec, start: int, stop: int) -> Float32:
        """The new version's elements, valid until the next call."""
        if tensor.role == "trainable":
            return self._trainable(tensor, start, stop)
        if self._terms.training.buffers == "average":
            self._combine(tensor, start, stop, self._plan.buffers)
            return self._round(tensor, self._direction[: stop - start])
        self._base.read(tensor.name, start, stop, self._new[: stop - start])
        return self._new[: stop - start]

    def state(self, tensor: TensorSpec, name: str, size: int) -> Float32:
        """Optimizer state `name` of the span last computed."""
        rounded = self._read[:size]
        _store(self._state[name][:size], rounded, f"{name}/{tensor.name}")
        return rounded

    def average(self, tensor: TensorSpec, start: int, stop: int, new: Float32) -> Float32:
        """The EMA of a span whose new version is `new`."""
        decay = self._terms.aggregation.ema
        assert decay is not None
        size = stop - start
        total, term, rounded = self._theta[:size], self._scratch[:size], self._read[:size]
        self._load(self._base if self._ema is None else self._ema, tensor.name, start, total)
        np.multiply(total, decay, out=total)
        np.copyto(term, new)
        np.multiply(term, 1.0 - decay, out=term)
        np.add(total, term, out=total)
        _store(total, rounded, tensor.name)
        return rounded

    def _trainable(self, tensor: TensorSpec, start: int, stop: int) -> Float32:
        size = stop - start
        self._combine(tensor, start, stop, self._plan.direction)
        theta, state = self._theta[:size], {name: array[:size] for name, array in self._state.items()}
        rule = self._terms.aggregation.server_optimizer
        self._load(self._base, tensor.name, start, theta)
        for name, array in state.items():
            if self._optimizer is None:
                array.fill(optimizers.initial(rule, name))
            else:
                self._load(self._optimizer, f"{name}/{tensor.name}", start, array)
        optimizers.apply(
            rule,
            self._scalars.optimizer,
            theta,
            self._direction[:size],
            state,
            self._scratch[:size],
        )
        self._add(tensor, start, theta, self._plan.after)
        return self._round(tensor, theta)

    def _combine(self, tensor: TensorSpec, start: int, stop: int, terms: Sequence[Term]) -> None:
        """direction = coefficient_0 * tensor_0 + coefficient_1 * tensor_1 + ..., from zero, in order, in float64."""
        self._direction[: stop - start].fill(0.0)
        self._add(tensor, start, self._direction[: stop - start], terms)

    def _add(self, tensor: TensorSpec, start: int, total: Float64, terms: Sequence[Term]) -> None:
        product = self._scratch[: total.size]
        for term in terms:
            self._load(self._sources[term.source], tensor.name, start, product)
            np.multiply(product, term.coefficient, out=product)
            np.add(total, product, out=total)

    def _load(self, reader: TensorReader, name: str, start: int, into: Float64) -> None:
        values = self._read[: into.size]
        reader.read(name, start, start + into.size, values)
        np.copyto(into, values)

    def _round(self, tensor: TensorSpec, values: Float64) -> Float32:
        rounded = self._new[: values.size]
        _store(values, rounded, tensor.name)
        return rounded


def _store(values: Float64, into: Float32, name: str) -> None:
    np.copyto(into, values, casting="same_kind")
    if not np.isfinite(into).all():
        raise Refused(
            Reason.NONFINITE,
            f"tensor {name}: the aggregation left the range of float32; "
            "lower server_optimizer.lr or set max_update_norm",
        )
