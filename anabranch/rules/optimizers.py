"""Server optimizers: from a direction to new parameters, `theta += lr * something`.

The direction points where the model should go (a delta is trained - base), so nothing here subtracts it.
`apply` works in place on float64 chunks; every line of it is one correctly rounded operation per element.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from anabranch.errors import Misuse
from anabranch.terms import ServerOptimizer

Chunk = NDArray[np.float64]


def state_names(server_optimizer: ServerOptimizer) -> tuple[str, ...]:
    """The tensors kept per trainable tensor from version to version, sorted."""
    if server_optimizer.name != "sgd":
        return ("m", "v")
    return ("momentum",) if server_optimizer.momentum > 0 else ()


def initial(server_optimizer: ServerOptimizer, name: str) -> float:
    """What state `name` holds everywhere before version 1: zero; of yogi's v, epsilon^2, as its authors ask."""
    yogis = server_optimizer.name == "yogi" and name == "v"
    return server_optimizer.epsilon * server_optimizer.epsilon if yogis else 0.0


def step_scalars(
    server_optimizer: ServerOptimizer, previous: Mapping[str, float], staleness: int
) -> dict[str, float]:
    """What one step needs besides tensors, for the log.

    `previous` is what the step before logged, empty for the first. Adam's beta powers are running products:
    one multiplication per step is the same bits everywhere, a power is not. `staleness` is that of the oldest update
    in the buffer, in versions; with a `delay_threshold` it is logged, and above the threshold the rate is
    min(lr, 1/staleness), the delay-adaptive rate of FADAS (arXiv 2407.18365). FADAS is that with adam, without bias
    correction; we allow it with every optimizer.
    """
    late = server_optimizer.delay_threshold is not None and staleness > server_optimizer.delay_threshold
    scalars = {"lr": min(server_optimizer.lr, 1.0 / staleness) if late else server_optimizer.lr}
    if server_optimizer.delay_threshold is not None:
        scalars["staleness"] = float(staleness)
    if server_optimizer.name == "sgd":
        return {**scalars, "momentum": server_optimizer.momentum}
    scalars |= {
        "beta1": server_optimizer.beta1,
        "beta2": server_optimizer.beta2,
        "epsilon": server_optimizer.epsilon,
    }
    if server_optimizer.name == "yogi":
        return scalars
    if server_optimizer.weight_decay is not None:
        scalars["weight_decay"] = server_optimizer.weight_decay
    return {
        **scalars,
        "beta1_power": previous.get("beta1_power", 1.0) * server_optimizer.beta1,
        "beta2_power": previous.get("beta2_power", 1.0) * server_optimizer.beta2,
    }


def apply(
    server_optimizer: ServerOptimizer,
    scalars: Mapping[str, float],
    theta: Chunk,
    direction: Chunk,
    state: Mapping[str, Chunk],
    scratch: Chunk,
) -> None:
    """One step on one chunk: updates `theta` and every array of `state`, consumes `direction` and `scratch`.

    sgd              theta += lr * direction
    sgd, momentum    momentum = beta * momentum + direction;  theta += lr * momentum
    adam             m = beta1 * m + (1 - beta1) * direction;  v = beta2 * v + (1 - beta2) * direction^2
                     theta += lr * ((m / (1 - beta1_power)) / (sqrt(v / (1 - beta2_power)) + epsilon))
    adamw            theta -= (lr * weight_decay) * theta;  then adam
    yogi             m as adam;  v = v - (1 - beta2) * direction^2 * sign(v - direction^2)
                     theta += lr * (m / (sqrt(v) + epsilon))

    Adam is Kingma & Ba's with bias correction, applied to the direction as FedAdam does; yogi is FedYogi as
    published, without (Reddi et al., ICLR 2021). AdamW's decay is decoupled (Loshchilov & Hutter): it does not pass
    through m and v. `scalars` are those of `step_scalars`. All arrays have one shape. Raises Misuse if the names in
    `state` are not exactly `state_names`.
    """
    if tuple(sorted(state)) != state_names(server_optimizer):
        raise Misuse(f"{server_optimizer.name} keeps {state_names(server_optimizer)}, got {tuple(state)}")
    if server_optimizer.name == "adamw":
        np.multiply(theta, scalars["lr"] * scalars["weight_decay"], out=scratch)
        np.subtract(theta, scratch, out=theta)
    if server_optimizer.name in ("adam", "adamw"):
        _adam(scalars, theta, direction, state["m"], state["v"], scratch)
    elif server_optimizer.name == "yogi":
        _yogi(scalars, theta, direction, state["m"], state["v"], scratch)
    elif "momentum" in state:
        _momentum(scalars, theta, direction, state["momentum"], scratch)
    else:
        np.multiply(direction, scalars["lr"], out=scratch)
        np.add(theta, scratch, out=theta)


def _momentum(
    scalars: Mapping[str, float], theta: Chunk, direction: Chunk, momentum: Chunk, scratch: Chunk
) -> None:
    np.multiply(momentum, scalars["momentum"], out=momentum)
    np.add(momentum, direction, out=momentum)
    np.multiply(momentum, scalars["lr"], out=scratch)
    np.add(theta, scratch, out=theta)


def _adam(
    scalars: Mapping[str, float], theta: Chunk, direction: Chunk, m: Chunk, v: Chunk, scratch: Chunk
) -> None:
    np.multiply(m, scalars["beta1"], out=m)
    np.multiply(direction, 1.0 - scalars["beta1"], out=scratch)
    np.add(m, scratch, out=m)

    np.multiply(v, scalars["beta2"], out=v)
    np.multiply(direction, direction, out=scratch)
    np.multiply(scratch, 1.0 - scalars["beta2"], out=scratch)
    np.add(v, scratch, out=v)

    np.divide(v, 1.0 - scalars["beta2_power"], out=direction)
    np.sqrt(direction, out=direction)
    np.add(direction, scalars["epsilon"], out=direction)
    np.divide(m, 1.0 - scalars["beta1_power"], out=scratch)
    np.divide(scratch, direction, out=scratch)
    np.multiply(scratch, scalars["lr"], out=scratch)
    np.add(theta, scratch, out=theta)


def _yogi(
    scalars: Mapping[str, float], theta: Chunk, direction: Chunk, m: Chunk, v: Chunk, scratch: Chunk
) -> None:
    np.multiply(m, scalars["beta1"], out=m)
    np.multiply(direction, 1.0 - scalars["beta1"], out=scratch)
    np.add(m, scratch, out=m)

    np.multiply(direction, direction, out=direction)
    np.subtract(v, direction, out=scratch)
    np.sign(scratch, out=scratch)
    np.multiply(direction, scratch, out=direction)
    np.multiply(direction, 1.0 - scalars["beta2"], out=direction)
    np.subtract(v, direction, out=v)

    np.sqrt(v, out=scratch)
    np.add(scratch, scalars["epsilon"], out=scratch)
    np.divide(m, scratch, out=scratch)
    np.multiply(scratch, scalars["lr"], out=scratch)
    np.add(theta, scratch, out=theta)
