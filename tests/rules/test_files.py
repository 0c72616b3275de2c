"""The step on real tensor files: what it writes is a canonical file, whose digest follows from the inputs."""

import numpy as np
import pytest

from anabranch.rules import step
from anabranch.rules.buffer import Buffer, Delta, Snapshot
from anabranch.terms import Aggregation, ServerOptimizer
from anabranch.wire.tensors import (
    Manifest,
    TensorFile,
    TensorSpec,
    TensorWriter,
    check_file,
    read_tensors,
    write_tensors,
)

MANIFEST = Manifest(
    (
        TensorSpec("layer.weight", (64, 33), "trainable"),
        TensorSpec("layer.bias", (64,), "trainable"),
        TensorSpec("norm.running_mean", (64,), "buffer"),
        TensorSpec("scale", (), "trainable"),
    )
)


def arrays(seed):
    rng = np.random.default_rng(seed)
    return {spec.name: rng.standard_normal(spec.shape).astype(np.float32) for spec in MANIFEST.specs}


@pytest.mark.parametrize("rule", [ServerOptimizer(momentum=0.9), ServerOptimizer(name="adam", lr=0.1)])
def test_files_in_and_files_out(tmp_path, terms, run, inputs, rule):
    job = terms(Aggregation(server_optimizer=rule))
    base, updates = arrays(0), [arrays(1), arrays(2)]
    for name, content in [("base", base), ("0", updates[0]), ("1", updates[1])]:
        write_tensors(tmp_path / name, MANIFEST, content)
    state = step.optimizer_manifest(MANIFEST, rule)
    assert state is not None

    some = inputs([0, 3])
    buffer = Buffer(100, some)
    scalars = step.measure(job, buffer, {})
    with (
        TensorFile(tmp_path / "base", MANIFEST) as head,
        TensorFile(tmp_path / "0", MANIFEST) as first,
        TensorFile(tmp_path / "1", MANIFEST) as second,
        TensorWriter(tmp_path / "new", MANIFEST) as new,
        TensorWriter(tmp_path / "state", state) as kept,
        TensorWriter(tmp_path / "ema", MANIFEST) as ema,
    ):
        step.aggregate(
            job,
            MANIFEST,
            step.plan(job, buffer, scalars),
            {Snapshot(100): head, Delta("u0"): first, Delta("u1"): second},
            None,
            None,
            scalars,
            step.Outputs(new, kept, ema),
            chunk=1000,
        )
        digest = new.close()
        kept.close()
        ema.close()

    roles = {spec.name: spec.role for spec in MANIFEST.specs}
    expected = run(job, base, list(zip(some, updates, strict=True)), roles=roles)
    assert digest == write_tensors(tmp_path / "again", MANIFEST, read_tensors(tmp_path / "new", MANIFEST))
    assert check_file(tmp_path / "state", state).bytes == state.file_bytes
    for path, layout, found in [
        ("new", MANIFEST, expected.parameters),
        ("state", state, expected.optimizer),
        ("ema", MANIFEST, expected.ema),
    ]:
        for name, array in read_tensors(tmp_path / path, layout).items():
            assert array.tobytes() == found[name].tobytes()
