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
    """The tensors kept per trainable tensor from version to version, sorted; all zeros before version 1."""
    if server_optimizer.name == "adam":
        return ("m", "v")
    return ("momentum",) if server_optimizer.momentum > 0 else ()


def step_scalars(server_optimizer: ServerOptimizer, previous: Mapping[str, float]) -> dict[str, float]:
    """What one step needs besides tensors, for the log.

    `previous` is what the step before logged, empty for the first. Adam's beta powers are running products:
    one multiplication per step is the same bits everywhere, a power is not.
    """
    if server_optimizer.name == "sgd":
        return {"lr": server_optimizer.lr, "momentum": server_optimizer.momentum}
    return {
        "lr": server_optimizer.lr,
        "beta1": server_optimizer.beta1,
        "beta2": server_optimizer.beta2,
        "epsilon": server_optimizer.epsilon,
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

    Adam is Kingma & Ba's with bias correction, applied to the direction as FedAdam does (Reddi et al., ICLR
    2021). `scalars` are those of `step_scalars`. All arrays have one shape. Raises Misuse if the names in
    `state` are not exactly `state_names`.
    """
    if tuple(sorted(state)) != state_names(server_optimizer):
        raise Misuse(f"{server_optimizer.name} keeps {state_names(server_optimizer)}, got {tuple(state)}")
    if server_optimizer.name == "adam":
        _adam(scalars, theta, direction, state["m"], state["v"], scratch)
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
