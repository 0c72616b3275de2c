"""What an aggregation starts from and what it is going to do: a closed buffer goes in, a plan comes out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Input:
    """One admitted update. `base` and `staleness` (head - base, in versions) come from its lease."""

    update: str
    silo: str
    base: int
    staleness: int
    examples: int | None  # only read when the job weights by examples
    order: int  # position in the aggregation; inputs are summed in this order
    arrived: int = 0  # of the `windows` since its silo approved, this one included; fedfix only
    windows: int = 0


@dataclass(frozen=True)
class Buffer:
    """A buffer that closed. A plan follows from it, the terms and the logged scalars, and from nothing else."""

    head: int  # the version it is applied to
    inputs: Sequence[Input]
    participants: Sequence[str] = ()  # silos that approve the job, sorted; where a rule counts them
    cached: Mapping[str, str] = field(default_factory=dict)  # participant → its newest update merged before
    revival: str | None = None  # the newest one that was performed and is not too late


@dataclass(frozen=True)
class Delta:
    """The file of an update: of this buffer, or merged before."""

    update: str


@dataclass(frozen=True)
class Snapshot:
    """The parameters of a version."""

    version: int


@dataclass(frozen=True)
class Distilled:
    """The file of a revival: what its steps added to the head they began from."""

    revival: str


Source = Delta | Snapshot | Distilled


@dataclass(frozen=True)
class Term:
    coefficient: float
    source: Source


@dataclass(frozen=True)
class Plan:
    """Linear: sums of coefficient * tensor, in this order. Replay computes the same, bit for bit.

    The first terms of `direction` are the deltas of the buffer, in input order; `further` is what a rule adds.
    """

    head: int
    weights: tuple[float, ...]  # what the strategy gives each update, before it divides
    direction: tuple[Term, ...]  # of trainable tensors
    buffers: tuple[
        Term, ...
    ]  # of float buffers, whose values an update's file has: the coefficients sum to 1
    after: tuple[Term, ...] = ()  # of trainable tensors, added behind the server optimizer

    @property
    def coefficients(self) -> tuple[float, ...]:
        """Of the inputs' deltas."""
        return tuple(term.coefficient for term in self.direction[: len(self.weights)])

    @property
    def further(self) -> tuple[Term, ...]:
        return self.direction[len(self.weights) :]

    @property
    def sources(self) -> tuple[Source, ...]:
        """Every file a step reads, optimizer state and average apart."""
        terms = (*self.direction, *self.buffers, *self.after)
        return tuple(dict.fromkeys([Snapshot(self.head), *(term.source for term in terms)]))


def averaged(buffer: Buffer, weights: Sequence[float], divisor: float, further: Iterable[Term] = ()) -> Plan:
    """direction = sum of weight_i / divisor * delta_i, and what is further; buffers are the weighted mean."""
    total = ordered_sum(weights)
    deltas = [Delta(one.update) for one in buffer.inputs]
    each = list(zip(weights, deltas, strict=True))
    return Plan(
        head=buffer.head,
        weights=tuple(weights),
        direction=(*(Term(weight / divisor, delta) for weight, delta in each), *further),
        buffers=tuple(Term(weight / total, delta) for weight, delta in each),
    )


def ordered_sum(values: Iterable[float]) -> float:
    """Left to right. Not `sum`: since Python 3.12 it compensates, so its bits depend on the interpreter."""
    total = 0.0
    for value in values:
        total += value
    return total
