"""Prints the golden digests of the numeric profile as JSON: `python tests/rules/golden.py`.

Run as a program, because which vector instructions numpy uses is decided when it is imported.
"""

import hashlib
import json

import numpy as np

from anabranch.rules import step
from anabranch.rules.buffer import Buffer, Delta, Input, Snapshot
from anabranch.terms import Aggregation, Hinge, Job, JobFile, JobTerms, ServerOptimizer, Silos
from anabranch.wire.manifest import Manifest, TensorSpec

# Odd sizes, so that the tails of vector loops are used, and one tensor larger than a chunk.
SPECS = (
    TensorSpec("bn.var", (37,), "buffer"),
    TensorSpec("embed", (3, 22_003), "trainable"),
    TensorSpec("scale", (), "trainable"),
    TensorSpec("weight", (61, 67), "trainable"),
)

CASES = {
    "fedavg-examples-sgd": (
        Aggregation(strategy="fedavg", ema=0.9),
        "examples",
    ),
    "fedbuff-root-count-momentum": (
        Aggregation(
            staleness_exponent=0.5, normalise="count", server_optimizer=ServerOptimizer(lr=0.7, momentum=0.9)
        ),
        "equal",
    ),
    "fedbuff-inverse-weights-adam": (
        Aggregation(staleness_exponent=1.0, server_optimizer=ServerOptimizer(name="adam", lr=0.01), ema=None),
        "examples",
    ),
    "fedasync-root-sgd": (Aggregation(strategy="fedasync", staleness_exponent=0.5), "equal"),
    "fedasync-hinge-momentum": (
        Aggregation(
            strategy="fedasync",
            hinge=Hinge(slope=3.0),
            server_optimizer=ServerOptimizer(momentum=0.9),
            ema=None,
        ),
        "equal",
    ),
    "afl-dw-yogi": (
        Aggregation(
            strategy="afl-dw",
            s_max=7.0,  # the cosine of a right angle is the same number everywhere
            server_optimizer=ServerOptimizer(name="yogi", lr=0.02, delay_threshold=3),
            ema=None,
        ),
        "equal",
    ),
    "ca2fl-adamw": (
        Aggregation(
            strategy="ca2fl",
            server_optimizer=ServerOptimizer(name="adamw", lr=0.4, weight_decay=0.01, delay_threshold=3),
        ),
        "equal",
    ),
    "fedcompass-root-sgd": (
        Aggregation(strategy="fedcompass", local_steps_min=4, staleness_exponent=0.5),
        "equal",
    ),
    "fedfix-sgd": (Aggregation(strategy="fedfix", interval="10m", min_arrival=0.4), "equal"),
}


PARTICIPANTS = tuple(f"silo-{i}" for i in range(5))
CACHED = {"silo-1": "old-1", "silo-3": "old-3"}
FILES = {  # what `Made` makes of each
    Snapshot(9): 0,
    **{Delta(f"u{i}"): i + 1 for i in range(3)},
    Snapshot(2): 4,
    Snapshot(7): 7,
    Delta("old-1"): 5,
    Delta("old-3"): 6,
}


class Made:
    """Tensors from an integer congruence, not a random generator: both signs, subnormal to 2^18."""

    def __init__(self, seed: int) -> None:
        self._tensors = {}
        for position, spec in enumerate(SPECS):
            state = np.arange(spec.elements, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(
                seed * 7919 + position * 104729
            )
            state = (state * np.uint64(6364136223846793005)) >> np.uint64(40)
            mantissa = (state & np.uint64(0xFFFF)).astype(np.int64).astype(np.float32) - np.float32(32768)
            exponent = ((state >> np.uint64(16)) & np.uint64(7)).astype(np.int32) * 5 - 32
            exponent[::97] = -150
            self._tensors[spec.name] = np.ldexp(mantissa, exponent).astype(np.float32)

    def read(self, name: str, start: int, stop: int, out: np.ndarray) -> None:
        np.copyto(out, self._tensors[name][start:stop])


class Hashed:
    def __init__(self) -> None:
        self.hash = hashlib.sha256()

    def write(self, chunk: np.ndarray) -> None:
        self.hash.update(chunk.astype("<f4", copy=False).tobytes())


class Constant:
    def read(self, name: str, start: int, stop: int, out: np.ndarray) -> None:
        out.fill(0.25)


def digests(aggregation: Aggregation, weighting: str) -> dict[str, object]:
    file = JobFile(
        job=Job(name="golden", task="task.py:Golden"),
        silos=Silos(weighting=weighting),
        aggregation=aggregation,
    )
    terms = JobTerms(file=file, archive_sha256="a" * 64, initial_sha256="b" * 64, manifest_sha256="c" * 64)
    inputs = [
        Input(f"u{i}", f"silo-{i}", 9 - late, late, examples, i, arrived=3 + i, windows=8)
        for i, (late, examples) in enumerate([(0, 100), (7, 31), (2, 977)])
    ]
    manifest = Manifest(SPECS)
    state = step.optimizer_manifest(manifest, aggregation.server_optimizer)
    outputs = step.Outputs(
        Hashed(), None if state is None else Hashed(), None if aggregation.ema is None else Hashed()
    )
    taken = inputs[1:2] if aggregation.buffer == 1 else inputs
    buffer = Buffer(9, taken, PARTICIPANTS, CACHED)
    scalars = step.measure(terms, buffer, {"beta1_power": 0.81, "beta2_power": 0.9801})
    plan = step.plan(terms, buffer, scalars)
    step.aggregate(
        terms,
        manifest,
        plan,
        {source: Made(FILES[source]) for source in plan.sources},
        None if state is None else Constant(),
        Made(9),
        scalars,
        outputs,
    )
    return {
        "coefficients": [term.coefficient.hex() for term in plan.direction],
        "parameters": outputs.parameters.hash.hexdigest(),
        "optimizer": outputs.optimizer and outputs.optimizer.hash.hexdigest(),
        "ema": outputs.ema and outputs.ema.hash.hexdigest(),
    }


if __name__ == "__main__":
    print(json.dumps({name: digests(*case) for name, case in CASES.items()}, indent=4))
