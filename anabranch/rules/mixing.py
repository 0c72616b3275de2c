"""Strategies that take one update at a time and mix it into the head: fedasync, afl-dw.

fedasync  a = alpha * s(staleness);  theta <- (1 - a) * theta + a * (base + delta)
          so direction = a * delta + a * base - a * theta; of a fresh update, whose base is the head, a * delta
          s = 1 (constant), (1 + staleness)^-staleness_exponent (polynomial), or the hinge
afl-dw    direction = (1 - beta) * delta;  beta = (1 - cos(pi * staleness / (2 * s_max))) / 2, at most 1

FedAsync is Xie, Koyejo and Gupta's (arXiv 1903.03934): the silo's whole model is mixed, and no client weight enters
a, which would make steps smaller the more silos there are. AFL-DW is the down-weighting baseline of FedRevive (arXiv
2511.00655). Both mix float buffers like parameters: the update's values with its coefficient, the head's with the rest.
"""

from collections.abc import Mapping

from anabranch.errors import Misuse
from anabranch.rules import staleness
from anabranch.rules.buffer import Buffer, Delta, Input, Plan, Snapshot, Term
from anabranch.terms import Aggregation


def fedasync(rule: Aggregation, buffer: Buffer, scalars: Mapping[str, float]) -> Plan:
    one = only(buffer)
    assert rule.alpha is not None
    weight = (
        staleness.weight(rule.staleness_exponent, one.staleness, scalars)
        if rule.hinge is None
        else staleness.hinge_weight(rule.hinge, one.staleness)
    )
    a = rule.alpha * weight
    # Of a fresh update the two cancel. A weight below the smallest float is none at all, and has no negative.
    back = (Term(a, Snapshot(one.base)), Term(-a, Snapshot(buffer.head))) if one.staleness and a else ()
    return _mixed(buffer, one, weight, a, back)


def afl_dw(buffer: Buffer, scalars: Mapping[str, float]) -> Plan:
    beta = 0.5 * (1.0 - staleness.logged(scalars, staleness.COSINE))
    return _mixed(buffer, only(buffer), 1.0 - beta, 1.0 - beta, ())


def only(buffer: Buffer) -> Input:
    if len(buffer.inputs) != 1:
        raise Misuse(f"this strategy takes one update at a time, not {len(buffer.inputs)}")
    return buffer.inputs[0]


def _mixed(buffer: Buffer, one: Input, weight: float, a: float, further: tuple[Term, ...]) -> Plan:
    own, rest = Term(a, Delta(one.update)), Term(1.0 - a, Snapshot(buffer.head))
    return Plan(
        head=buffer.head,
        weights=(weight,),
        direction=(own, *further),
        buffers=(own, rest) if rest.coefficient else (own,),
    )
