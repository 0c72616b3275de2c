"""One step over whole files: formulas, order, chunks, buffers, EMA, overflow."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.errors import Misuse, Reason, Refused
from anabranch.rules import step
from anabranch.rules.buffer import Buffer
from anabranch.terms import Aggregation, ServerOptimizer
from anabranch.wire.manifest import Manifest, TensorSpec

ROLES = {"bn.mean": "buffer", "bn.var": "buffer"}


def tensors(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    shapes = {"bn.mean": (3,), "bn.var": (3,), "bias": (), "empty": (0, 4), "weight": (5, 7)}
    return {name: (rng.standard_normal(shape) * scale).astype(np.float32) for name, shape in shapes.items()}


def equal(one, other):
    return one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)


def test_trainable_tensors_add_the_weighted_deltas_and_buffers_average_their_values(run, terms, inputs):
    base, updates = tensors(0), [tensors(seed, 0.1) for seed in (1, 2, 3)]
    staleness = [0, 3, 8]
    job = terms(
        Aggregation(staleness_exponent=0.5, normalise="count", server_optimizer=ServerOptimizer(lr=0.5))
    )
    new = run(job, base, list(zip(inputs(staleness), updates, strict=True)), roles=ROLES).parameters

    weights = (1.0 + np.array(staleness)) ** -0.5
    for name in ("weight", "bias"):
        direction = sum(w * u[name].astype(float) for w, u in zip(weights / 3, updates, strict=True))
        np.testing.assert_allclose(new[name], base[name] + 0.5 * direction, rtol=1e-5, atol=1e-6)
    for name in ROLES:
        mean = sum(w * u[name].astype(float) for w, u in zip(weights / weights.sum(), updates, strict=True))
        np.testing.assert_allclose(new[name], mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("buffers", ["local", "none"])
def test_buffers_that_are_not_averaged_stay_as_they_are(run, terms, inputs, buffers):
    base = tensors(0)
    new = run(
        terms(Aggregation(), buffers=buffers), base, [(inputs([0])[0], tensors(1))], roles=ROLES
    ).parameters
    assert all(new[name].tobytes() == base[name].tobytes() for name in ROLES)
    assert new["weight"].tobytes() != base["weight"].tobytes()


@settings(max_examples=40, deadline=None)
@given(
    chunk=st.integers(1, 40),
    rule=st.sampled_from(
        [ServerOptimizer(), ServerOptimizer(momentum=0.9, lr=0.3), ServerOptimizer(name="adam", lr=0.02)]
    ),
    strategy=st.sampled_from(["fedavg", "fedbuff"]),
)
def test_the_size_of_a_chunk_does_not_change_a_bit(run, terms, inputs, chunk, rule, strategy):
    exponent = {"staleness_exponent": 0.3} if strategy == "fedbuff" else {}
    job = terms(Aggregation(strategy=strategy, server_optimizer=rule, **exponent))
    base, updates = tensors(0), list(zip(inputs([0, 5]), [tensors(1), tensors(2)], strict=True))
    first = run(job, base, updates, roles=ROLES)
    carried = {"optimizer": first.optimizer or None, "ema": first.ema}
    whole = run(job, first.parameters, updates, roles=ROLES, **carried)
    pieces = run(job, first.parameters, updates, roles=ROLES, chunk=chunk, **carried)
    assert equal(whole.parameters, pieces.parameters)
    assert equal(whole.optimizer, pieces.optimizer)
    assert equal(whole.ema, pieces.ema)


def test_inputs_are_summed_in_the_order_given(run, terms, inputs):
    """1e16 + 1 - 1e16 is 0 from the left and 1 with the large terms first: order is part of the result."""
    job = terms(Aggregation(ema=None, server_optimizer=ServerOptimizer(lr=3.0)))
    base = {"w": np.zeros(1, np.float32)}
    values = [1e16, 1.0, -1e16]

    def result(order):
        deltas = [{"w": np.array([values[i]], np.float32)} for i in order]
        return float(run(job, base, list(zip(inputs([0, 0, 0]), deltas, strict=True))).parameters["w"][0])

    total = np.float64(0.0)
    for value in values:
        total = total + np.float64(np.float32(value)) * (1.0 / 3.0)
    assert result([0, 1, 2]) == np.float32(3.0 * total)
    assert result([0, 2, 1]) == np.float32(1.0)
    assert result([0, 1, 2]) != result([0, 2, 1])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
def test_updates_of_zero_change_nothing(run, terms, inputs, values):
    base = {"w": np.array(values, np.float32)}
    none = [(one, {"w": np.zeros_like(base["w"])}) for one in inputs([0, 4])]
    for rule in (ServerOptimizer(), ServerOptimizer(momentum=0.9), ServerOptimizer(name="adam")):
        outcome = run(terms(Aggregation(server_optimizer=rule)), base, none)
        np.testing.assert_array_equal(outcome.parameters["w"], base["w"])
        assert all(not array.any() for array in outcome.optimizer.values())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=50))
def test_one_update_with_rate_one_gives_the_trained_model_rounded_once(run, terms, inputs, values):
    base = {"w": np.linspace(-1, 1, len(values)).astype(np.float32)}
    delta = {"w": np.array(values, np.float32)}
    new = run(terms(Aggregation(ema=None)), base, [(inputs([2])[0], delta)]).parameters["w"]
    np.testing.assert_array_equal(new, (base["w"].astype(float) + delta["w"]).astype(np.float32))


def test_subnormal_numbers_are_kept(run, terms, inputs):
    tiny = np.float32(1e-45)
    base, delta = {"w": np.zeros(4, np.float32)}, {"w": np.full(4, tiny)}
    new = run(terms(Aggregation()), base, [(inputs([0])[0], delta)]).parameters["w"]
    assert (new == tiny).all()
    assert tiny > 0


def test_the_average_starts_at_the_head_and_follows_the_published_version(run, terms, inputs):
    job = terms(Aggregation(ema=0.75))
    base, update = tensors(0), [(inputs([0])[0], tensors(1))]
    first = run(job, base, update, roles=ROLES)
    second = run(job, first.parameters, update, roles=ROLES, ema=first.ema)
    for name in base:
        expected = 0.75 * base[name].astype(float) + 0.25 * first.parameters[name]
        np.testing.assert_array_equal(first.ema[name], expected.astype(np.float32))
        expected = 0.75 * first.ema[name].astype(float) + 0.25 * second.parameters[name]
        np.testing.assert_array_equal(second.ema[name], expected.astype(np.float32))


def test_layout_of_the_optimizer_state(run, terms, inputs):
    rule = ServerOptimizer(name="adam")
    outcome = run(
        terms(Aggregation(server_optimizer=rule)), tensors(0), [(inputs([0])[0], tensors(1))], roles=ROLES
    )
    names = ["m/bias", "m/empty", "m/weight", "v/bias", "v/empty", "v/weight"]
    assert list(outcome.optimizer) == names
    assert names == sorted(names)
    assert outcome.optimizer["v/weight"].shape == (5, 7)


@pytest.mark.parametrize("rule", [ServerOptimizer(lr=1e38), ServerOptimizer(name="adam", lr=1.0)])
def test_a_version_that_overflows_is_refused_by_name(run, terms, inputs, rule):
    base = {"fine": np.zeros(2, np.float32), "weight": np.ones(3, np.float32)}
    delta = {"fine": np.zeros(2, np.float32), "weight": np.full(3, 3e38, np.float32)}
    with pytest.raises(Refused, match="weight") as caught:
        run(terms(Aggregation(server_optimizer=rule)), base, [(inputs([0])[0], delta)])
    assert caught.value.code is Reason.NONFINITE


def test_sinks_must_fit_what_the_job_keeps(terms, inputs, run):
    class Nowhere:
        def write(self, chunk):
            pass

    def aggregate(aggregation, outputs):
        job = terms(aggregation)
        buffer = Buffer(100, inputs([0]))
        scalars = step.measure(job, buffer, {})
        plan = step.plan(job, buffer, scalars)
        step.aggregate(job, None, plan, dict.fromkeys(plan.sources), None, None, scalars, outputs)

    with pytest.raises(Misuse, match="optimizer"):
        aggregate(
            Aggregation(ema=None, server_optimizer=ServerOptimizer(momentum=0.5)), step.Outputs(Nowhere())
        )
    with pytest.raises(Misuse, match="optimizer"):
        aggregate(Aggregation(ema=None), step.Outputs(Nowhere(), optimizer=Nowhere()))
    with pytest.raises(Misuse, match="EMA"):
        aggregate(Aggregation(ema=0.9), step.Outputs(Nowhere()))


@pytest.mark.parametrize("updates", [1, 12])
def test_memory_does_not_grow_with_the_model_or_the_number_of_updates(terms, inputs, updates):
    class Constant:
        def read(self, name, start, stop, out):
            out.fill(0.5)

    class Nowhere:
        def write(self, chunk):
            pass

    layout = Manifest((TensorSpec("w", (4_000_000,), "trainable"),))
    job = terms(Aggregation(server_optimizer=ServerOptimizer(name="adam")))
    buffer = Buffer(100, inputs([0] * updates))
    scalars = step.measure(job, buffer, {})
    plan = step.plan(job, buffer, scalars)
    sinks = step.Outputs(Nowhere(), Nowhere(), Nowhere())
    sources = dict.fromkeys(plan.sources, Constant())
    tracemalloc.start()
    step.aggregate(job, layout, plan, sources, Constant(), Constant(), scalars, sinks)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 2**20
