"""Strategies: from a closed buffer to a plan, which says what is added to the head.

A strategy is three pure parts. `measure` computes the scalars that are not the same bits everywhere, once, for the
log. `plan` turns the buffer and those scalars into terms, coefficient and tensor, with correctly rounded operations.
The combination itself, `direction = sum of coefficient * tensor`, is `anabranch.rules.step`.

fedavg fedbuff fedfix → `averaging`; fedasync afl-dw fedcompass → `mixing`; ca2fl → `calibration`
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

from anabranch.errors import Misuse
from anabranch.rules import averaging, calibration, mixing, staleness
from anabranch.rules.buffer import Buffer, Input, Plan
from anabranch.terms import Aggregation

Weighting = Literal["equal", "examples"]
COUNTING = ("ca2fl", "fedfix", "fedcompass")  # strategies that need `Buffer.participants`


def measure(rule: Aggregation, buffer: Buffer) -> dict[str, float]:
    """What to log and hand to `plan`, by name; often nothing."""
    if rule.strategy == "afl-dw":
        return staleness.measure_cosine(rule, mixing.only(buffer).staleness)
    if rule.strategy in ("fedbuff", "fedasync", "fedcompass"):
        return staleness.measure_powers(rule.staleness_exponent, buffer.inputs)
    return {}


def plan(rule: Aggregation, weighting: Weighting, buffer: Buffer, scalars: Mapping[str, float]) -> Plan:
    """The terms of one aggregation.

    Raises Misuse for a buffer no admission lets through and for a scalar that is missing.
    """
    _check(buffer.inputs, weighting)
    known = {*buffer.cached, *(one.silo for one in buffer.inputs)}
    if rule.strategy in COUNTING and not known <= set(buffer.participants):
        raise Misuse(f"{rule.strategy} was given updates of silos that do not take part")
    sizes = [1.0 if weighting == "equal" else float(one.examples or 0) for one in buffer.inputs]
    match rule.strategy:
        case "fedavg":
            return averaging.fedavg(buffer, sizes)
        case "fedbuff":
            return averaging.fedbuff(rule, buffer, sizes, scalars)
        case "fedfix":
            return averaging.fedfix(rule, buffer)
        case "fedasync":
            return mixing.fedasync(rule, buffer, scalars)
        case "afl-dw":
            return mixing.afl_dw(buffer, scalars)
        case "fedcompass":
            return mixing.fedcompass(rule, buffer, scalars)
        case "ca2fl":
            return calibration.ca2fl(buffer)


def _check(inputs: Sequence[Input], weighting: Weighting) -> None:
    if not inputs:
        raise Misuse("an aggregation needs at least one update")
    if any(later.order <= earlier.order for earlier, later in pairwise(inputs)):
        raise Misuse("inputs of an aggregation must be sorted by `order`, each value once")
    for one in inputs:
        if one.staleness < 0:
            raise Misuse(
                f"update {one.update} has staleness {one.staleness}: its base is newer than the head"
            )
        if weighting == "examples" and (one.examples is None or one.examples < 1):
            raise Misuse(f"update {one.update} states {one.examples} examples in a job weighted by examples")
