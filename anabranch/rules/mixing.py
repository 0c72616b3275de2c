"""Strategies that mix updates into the head: fedasync and afl-dw one at a time, fedcompass a group.

fedasync  a = alpha * s(staleness);  theta <- (1 - a) * theta + a * (base + delta)
          so direction = a * delta + a * base - a * theta; of a fresh update, whose base is the head, a * delta
          s = 1 (constant), (1 + staleness)^-staleness_exponent (polynomial), or the hinge
fedcompass  a_i = alpha * s(staleness_i) / number of participants
          theta <- (1 - sum a_i) * theta + sum a_i * (base_i + delta_i);  mixes = deltas: theta <- theta + sum a_i * delta_i
afl-dw    direction = (1 - beta) * delta;  beta = (1 - cos(pi * staleness / (2 * s_max))) / 2, at most 1

FedAsync is Xie, Koyejo and Gupta's (arXiv 1903.03934): the silo's whole model is mixed, and no client weight enters
a, which would make steps smaller the more silos there are. AFL-DW is the down-weighting baseline of FedRevive (arXiv
2511.00655). FedCompass is Li et al.'s (ICLR 2024, arXiv 2309.14675). All mix float buffers like parameters: the updates'
values with their coefficients, the head's with the rest. Two updates of each silo in one version may leave no rest: then
float buffers are the updates' weighted mean.
"""

from collections.abc import Mapping, Sequence

from anabranch.errors import Misuse
from anabranch.rules import staleness
from anabranch.rules.buffer import Buffer, Delta, Input, Plan, Snapshot, Term, ordered_sum
from anabranch.terms import Aggregation


def fedasync(rule: Aggregation, buffer: Buffer, scalars: Mapping[str, float]) -> Plan:
    one = only(buffer)
    assert rule.alpha is not None
    weight = _weight(rule, one, scalars)
    a = rule.alpha * weight
    # Of a fresh update the two cancel. A weight below the smallest float is none at all, and has no negative.
    back = (Term(a, Snapshot(one.base)), Term(-a, Snapshot(buffer.head))) if one.staleness and a else ()
    return _mixed(buffer, [weight], [a], back)


def afl_dw(buffer: Buffer, scalars: Mapping[str, float]) -> Plan:
    only(buffer)
    beta = 0.5 * (1.0 - staleness.logged(scalars, staleness.COSINE))
    return _mixed(buffer, [1.0 - beta], [1.0 - beta], ())


def fedcompass(rule: Aggregation, buffer: Buffer, scalars: Mapping[str, float]) -> Plan:
    assert rule.alpha is not None
    weights = [_weight(rule, one, scalars) for one in buffer.inputs]
    parts = [rule.alpha * weight / float(len(buffer.participants)) for weight in weights]
    return _mixed(buffer, weights, parts, () if rule.mixes == "deltas" else _back(buffer, parts))


def only(buffer: Buffer) -> Input:
    if len(buffer.inputs) != 1:
        raise Misuse(f"this strategy takes one update at a time, not {len(buffer.inputs)}")
    return buffer.inputs[0]


def _weight(rule: Aggregation, one: Input, scalars: Mapping[str, float]) -> float:
    if rule.hinge is not None:
        return staleness.hinge_weight(rule.hinge, one.staleness)
    return staleness.weight(rule.staleness_exponent, one.staleness, scalars)


def _back(buffer: Buffer, parts: Sequence[float]) -> tuple[Term, ...]:
    """What stale updates pull the head back by: each base once, then the head."""
    stale = [(one.base, a) for one, a in zip(buffer.inputs, parts, strict=True) if one.staleness and a]
    bases = {base: ordered_sum(a for other, a in stale if other == base) for base, _ in sorted(stale)}
    total = ordered_sum(bases.values())
    olds = tuple(Term(a, Snapshot(base)) for base, a in bases.items())
    return (*olds, Term(-total, Snapshot(buffer.head))) if olds else ()


def _mixed(
    buffer: Buffer, weights: Sequence[float], parts: Sequence[float], further: tuple[Term, ...]
) -> Plan:
    own = [(a, Delta(one.update)) for one, a in zip(buffer.inputs, parts, strict=True)]
    total = ordered_sum(parts)
    whole, rest = max(total, 1.0), Term(max(1.0 - total, 0.0), Snapshot(buffer.head))
    values = tuple(Term(a / whole, delta) for a, delta in own)
    return Plan(
        head=buffer.head,
        weights=tuple(weights),
        direction=(*(Term(a, delta) for a, delta in own), *further),
        buffers=(*values, rest) if rest.coefficient else values,
    )
