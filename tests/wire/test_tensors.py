"""Tensor files: what is written can be read, by us and by safetensors; everything else is refused."""

import errno
import hashlib
import os
import tracemalloc

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anabranch.errors import Corrupt, Misuse, Reason, Refused, Unavailable
from anabranch.wire import limits, tensors
from anabranch.wire.tensors import Manifest, TensorFile, TensorSpec, TensorWriter
from tests.wire.samples import ARRAYS, MANIFEST, refused

quick = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
floats = st.floats(width=32, allow_nan=True, allow_infinity=True)
names = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1, max_size=12)


@st.composite
def files(draw):
    found = draw(st.dictionaries(names, st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=6))
    specs = tuple(
        TensorSpec(name, tuple(shape), draw(st.sampled_from(["trainable", "buffer"])))
        for name, shape in found.items()
    )
    arrays = {}
    for spec in specs:
        values = draw(st.lists(floats, min_size=spec.elements, max_size=spec.elements))
        arrays[spec.name] = np.array(values, np.float32).reshape(spec.shape)
    return Manifest(specs), arrays


def same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].shape == right[name].shape
        assert left[name].tobytes() == right[name].tobytes()


@quick
@given(files())
def test_write_then_read(tmp_path, file):
    manifest, arrays = file
    path = tmp_path / "file"
    digest = tensors.write_tensors(path, manifest, arrays)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    assert tensors.check_file(path, manifest).bytes == path.stat().st_size == manifest.file_bytes
    same(tensors.read_tensors(path, manifest), arrays)
    same(safetensors.numpy.load_file(path), arrays)
    roles = {spec.name: spec.role for spec in manifest.specs}
    assert tensors.read_manifest(path, roles) == manifest


@quick
@given(files())
def test_files_of_the_library_become_canonical(tmp_path, file):
    manifest, arrays = file
    source, target, direct = tmp_path / "source", tmp_path / "target", tmp_path / "direct"
    safetensors.numpy.save_file(arrays, source, metadata={"format": "pt"})
    roles = {spec.name: spec.role for spec in manifest.specs}
    found, digest = tensors.canonicalise(source, target, roles)
    assert found == manifest
    assert digest == tensors.write_tensors(direct, manifest, arrays)
    assert target.read_bytes() == direct.read_bytes()
    assert refused(tensors.check_file, source, manifest) is Reason.MALFORMED


@quick
@given(files(), st.data())
def test_reads_by_position_and_writes_in_any_pieces(tmp_path, file, data):
    manifest, arrays = file
    flat = np.concatenate([arrays[spec.name].reshape(-1) for spec in manifest.specs])
    path = tmp_path / "file"
    with TensorWriter(path, manifest) as writer:
        position = 0
        while position < flat.size:
            step = data.draw(st.integers(1, flat.size - position))
            writer.write(flat[position : position + step])
            position += step
        digest = writer.close()
    assert digest == tensors.write_tensors(tmp_path / "direct", manifest, arrays)
    with TensorFile(path, manifest) as found:
        for spec in manifest.specs:
            start = data.draw(st.integers(0, spec.elements))
            stop = data.draw(st.integers(start, spec.elements))
            out = np.empty(stop - start, np.float32)
            found.read(spec.name, start, stop, out)
            assert out.tobytes() == arrays[spec.name].reshape(-1)[start:stop].tobytes()


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["fc.weight", "bn.mean"])
def test_a_value_that_is_not_finite_names_its_tensor(tmp_path, name, value):
    arrays = {key: array.copy() for key, array in ARRAYS.items()}
    arrays[name].reshape(-1)[2] = value
    path = tmp_path / "file"
    tensors.write_tensors(path, MANIFEST, arrays)
    with pytest.raises(Refused, match=f"{name}.*element 2 ") as caught:
        tensors.check_values(path, MANIFEST)
    assert caught.value.code is Reason.NONFINITE


def test_the_norm_is_over_trainable_tensors_in_float64(good, tmp_path):
    assert tensors.check_values(good, MANIFEST) == np.sqrt(4.0 + 4.0 + 16.0)
    huge = Manifest((TensorSpec("w", (5,), "trainable"),))
    top = float(np.finfo(np.float32).max)
    tensors.write_tensors(tmp_path / "huge", huge, {"w": np.full(5, top, np.float32)})
    assert tensors.check_values(tmp_path / "huge", huge) == pytest.approx(top * 5**0.5, rel=1e-15)


def test_values_are_streamed(tmp_path):
    """Twenty times the buffer, at most a few buffers of memory; a fault behind the first chunk keeps its
    index.
    """
    manifest = Manifest((TensorSpec("w", (5_300_000,), "trainable"),))
    values = np.ones(5_300_000, np.float32)
    path = tmp_path / "file"
    tensors.write_tensors(path, manifest, {"w": values})
    tracemalloc.start()
    assert tensors.check_values(path, manifest) == np.sqrt(5_300_000.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * limits.CHUNK
    values[4_000_001] = np.nan
    tensors.write_tensors(path, manifest, {"w": values})
    with pytest.raises(Refused, match="element 4000001 "):
        tensors.check_values(path, manifest)


def test_arrays_must_be_those_of_the_manifest(tmp_path):
    path = tmp_path / "file"
    for change, code in (
        ({"fc.bias": np.float64(2)}, Reason.DTYPE_MISMATCH),
        ({"fc.bias": np.array(2, ">f4")}, Reason.DTYPE_MISMATCH),
        ({"fc.bias": np.ones(1, np.float32)}, Reason.SHAPE_MISMATCH),
        ({"more": np.ones(1, np.float32)}, Reason.NAME_MISMATCH),
    ):
        assert refused(tensors.write_tensors, path, MANIFEST, {**ARRAYS, **change}) is code
        assert not path.exists()


def test_strided_arrays_are_written_in_c_order(tmp_path):
    arrays = {**ARRAYS, "fc.weight": np.asfortranarray(ARRAYS["fc.weight"])}
    assert tensors.write_tensors(tmp_path / "a", MANIFEST, arrays) == tensors.write_tensors(
        tmp_path / "b", MANIFEST, ARRAYS
    )


def test_roles_must_cover_the_file(good):
    assert refused(tensors.read_manifest, good, {"fc.bias": "trainable"}) is Reason.NAME_MISMATCH


def test_only_f32_is_taken_from_plain_files(tmp_path):
    safetensors.numpy.save_file({"w": np.ones(2, np.float16)}, tmp_path / "half")
    assert refused(tensors.read_manifest, tmp_path / "half") is Reason.DTYPE_MISMATCH
    assert refused(tensors.canonicalise, tmp_path / "half", tmp_path / "out") is Reason.DTYPE_MISMATCH
    assert not (tmp_path / "out").exists()


def test_an_unfinished_file_is_removed(tmp_path):
    path = tmp_path / "file"
    with TensorWriter(path, MANIFEST) as writer:
        writer.write(np.ones(9, np.float32))
        with pytest.raises(Misuse, match="missing"):
            writer.close()
        with pytest.raises(Misuse, match="need only"):
            writer.write(np.ones(2, np.float32))
        for wrong in (np.ones(4, np.float64), np.ones((2, 4), np.float32)[:, ::2]):
            with pytest.raises(Misuse):
                writer.write(wrong)
    assert not path.exists()


def test_a_full_disk_leaves_nothing_and_asks_to_retry(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for call in ("write", "fdatasync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            with pytest.raises(Unavailable):
                tensors.write_tensors(tmp_path / "file", MANIFEST, ARRAYS)
        assert not (tmp_path / "file").exists()


def test_reads_outside_a_tensor_are_our_bug(good):
    with TensorFile(good, MANIFEST) as file:
        for name, start, stop, out in (
            ("fc.weight", 0, 7, np.empty(7, np.float32)),
            ("fc.weight", -1, 1, np.empty(2, np.float32)),
            ("fc.weight", 0, 2, np.empty(3, np.float32)),
            ("fc.weight", 0, 2, np.empty(2, np.float64)),
            ("fc.weight", 0, 2, np.empty(4, np.float32)[::2]),
            ("unknown", 0, 0, np.empty(0, np.float32)),
        ):
            with pytest.raises(Misuse):
                file.read(name, start, stop, out)


def test_a_file_cut_short_while_open_is_an_error_not_a_signal(good):
    with TensorFile(good, MANIFEST) as file:
        os.truncate(good, MANIFEST.offset("fc.weight") + 4)
        with pytest.raises(Corrupt):
            file.read("fc.weight", 0, 6, np.empty(6, np.float32))


def test_neither_links_nor_pipes_are_opened(good, tmp_path):
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(good)
    os.mkfifo(pipe)
    assert refused(tensors.check_file, link, MANIFEST) is Reason.MALFORMED
    assert refused(tensors.check_file, pipe, MANIFEST) is Reason.MALFORMED
    assert refused(tensors.check_file, tmp_path, MANIFEST) is Reason.MALFORMED
    assert len(tensors.read_manifest(link).specs) == 4  # a person's own file may be one
    with pytest.raises(OSError, match="symbolic"):
        TensorWriter(link, MANIFEST)
