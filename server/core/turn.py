"""What a silo should do next for one job."""

from dataclasses import dataclass

from anabranch.terms import JobTerms


@dataclass(frozen=True)
class Progress:
    """One silo's place in one running job."""

    head: int
    evaluated: int | None  # newest version this silo evaluated, or could not evaluate
    submitted: int | None  # newest base among its updates that were admitted
    waits: bool = False  # for its arrival group: what it sent is not merged, and was not late (fedcompass)


@dataclass(frozen=True)
class Train:
    """From the head."""


@dataclass(frozen=True)
class Evaluate:
    version: int


@dataclass(frozen=True)
class Rest:
    seconds: float
    reason: str


def next_turn(terms: JobTerms, at: Progress) -> Train | Evaluate | Rest:
    """Evaluation first (it is short, and the owner waits for it), then training; at the end, nothing more.

    Only the newest version due for evaluation is asked for: a slow silo skips what it missed.
    """
    due = due_version(terms, at.head) if terms.file.evaluated else None
    if due is not None and (at.evaluated is None or at.evaluated < due):
        return Evaluate(due)
    if at.head >= terms.file.stop.versions:
        return Rest(2.0, "the job has reached its last version")
    if terms.file.aggregation.strategy in ("fedavg", "fedfix") and at.submitted == at.head:
        return Rest(0.2, "waiting for the next version: this silo has given its update to it")
    if at.waits:
        return Rest(0.2, "waiting for the other silos of its arrival group")
    return Train()


def due_version(terms: JobTerms, head: int) -> int | None:
    """The newest version every silo should evaluate: a multiple of `every`, or the last one."""
    every = terms.file.evaluation.every
    if head >= terms.file.stop.versions:
        return head
    newest = head - head % every
    return newest if newest > 0 else None
