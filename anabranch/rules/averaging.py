"""Strategies that average what is in the buffer: fedavg, fedbuff, fedfix.

size_i = 1 or examples_i, as the job weights.

fedavg   weight_i = size_i                        coefficient_i = weight_i / sum(weight)
fedbuff  weight_i = size_i * (1 + staleness_i)^-a
         normalise = weights: coefficient_i = weight_i / sum(weight)   a stale buffer takes a full step
         normalise = count:   coefficient_i = weight_i / sum(size)     a stale buffer takes a smaller one
fedfix   weight_i = 1 / (rate_i * together_i)     coefficient_i = weight_i / number of participants
         rate_i = max(arrived_i / windows_i, min_arrival);  together_i = its silo's updates in this window

With equal weighting sum(size) is the number of updates, the divisor of FedBuff as published (Nguyen et al.,
AISTATS 2022).

FedFix (Fraboni et al., JMLR 2023) divides by the probability that a silo arrives in a window, so that each silo has,
in the mean, the weight 1/participants, however rarely it comes. The probability is measured: every version since the
silo's newest approval is a window, the present one included. In a silo's first window the rate is 1; windows that
closed empty made no version and count for nobody. Coefficients sum to 1 in the mean only.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from anabranch.errors import Misuse
from anabranch.rules import staleness
from anabranch.rules.buffer import Buffer, Input, Plan, averaged, ordered_sum
from anabranch.terms import Aggregation


def fedavg(buffer: Buffer, sizes: Sequence[float]) -> Plan:
    return averaged(buffer, sizes, ordered_sum(sizes))


def fedbuff(rule: Aggregation, buffer: Buffer, sizes: Sequence[float], scalars: Mapping[str, float]) -> Plan:
    weights = [
        size * staleness.weight(rule.staleness_exponent, one.staleness, scalars)
        for size, one in zip(sizes, buffer.inputs, strict=True)
    ]
    return averaged(buffer, weights, ordered_sum(sizes if rule.normalise == "count" else weights))


def fedfix(rule: Aggregation, buffer: Buffer) -> Plan:
    together = Counter(one.silo for one in buffer.inputs)
    weights = [1.0 / (_arrival_rate(rule, one) * together[one.silo]) for one in buffer.inputs]
    return averaged(buffer, weights, float(len(buffer.participants)))


def _arrival_rate(rule: Aggregation, one: Input) -> float:
    if not 1 <= one.arrived <= one.windows:
        raise Misuse(f"update {one.update} arrived in {one.arrived} of {one.windows} windows")
    assert rule.min_arrival is not None
    return max(one.arrived / one.windows, rule.min_arrival)
