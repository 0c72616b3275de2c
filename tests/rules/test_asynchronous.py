"""The asynchronous strategies against their published formulas, written here once more: float64, rounded once."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from anabranch.errors import Misuse
from anabranch.rules.buffer import Buffer, Delta, Input, Snapshot
from anabranch.rules.strategies import measure, plan
from anabranch.terms import Aggregation, Hinge, ServerOptimizer

ROLES = {"bn.mean": "buffer"}
EVERYBODY = ("a", "b", "c", "d")
ONE_BY_ONE = [
    Aggregation(strategy="fedasync", ema=None),
    Aggregation(strategy="fedasync", staleness_exponent=0.5, ema=None),
    Aggregation(strategy="fedasync", hinge=Hinge(), ema=None),
    Aggregation(strategy="afl-dw", s_max=6.0, ema=None),
]
BUFFERED = [
    Aggregation(strategy="ca2fl", ema=None),
    Aggregation(strategy="fedfix", interval="1m", ema=None),
]


def tensors(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    shapes = {"bn.mean": (3,), "bias": (), "weight": (5, 7)}
    return {name: (rng.standard_normal(shape) * scale).astype(np.float32) for name, shape in shapes.items()}


def wide(arrays):
    return {name: array.astype(np.float64) for name, array in arrays.items()}


def same(found, expected):
    """One unit in the last place: sums in another order are rounded differently in float64."""
    for name, array in expected.items():
        np.testing.assert_array_max_ulp(found[name], array.astype(np.float32), maxulp=1)


def late(silo, staleness, order=0, **windows):
    return Input(f"{silo}{order}", silo, 100 - staleness, staleness, None, order, **windows)


@pytest.mark.parametrize("staleness", [0, 1, 4, 5, 30])
@pytest.mark.parametrize(
    ("terms_of", "s"),
    [
        ({}, lambda tau: 1.0),
        ({"staleness_exponent": 0.5}, lambda tau: (tau + 1) ** -0.5),
        ({"staleness_exponent": 0.3}, lambda tau: (tau + 1) ** -0.3),
        (
            {"hinge": {"slope": 10.0, "until": 4}},
            lambda tau: 1.0 if tau <= 4 else 1.0 / (10.0 * (tau - 4) + 1.0),
        ),
    ],
    ids=["constant", "polynomial", "measured polynomial", "hinge"],
)
def test_fedasync(run, terms, staleness, terms_of, s):
    """theta <- (1 - alpha_tau) theta + alpha_tau theta_i; Xie, Koyejo, Gupta, arXiv 1903.03934."""
    theta, delta = tensors(0), tensors(1, 0.1)
    base = tensors(2) if staleness else theta
    job = terms(Aggregation.model_validate({"strategy": "fedasync", "alpha": 0.7, "ema": 0, **terms_of}))
    done = run(
        job, theta, [(late("a", staleness), delta)], roles=ROLES, snapshots={100 - staleness: base}
    ).parameters
    a = 0.7 * s(staleness)
    head, old, change = wide(theta), wide(base), wide(delta)
    expected = {name: (1 - a) * head[name] + a * (old[name] + change[name]) for name in theta}
    expected["bn.mean"] = (1 - a) * head["bn.mean"] + a * change["bn.mean"]  # an update's file has its value
    for name, array in expected.items():
        np.testing.assert_allclose(done[name], array.astype(np.float32), rtol=2e-7, atol=1e-8)


@pytest.mark.parametrize("staleness", [0, 1, 5, 6, 11, 12, 40])
def test_afl_dw(run, terms, staleness):
    """U = (1 - beta) delta, beta = (1 - cos(pi tau / (2 s_max))) / 2, and 1 above twice s_max."""
    theta, delta = tensors(0), tensors(1, 0.1)
    job = terms(Aggregation(strategy="afl-dw", s_max=6.0, ema=None))
    done = run(job, theta, [(late("a", staleness), delta)], roles=ROLES).parameters
    beta = 0.5 * (1 - np.cos(np.pi * staleness / 12)) if staleness <= 12 else 1.0
    head, change = wide(theta), wide(delta)
    expected = {name: head[name] + (1 - beta) * change[name] for name in theta}
    expected["bn.mean"] = beta * head["bn.mean"] + (1 - beta) * change["bn.mean"]
    same(done, expected)


def ca2fl(theta, cached, buffer, participants):
    """Algorithm of Wang et al., ICLR 2024, with h_i = 0 before the first upload; `buffer`: (silo, delta)."""
    h = {k: wide(cached[k]) if k in cached else wide(tensors(0, 0.0)) for k in participants}
    mean = {name: sum(h[k][name] for k in participants) / len(participants) for name in theta}
    new = {}
    for name in theta:
        v = mean[name] + sum(d[name].astype(float) - h[k][name] for k, d in buffer) / len(buffer)
        new[name] = theta[name].astype(float) + v
    return new


@pytest.mark.parametrize(
    ("sends", "knows"),
    [
        (["a", "b"], ["a", "c"]),
        (["a", "b", "c", "d"], ["a", "b", "c", "d"]),
        (["a", "a", "b"], ["a", "b", "d"]),
        (["d"], []),
        (["a"], ["a"]),
    ],
    ids=["usual", "everybody", "twice from one silo", "first of all", "alone again"],
)
def test_ca2fl(run, terms, sends, knows):
    theta = tensors(0)
    cached = {silo: tensors(40 + ord(silo), 0.3) for silo in knows}
    updates = [(late(silo, 2 * i, i), tensors(i + 1, 0.3)) for i, silo in enumerate(sends)]
    done = run(
        terms(Aggregation(strategy="ca2fl", buffer=4, ema=None)),
        theta,
        updates,
        participants=EVERYBODY,
        cached={silo: (f"old-{silo}", arrays) for silo, arrays in cached.items()},
    ).parameters
    expected = ca2fl(theta, cached, [(one.silo, delta) for one, delta in updates], EVERYBODY)
    for name, array in expected.items():
        np.testing.assert_allclose(done[name], array.astype(np.float32), rtol=2e-7, atol=1e-8)


def test_fedfix(run, terms):
    """theta + sum of p_i / P(i arrives) delta_i, p_i = 1/4: Fraboni et al., JMLR 2023. Silo c comes twice."""
    theta = tensors(0)
    inputs = [
        late("a", 0, 0, arrived=8, windows=8),
        late("b", 3, 1, arrived=1, windows=40),  # below the bound
        late("c", 2, 2, arrived=2, windows=5),
        late("c", 0, 3, arrived=2, windows=5),
    ]
    deltas = [tensors(i + 1, 0.3) for i in range(4)]
    job = terms(Aggregation(strategy="fedfix", interval="1m", min_arrival=0.05, ema=None))
    updates = list(zip(inputs, deltas, strict=True))
    done = run(job, theta, updates, participants=EVERYBODY).parameters
    a, b, *c = map(wide, deltas)
    same(
        done,
        {
            name: array.astype(float)
            + a[name] / 4
            + b[name] / 4 / 0.05
            + (c[0][name] / 2 + c[1][name] / 2) / 4 / (2 / 5)
            for name, array in theta.items()
        },
    )


def test_fedfix_averages_buffers(run, terms):
    inputs = [late("a", 0, 0, arrived=4, windows=4), late("b", 0, 1, arrived=1, windows=4)]
    values = [tensors(1), tensors(2)]
    job = terms(Aggregation(strategy="fedfix", interval="1m"))
    updates = list(zip(inputs, values, strict=True))
    done = run(job, tensors(0), updates, roles=ROLES, participants=EVERYBODY).parameters
    expected = (1 * wide(values[0])["bn.mean"] + 4 * wide(values[1])["bn.mean"]) / 5
    np.testing.assert_array_max_ulp(done["bn.mean"], expected.astype(np.float32), maxulp=1)


numbers = st.floats(-(2.0**60), 2.0**60, width=32)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=20))
def test_fedasync_of_a_fresh_update_with_alpha_one_gives_the_silos_model(run, terms, drawn):
    theta, delta = ({"w": np.array(column, np.float32)} for column in zip(*drawn, strict=True))
    job = terms(Aggregation(strategy="fedasync", alpha=1.0, ema=None))
    done = run(job, theta, [(late("a", 0), delta)])
    expected = (theta["w"].astype(float) + delta["w"]).astype(np.float32)
    np.testing.assert_array_equal(done.parameters["w"], expected)
    assert done.plan.sources == (Snapshot(100), Delta("a0"))


def test_a_weight_that_vanishes_leaves_the_head_as_it_is(run, terms):
    theta = tensors(0)
    job = terms(Aggregation(strategy="fedasync", hinge=Hinge(slope=1e308, until=0), ema=None))
    done = run(job, theta, [(late("a", 90), tensors(1))], roles=ROLES)
    assert done.plan.coefficients == (0.0,)
    assert done.plan.further == ()
    assert all(done.parameters[name].tobytes() == theta[name].tobytes() for name in theta)


def test_a_fresh_update_counts_fully_with_afl_dw_and_one_of_twice_s_max_not_at_all(run, terms):
    theta, delta = tensors(0), tensors(1)
    job = terms(Aggregation(strategy="afl-dw", s_max=3.5, ema=None))
    fresh = run(job, theta, [(late("a", 0), delta)]).parameters
    fedbuff = run(terms(Aggregation(buffer=1, ema=None)), theta, [(late("a", 0), delta)]).parameters
    old = run(job, theta, [(late("a", 7), delta)], roles=ROLES).parameters
    assert all(fresh[name].tobytes() == fedbuff[name].tobytes() for name in theta)
    assert all(old[name].tobytes() == theta[name].tobytes() for name in theta)


@settings(max_examples=30, deadline=None)
@given(silos=st.integers(1, 6), seed=st.integers(0, 1000))
def test_ca2fl_with_every_silo_in_the_buffer_is_fedbuff(run, terms, silos, seed):
    names = [f"s{i}" for i in range(silos)]
    updates = [(late(silo, i, i), tensors(seed + i)) for i, silo in enumerate(names)]
    cached = {silo: (f"old-{silo}", tensors(7)) for silo in names}
    calibrated = run(
        terms(Aggregation(strategy="ca2fl")), tensors(0), updates, participants=names, cached=cached
    )
    buffered = run(terms(Aggregation(normalise="count")), tensors(0), updates)
    assert calibrated.plan.further == ()
    for name, array in buffered.parameters.items():
        assert calibrated.parameters[name].tobytes() == array.tobytes()


@settings(max_examples=30, deadline=None)
@given(silos=st.integers(1, 6), windows=st.integers(1, 50), seed=st.integers(0, 1000))
def test_fedfix_where_everybody_always_arrives_is_fedavg(run, terms, silos, windows, seed):
    names = [f"s{i}" for i in range(silos)]
    inputs = [late(silo, 0, i, arrived=windows, windows=windows) for i, silo in enumerate(names)]
    updates = [(one, tensors(seed + i)) for i, one in enumerate(inputs)]
    fixed = run(terms(Aggregation(strategy="fedfix", interval="1m")), tensors(0), updates, participants=names)
    averaged = run(terms(Aggregation(strategy="fedavg")), tensors(0), updates)
    for name, array in averaged.parameters.items():
        assert fixed.parameters[name].tobytes() == array.tobytes()


@given(st.lists(st.booleans(), min_size=1, max_size=300), st.floats(0.01, 1.0))
def test_in_the_mean_a_silo_weighs_the_same_however_rarely_it_arrives(arrivals, floor):
    """Over its windows a silo's coefficients add up to their number / participants, as far as its rate was known."""
    rule = Aggregation(strategy="fedfix", interval="1m", min_arrival=floor)
    count = sum(arrivals)
    assume(count and count / len(arrivals) >= floor)
    one = late("a", 0, arrived=count, windows=len(arrivals))
    [coefficient] = plan(rule, "equal", Buffer(100, [one], EVERYBODY), {}).coefficients
    assert coefficient * count == pytest.approx(len(arrivals) / len(EVERYBODY))


def made(rule, run, terms, order=(0, 1, 2), scale=1.0, **options):
    """A step of any asynchronous strategy on three updates, or on the first in `order`."""
    silos = ["a", "b", "c"]
    taken = order[:1] if rule.buffer == 1 else order
    updates = [
        (late(silos[i], 3 * i + 1, position, arrived=i + 1, windows=4), tensors(i + 1, scale))
        for position, i in enumerate(taken)
    ]
    cached = {"b": ("old-b", tensors(11, scale)), "d": ("old-d", tensors(12, scale))}
    return run(
        terms(rule),
        tensors(0, scale),
        updates,
        participants=EVERYBODY,
        cached=cached if rule.strategy == "ca2fl" else {},
        snapshots={one.base: tensors(20, scale) for one, _ in updates},
        roles=ROLES,
        **options,
    )


@pytest.mark.parametrize("rule", BUFFERED + ONE_BY_ONE, ids=lambda rule: rule.strategy)
def test_the_size_of_a_chunk_does_not_change_a_bit(run, terms, rule):
    whole = made(rule, run, terms)
    for chunk in (1, 3, 16):
        pieces = made(rule, run, terms, chunk=chunk)
        for name, array in whole.parameters.items():
            assert pieces.parameters[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("rule", BUFFERED, ids=lambda rule: rule.strategy)
def test_the_order_of_arrival_changes_nothing_but_rounding(run, terms, rule):
    one, other = made(rule, run, terms).parameters, made(rule, run, terms, order=(2, 0, 1)).parameters
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("rule", BUFFERED + ONE_BY_ONE, ids=lambda rule: rule.strategy)
@pytest.mark.parametrize("power", [-20, 3])
def test_a_model_twice_as_large_gives_a_version_twice_as_large(run, terms, rule, power):
    """Linear: scaled by a power of two, not one rounding falls otherwise."""
    one, scaled = made(rule, run, terms), made(rule, run, terms, scale=2.0**power)
    for name, array in one.parameters.items():
        np.testing.assert_array_equal(scaled.parameters[name], array * np.float32(2.0**power))


@pytest.mark.parametrize("rule", BUFFERED + ONE_BY_ONE, ids=lambda rule: rule.strategy)
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "yogi"])
def test_the_average_and_every_optimizer_go_with_every_strategy(run, terms, rule, optimizer):
    rule = rule.model_copy(update={"ema": 0.75, "server_optimizer": ServerOptimizer(name=optimizer, lr=0.1)})
    done = made(rule, run, terms)
    for name, array in done.parameters.items():
        expected = 0.75 * tensors(0)[name].astype(float) + 0.25 * array
        np.testing.assert_array_equal(done.ema[name], expected.astype(np.float32))


@pytest.mark.parametrize("rule", BUFFERED + ONE_BY_ONE, ids=lambda rule: rule.strategy)
def test_buffers_are_a_weighted_mean(run, terms, rule):
    assert sum(term.coefficient for term in made(rule, run, terms).plan.buffers) == pytest.approx(1.0)


def test_the_cosine_is_logged_not_what_follows_from_it():
    rule = Aggregation(strategy="afl-dw", s_max=1e6)
    buffer = Buffer(100, [late("a", 1)])
    measured = measure(rule, buffer)
    assert list(measured) == ["cosine"]
    nudged = {"cosine": np.nextafter(measured["cosine"], 0.0)}
    assert plan(rule, "equal", buffer, nudged).coefficients == (1.0 - 0.5 * (1.0 - nudged["cosine"]),)
    with pytest.raises(Misuse, match="cosine"):
        plan(rule, "equal", buffer, {})


@pytest.mark.parametrize(
    ("rule", "buffer", "words"),
    [
        (ONE_BY_ONE[0], Buffer(100, [late("a", 0, 0), late("b", 0, 1)]), "one update at a time"),
        (ONE_BY_ONE[3], Buffer(100, [late("a", 0, 0), late("b", 0, 1)]), "one update at a time"),
        (BUFFERED[0], Buffer(100, [late("z", 0)], EVERYBODY), "do not take part"),
        (BUFFERED[0], Buffer(100, [late("a", 0)], EVERYBODY, {"z": "old"}), "do not take part"),
        (BUFFERED[1], Buffer(100, [late("a", 0)]), "do not take part"),
        (BUFFERED[1], Buffer(100, [late("a", 0)], EVERYBODY), "0 of 0 windows"),
        (BUFFERED[1], Buffer(100, [late("a", 0, arrived=5, windows=4)], EVERYBODY), "5 of 4 windows"),
    ],
)
def test_what_freezing_never_lets_through_is_our_bug(rule, buffer, words):
    with pytest.raises(Misuse, match=words):
        plan(rule, "equal", buffer, measure(rule, Buffer(100, buffer.inputs[:1])))
