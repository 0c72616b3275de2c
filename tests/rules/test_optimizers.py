"""Server optimizers against naive float64, over several steps as versions follow each other."""

import numpy as np
import pytest

from anabranch.errors import Misuse
from anabranch.rules import optimizers
from anabranch.terms import Aggregation, ServerOptimizer

STEPS = 6
RNG = np.random.default_rng(3)
BASE = {"w": RNG.standard_normal((7, 5)).astype(np.float32)}
DELTAS = [{"w": (RNG.standard_normal((7, 5)) * 0.1).astype(np.float32)} for _ in range(STEPS)]


def trained(run, terms, inputs, server_optimizer):
    """STEPS versions with one update each, state and scalars carried on as the server does."""
    job = terms(Aggregation(server_optimizer=server_optimizer, ema=None))
    base, state, previous, history = BASE, None, {}, []
    for delta in DELTAS:
        outcome = run(job, base, [(inputs([0])[0], delta)], optimizer=state, previous=previous)
        base, state, previous = (
            outcome.parameters,
            outcome.optimizer or None,
            outcome.scalars.optimizer,
        )
        history.append(outcome)
    return history


def test_sgd_adds_the_direction(run, terms, inputs):
    last = trained(run, terms, inputs, ServerOptimizer(lr=0.7))[-1]
    theta = BASE["w"].astype(float)
    for delta in DELTAS:
        theta += 0.7 * delta["w"]
    np.testing.assert_allclose(last.parameters["w"], theta, rtol=1e-5, atol=1e-6)
    assert last.optimizer == {}


def test_momentum(run, terms, inputs):
    last = trained(run, terms, inputs, ServerOptimizer(lr=0.5, momentum=0.9))[-1]
    theta, momentum = BASE["w"].astype(float), 0.0
    for delta in DELTAS:
        momentum = 0.9 * momentum + delta["w"].astype(float)
        theta += 0.5 * momentum
    np.testing.assert_allclose(last.parameters["w"], theta, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(last.optimizer["momentum/w"], momentum, rtol=1e-5, atol=1e-6)


def test_adam_with_bias_correction(run, terms, inputs):
    rule = ServerOptimizer(name="adam", lr=0.01, beta1=0.8, beta2=0.95, epsilon=1e-4)
    last = trained(run, terms, inputs, rule)[-1]
    theta, m, v = BASE["w"].astype(float), 0.0, 0.0
    for t, delta in enumerate(DELTAS, start=1):
        d = delta["w"].astype(float)
        m = 0.8 * m + 0.2 * d
        v = 0.95 * v + 0.05 * d**2
        theta += 0.01 * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-4)
    np.testing.assert_allclose(last.parameters["w"], theta, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(last.optimizer["m/w"], m, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(last.optimizer["v/w"], v, rtol=1e-5, atol=1e-9)


def test_yogi_as_published(run, terms, inputs):
    """FedYogi, Reddi et al., ICLR 2021, Algorithm 2: no bias correction, v starts at tau^2."""
    rule = ServerOptimizer(name="yogi", lr=0.01, beta1=0.8, beta2=0.8, epsilon=0.2)
    last = trained(run, terms, inputs, rule)[-1]
    theta, m, v = BASE["w"].astype(float), 0.0, 0.2**2
    for delta in DELTAS:
        d = delta["w"].astype(float)
        m = 0.8 * m + 0.2 * d
        v = v - 0.2 * d**2 * np.sign(v - d**2)
        theta += 0.01 * m / (np.sqrt(v) + 0.2)
    np.testing.assert_allclose(last.parameters["w"], theta, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(last.optimizer["m/w"], m, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(last.optimizer["v/w"], v, rtol=1e-5, atol=1e-9)
    assert (last.optimizer["v/w"] > 0.2**2).any()
    assert (last.optimizer["v/w"] < 0.2**2).any()


def test_adamw_decays_the_head_and_not_the_moments(run, terms, inputs):
    rule = {"lr": 0.1, "beta1": 0.8, "beta2": 0.95, "epsilon": 1e-4}
    last = trained(run, terms, inputs, ServerOptimizer(name="adamw", weight_decay=0.3, **rule))[-1]
    theta, m, v = BASE["w"].astype(float), 0.0, 0.0
    for t, delta in enumerate(DELTAS, start=1):
        d = delta["w"].astype(float)
        m = 0.8 * m + 0.2 * d
        v = 0.95 * v + 0.05 * d**2
        theta = theta - 0.1 * 0.3 * theta
        theta += 0.1 * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-4)
    np.testing.assert_allclose(last.parameters["w"], theta, rtol=1e-5, atol=1e-6)
    plain = trained(run, terms, inputs, ServerOptimizer(name="adam", **rule))[-1]
    undecayed = trained(run, terms, inputs, ServerOptimizer(name="adamw", weight_decay=0.0, **rule))[-1]
    assert undecayed.parameters["w"].tobytes() == plain.parameters["w"].tobytes()
    assert last.optimizer["m/w"].tobytes() == plain.optimizer["m/w"].tobytes()


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "yogi"])
@pytest.mark.parametrize(
    ("staleness", "lr"), [(0, 0.2), (3, 0.2), (4, 0.2), (6, 1 / 6), (100, 0.01)], ids=str
)
def test_a_stale_buffer_lowers_the_rate_to_one_over_its_staleness(run, terms, inputs, name, staleness, lr):
    """FADAS, arXiv 2407.18365: lr if tau_max <= tau_c, else min(lr, 1/tau_max)."""
    rule = ServerOptimizer(name=name, lr=0.2, delay_threshold=3)
    delta = DELTAS[0]
    late = run(
        terms(Aggregation(server_optimizer=rule, ema=None)),
        BASE,
        [(one, delta) for one in inputs([staleness, 0])],
    )
    assert (late.scalars.optimizer["lr"], late.scalars.optimizer["staleness"]) == (lr, staleness)
    slower = ServerOptimizer(name=name, lr=lr)
    same = run(
        terms(Aggregation(server_optimizer=slower, ema=None)),
        BASE,
        [(one, delta) for one in inputs([staleness, 0])],
    )
    assert late.parameters["w"].tobytes() == same.parameters["w"].tobytes()


def test_adams_first_step_has_the_length_of_the_learning_rate(run, terms, inputs):
    rule = ServerOptimizer(name="adam", lr=0.01, epsilon=1e-12)
    first = trained(run, terms, inputs, rule)[0]
    moved = first.parameters["w"].astype(float) - BASE["w"]
    np.testing.assert_allclose(moved, 0.01 * np.sign(DELTAS[0]["w"]), rtol=1e-3)


def test_beta_powers_are_running_products():
    rule = ServerOptimizer(name="adam", beta1=0.9, beta2=0.999)
    scalars: dict[str, float] = {}
    expected = 1.0
    for _ in range(50):
        scalars = optimizers.step_scalars(rule, scalars, 0)
        expected *= 0.9
        assert scalars["beta1_power"] == expected
    assert scalars["beta2_power"] == pytest.approx(0.999**50)


def test_what_each_optimizer_keeps_and_logs():
    assert optimizers.state_names(ServerOptimizer()) == ()
    assert optimizers.state_names(ServerOptimizer(momentum=0.9)) == ("momentum",)
    assert optimizers.state_names(ServerOptimizer(name="adam")) == ("m", "v")
    assert optimizers.step_scalars(ServerOptimizer(lr=0.25), {}, 0) == {"lr": 0.25, "momentum": 0.0}
    logged = optimizers.step_scalars(ServerOptimizer(name="adam"), {}, 0)
    assert set(logged) == {"lr", "beta1", "beta2", "epsilon", "beta1_power", "beta2_power"}
    decoupled = optimizers.step_scalars(ServerOptimizer(name="adamw"), {}, 0)
    assert set(decoupled) == {*logged, "weight_decay"}
    yogi = optimizers.step_scalars(ServerOptimizer(name="yogi", delay_threshold=9), {}, 2)
    assert set(yogi) == {"lr", "beta1", "beta2", "epsilon", "staleness"}


def test_state_of_another_optimizer_is_our_bug():
    array = np.zeros(3)
    with pytest.raises(Misuse, match="momentum"):
        optimizers.apply(ServerOptimizer(), {"lr": 1.0}, array, array, {"momentum": array}, array)
