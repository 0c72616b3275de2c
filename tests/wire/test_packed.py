"""Packed files: what is read is the masked rounding of the source, every file has one form, and bounds come first."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anabranch.rules.packing import BLOCK, Packing
from anabranch.wire import tensors
from anabranch.wire.packed import PackedFile, check_packed, expand, most_bytes, pack
from anabranch.wire.tensors import Manifest, TensorSpec
from tests.rules.conftest import Held
from tests.rules.test_packing import VALUES, ranked, rounded

quick = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
DENSITIES = (1e-9, 0.01, 1 / 16, 0.25, 0.9, 1.0)


def masked(manifest, arrays, packing):
    """The packed view of `arrays`, made without the code under test."""
    flat = [arrays[spec.name].reshape(-1) for spec in manifest.trainable()]
    whole = np.concatenate([*flat, np.empty(0, np.float32)])
    keep = ranked(whole, math.floor(packing.density * whole.size))
    found, at = {}, 0
    for spec in manifest.specs:
        found[spec.name] = arrays[spec.name].copy()
        if spec.role == "trainable":
            view = found[spec.name].reshape(-1)
            for start in range(0, view.size, BLOCK):
                piece = view[start : start + BLOCK]
                mask = keep[at : at + piece.size]
                at += piece.size
                if mask.any():
                    piece[mask] = rounded(piece[mask], packing.values)
                piece[~mask] = 0
    return found


def read(path, manifest, values):
    with PackedFile(path, manifest, values) as file:
        found = {}
        for spec in manifest.specs:
            found[spec.name] = np.full(spec.shape, np.nan, np.float32)
            file.read(spec.name, 0, spec.elements, found[spec.name])
        return found


def same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].tobytes() == right[name].tobytes(), name


@st.composite
def files(draw):
    """Tensors of any rank, some empty, some around a block long."""
    chance = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shapes = st.one_of(
        st.lists(st.integers(0, 5), max_size=3).map(tuple),
        st.sampled_from([(BLOCK - 1,), (BLOCK,), (BLOCK + 1,), (2, BLOCK), (3, 50_000)]),
    )
    specs, arrays = [], {}
    for number in range(draw(st.integers(1, 5))):
        spec = TensorSpec(f"t{number}", draw(shapes), draw(st.sampled_from(["trainable", "buffer"])))
        array = chance.standard_normal(spec.elements).astype(np.float32)
        if draw(st.booleans()):
            array = np.rint(array)  # ties, and zeros
        specs.append(spec)
        arrays[spec.name] = array.reshape(spec.shape)
    return Manifest(tuple(specs)), arrays


packings = st.builds(Packing, st.sampled_from(DENSITIES), st.sampled_from(VALUES))


@quick
@given(files(), packings)
def test_what_is_read_is_the_masked_rounding_of_the_source(tmp_path, file, packing):
    manifest, arrays = file
    path, dense = tmp_path / "packed", tmp_path / "dense"
    digest, size = pack(Held(arrays), manifest, packing, path)
    data = path.read_bytes()
    assert (digest, size) == (hashlib.sha256(data).hexdigest(), len(data))
    assert size <= most_bytes(manifest, packing)
    expected = masked(manifest, arrays, packing)
    same(read(path, manifest, packing.values), expected)
    assert expand(path, manifest, packing.values, dense) == tensors.write_tensors(
        tmp_path / "direct", manifest, expected
    )
    norm = check_packed(path, manifest, packing)
    assert norm == pytest.approx(tensors.check_values(dense, manifest), rel=1e-12)
