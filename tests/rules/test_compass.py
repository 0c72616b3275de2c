"""fedcompass against its formula, written here once more in float64."""

import numpy as np
import pytest

from anabranch.errors import Refused
from anabranch.rules.buffer import Buffer, Input, Snapshot
from anabranch.rules.strategies import measure, plan
from anabranch.terms import Aggregation, parse_job_file

ROLES = {"bn.mean": "buffer"}
EVERYBODY = ("a", "b", "c", "d", "e")
HEAD = 100


def tensors(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    shapes = {"bn.mean": (3,), "bias": (), "weight": (5, 7)}
    return {name: (rng.standard_normal(shape) * scale).astype(np.float32) for name, shape in shapes.items()}


def late(silo, staleness, order=0):
    return Input(f"{silo}{order}", silo, HEAD - staleness, staleness, None, order)


def rule(**more):
    return Aggregation.model_validate({"strategy": "fedcompass", "local_steps_min": 4, "ema": 0, **more})


@pytest.mark.parametrize("mixes", ["models", "deltas"])
@pytest.mark.parametrize(
    ("said", "s"),
    [
        ({}, lambda tau: 1.0),
        ({"staleness_exponent": 0.5}, lambda tau: (tau + 1) ** -0.5),
        ({"staleness_exponent": 0.3}, lambda tau: (tau + 1) ** -0.3),
        ({"hinge": {}}, lambda tau: 1.0 if tau <= 4 else 1.0 / (10.0 * (tau - 4) + 1.0)),
    ],
    ids=["constant", "polynomial", "measured polynomial", "hinge"],
)
@pytest.mark.parametrize("staleness", [(0, 0, 0), (0, 7, 2), (7, 7, 0), (3,)])
def test_a_group(run, terms, staleness, said, s, mixes):
    """theta <- (1 - sum a_i) theta + sum a_i theta_i, a_i = alpha s(tau_i) / N; Li et al., arXiv 2309.14675."""
    theta, bases = tensors(0), {tau: tensors(50 + tau) for tau in set(staleness) if tau}
    deltas = [tensors(i + 1, 0.1) for i in range(len(staleness))]
    updates = [
        (late("abc"[i], tau, i), delta) for i, (tau, delta) in enumerate(zip(staleness, deltas, strict=True))
    ]
    job = terms(rule(alpha=0.8, mixes=mixes, **said))
    done = run(
        job,
        theta,
        updates,
        roles=ROLES,
        participants=EVERYBODY,
        snapshots={HEAD - tau: base for tau, base in bases.items()},
    ).parameters
    parts = [0.8 * s(tau) / 5 for tau in staleness]
    for name in theta:
        head = theta[name].astype(float)
        if name == "bn.mean":
            models = [delta[name].astype(float) for delta in deltas]  # an update's file has its value
        elif mixes == "models":
            models = [
                bases.get(tau, theta)[name].astype(float) + delta[name].astype(float)
                for tau, delta in zip(staleness, deltas, strict=True)
            ]
        else:
            models = [head + delta[name].astype(float) for delta in deltas]
        expected = (1 - sum(parts)) * head + sum(a * model for a, model in zip(parts, models, strict=True))
        np.testing.assert_allclose(done[name], expected.astype(np.float32), rtol=3e-7, atol=3e-8)


def planned(said, inputs, participants=EVERYBODY):
    buffer = Buffer(HEAD, inputs, participants)
    return plan(said, "equal", buffer, measure(said, buffer))


def test_everybody_in_time_is_a_round_of_alpha():
    found = planned(rule(), [late(silo, 0, i) for i, silo in enumerate(EVERYBODY)])
    assert found.further == ()
    assert found.coefficients == (0.9 / 5,) * 5
    assert sum(term.coefficient for term in found.buffers) == pytest.approx(1.0)


def test_each_base_is_read_once():
    found = planned(rule(), [late("a", 0), late("b", 7, 1), late("c", 2, 2), late("d", 7, 3)])
    assert [term.source for term in found.further] == [Snapshot(93), Snapshot(98), Snapshot(HEAD)]
    assert sum(term.coefficient for term in found.further) == pytest.approx(0.0)


def test_two_updates_of_each_leave_nothing_of_the_heads_buffers():
    """A variance must not become negative."""
    inputs = [late(silo, tau, 2 * i + j) for i, silo in enumerate(EVERYBODY) for j, tau in enumerate((3, 0))]
    found = planned(rule(), inputs)
    assert sum(found.coefficients) == pytest.approx(1.8)
    assert [term.coefficient for term in found.buffers] == pytest.approx([0.1] * 10)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"strategy": "fedcompass"}, "fedcompass needs local_steps_min: the fewest steps of a task"),
        ({"strategy": "fedbuff", "local_steps_min": 4}, "local_steps_min is a key of fedcompass"),
        ({"strategy": "fedavg", "latest_factor": 2}, "latest_factor is a key of fedcompass"),
        ({"strategy": "fedasync", "mixes": "deltas"}, "mixes is a key of fedcompass"),
        (
            {"strategy": "fedcompass", "local_steps_min": 4, "buffer": 3},
            "buffer is a key of fedbuff and ca2fl",
        ),
        (
            {"strategy": "fedcompass", "local_steps_min": 4, "latest_factor": 0.9},
            "greater than or equal to 1",
        ),
        ({"strategy": "fedcompass", "local_steps_min": 0}, "greater than or equal to 1"),
    ],
)
def test_keys(said, words):
    with pytest.raises(ValueError, match=words):
        Aggregation.model_validate(said)


def parse(text):
    return parse_job_file('[job]\nname = "a"\ntask = "t.py:T"\n' + text)


def test_the_fewest_steps_are_no_more_than_the_most():
    with pytest.raises(Refused, match=r"local_steps_min \(21\) is above training.local_steps \(20\)"):
        parse('[aggregation]\nstrategy = "fedcompass"\nlocal_steps_min = 21\n')
    written = parse('[aggregation]\nstrategy = "fedcompass"\nlocal_steps_min = 20\n').aggregation
    assert (written.alpha, written.mixes, written.latest_factor) == (0.9, "models", 1.2)
