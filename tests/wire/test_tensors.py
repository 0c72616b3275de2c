"""Tensor files: what is written can be read, by us and by safetensors; everything else is refused in time."""

import hashlib
import json
import os
import struct
import tracemalloc

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anabranch.errors import Corrupt, Misuse, Reason, Refused
from anabranch.wire import limits, tensors
from anabranch.wire.tensors import Manifest, TensorFile, TensorSpec, TensorWriter, check_header_bytes

MANIFEST = Manifest(
    (
        TensorSpec("bn.mean", (3,), "buffer"),
        TensorSpec("fc.bias", (), "trainable"),
        TensorSpec("fc.weight", (2, 3), "trainable"),
        TensorSpec("none", (0, 4), "trainable"),
    )
)
ARRAYS = {
    "bn.mean": np.array([9, 9, 9], np.float32),
    "fc.bias": np.array(2, np.float32),
    "fc.weight": np.array([[1, 1, 1], [1, 4, 0]], np.float32),
    "none": np.empty((0, 4), np.float32),
}
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


def refused(call, *args):
    with pytest.raises(Refused) as caught:
        call(*args)
    return caught.value.code


def same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].shape == right[name].shape
        assert left[name].tobytes() == right[name].tobytes()


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "good"
    tensors.write_tensors(path, MANIFEST, ARRAYS)
    return path


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
@given(st.data())
def test_any_changed_header_byte_is_refused(good, data):
    content = bytearray(good.read_bytes())
    content[data.draw(st.integers(0, len(MANIFEST.header()) - 1))] ^= data.draw(st.integers(1, 255))
    path = good.with_name("mutant")
    path.write_bytes(content)
    for call in (tensors.check_file, tensors.check_values, tensors.read_tensors):
        assert refused(call, path, MANIFEST) is not None
    _agrees_with_the_library(path)


@quick
@given(st.binary(max_size=200), st.binary(max_size=40))
def test_arbitrary_files_are_refused_or_read_as_the_library_reads_them(tmp_path, text, body):
    path = tmp_path / "file"
    for content in (text + body, struct.pack("<Q", len(text)) + text + body):
        path.write_bytes(content)
        assert refused(tensors.check_file, path, MANIFEST) is not None
        _agrees_with_the_library(path)


def _agrees_with_the_library(path):
    """What our plain reader takes, safetensors takes too, with the same names and shapes."""
    try:
        manifest = tensors.read_manifest(path)
    except Refused:
        return
    with safetensors.safe_open(path, "numpy") as file:
        assert {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()} == {  # noqa: SIM118
            spec.name: spec.shape for spec in manifest.specs
        }


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


def _file(tmp_path, header, body=bytes(40), length=None):
    text = (
        header
        if isinstance(header, bytes)
        else json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    )
    path = tmp_path / "bad"
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return path


def _entry(start, stop, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


GOOD = {
    "bn.mean": _entry(0, 12, [3]),
    "fc.bias": _entry(12, 16, []),
    "fc.weight": _entry(16, 40, [2, 3]),
    "none": _entry(40, 40, [0, 4]),
}
WEIGHT = GOOD["fc.weight"]


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ({k: v for k, v in GOOD.items() if k != "none"}, Reason.NAME_MISMATCH),
        ({**GOOD, "extra": _entry(40, 40, [0])}, Reason.NAME_MISMATCH),
        ({**GOOD, "fc.weight": _entry(16, 40, [3, 2])}, Reason.SHAPE_MISMATCH),
        ({**GOOD, "fc.weight": _entry(16, 40, [6])}, Reason.SHAPE_MISMATCH),
        ({**GOOD, "fc.weight": _entry(16, 40, [2, 3], "F64")}, Reason.DTYPE_MISMATCH),
        ({**GOOD, "fc.weight": _entry(16, 40, [2, 3], "BF16")}, Reason.DTYPE_MISMATCH),
        ({**GOOD, "fc.weight": _entry(12, 36, [2, 3])}, Reason.MALFORMED),  # overlap
        ({**GOOD, "fc.weight": _entry(20, 44, [2, 3])}, Reason.MALFORMED),  # gap
        ({**GOOD, "fc.weight": _entry(16, 36, [2, 3])}, Reason.MALFORMED),  # too small for its shape
        ({**GOOD, "fc.weight": _entry(40, 16, [2, 3])}, Reason.MALFORMED),
        ({**GOOD, "fc.weight": _entry(-24, 0, [2, 3])}, Reason.MALFORMED),
        ({**GOOD, "fc.weight": _entry(16, 2**80, [2, 3])}, Reason.MALFORMED),
        ({**GOOD, "fc.weight": _entry(16, 40.0, [2, 3])}, Reason.MALFORMED),
        ({**GOOD, "fc.weight": _entry(16, True, [2, 3])}, Reason.MALFORMED),
        ({**GOOD, "fc.weight": _entry(16, 40, [2**70, 3])}, Reason.SIZE_LIMIT),
        ({**GOOD, "fc.weight": _entry(16, 40, [-2, -3])}, Reason.MALFORMED),
        ({**GOOD, "fc.weight": _entry(16, 40, [1] * 17)}, Reason.SIZE_LIMIT),
        ({**GOOD, "fc.weight": {**WEIGHT, "x": 1}}, Reason.MALFORMED),
        ({**GOOD, "fc.weight": {**WEIGHT, "data_offsets": [16]}}, Reason.MALFORMED),
        ({**GOOD, "fc.weight": {**WEIGHT, "dtype": None}}, Reason.MALFORMED),
        ({**GOOD, "fc.weight": [16, 40]}, Reason.MALFORMED),
        ({**GOOD, "bad\nname": _entry(40, 40, [0])}, Reason.MALFORMED),
        ({**GOOD, "__metadata__": {"format": "pt"}}, Reason.MALFORMED),
        (json.dumps(GOOD).encode(), Reason.MALFORMED),  # white space
        (b'{"a":1,"a":2}', Reason.MALFORMED),
        (b'{"fc.bias":{"dtype":"F32","dtype":"F32","shape":[],"data_offsets":[0,4]}}', Reason.MALFORMED),
        (b'{"a":NaN}', Reason.MALFORMED),
        (b'{"a":' + b"9" * 5000 + b"}", Reason.MALFORMED),
        (b"{" * 1000, Reason.MALFORMED),
        (b"[" * 100_000, Reason.MALFORMED),
        (b"\xff\xfe", Reason.MALFORMED),
        (b'{"\\ud800":{}}', Reason.MALFORMED),
        (b"[]", Reason.MALFORMED),
        (b"", Reason.MALFORMED),
        (b"{}", Reason.NAME_MISMATCH),
    ],
)
def test_each_fault_has_its_code(tmp_path, header, code):
    path = _file(tmp_path, header)
    assert refused(tensors.check_file, path, MANIFEST) is code
    content = path.read_bytes()
    assert refused(check_header_bytes, content, len(content), MANIFEST) is code


def test_swapped_tensors_are_not_canonical(tmp_path):
    swapped = {
        **GOOD,
        "fc.weight": _entry(0, 24, [2, 3]),
        "bn.mean": _entry(24, 36, [3]),
        "fc.bias": _entry(36, 40, []),
    }
    path = _file(tmp_path, swapped)
    assert refused(tensors.check_file, path, MANIFEST) is Reason.MALFORMED
    assert {spec.name for spec in tensors.read_manifest(path).specs} == GOOD.keys()


@pytest.mark.parametrize("size", [0, 7, 8, 100, -1, +1])
def test_truncated_or_longer_files_are_malformed(good, size):
    total = MANIFEST.file_bytes + size if size in (-1, 1) else size
    os.truncate(good, total)
    assert refused(tensors.check_file, good, MANIFEST) is Reason.MALFORMED


def test_a_stream_is_judged_as_soon_as_its_header_is_there(good):
    content = good.read_bytes()
    header = len(MANIFEST.header())
    for size in range(len(content) + 1):
        assert check_header_bytes(content[:size], len(content), MANIFEST) is (size >= header)
    wrong = content[:20] + b"X" + content[21:]
    assert not check_header_bytes(wrong[: header - 1], len(wrong), MANIFEST)
    assert refused(check_header_bytes, wrong[:header], len(wrong), MANIFEST) is not None
    big = struct.pack("<Q", limits.HEADER + 1)
    assert refused(check_header_bytes, big, 2**40, MANIFEST) is Reason.SIZE_LIMIT
    assert refused(check_header_bytes, content[:10], len(content) + 1, MANIFEST) is Reason.MALFORMED


def _peak(call, *args):
    tracemalloc.start()
    try:
        code = refused(call, *args)
        return code, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("declared", [1_000_000_000, 73_000_000, limits.HEADER + 1, 2**63, 2**64 - 1])
def test_a_big_declared_header_takes_no_memory(tmp_path, declared):
    path = _file(tmp_path, b"{}", length=declared)
    os.truncate(path, min(declared + 8, 1_000_000_008))
    for call in (tensors.check_file, tensors.check_values):
        code, peak = _peak(call, path, MANIFEST)
        assert code is Reason.SIZE_LIMIT
        assert peak < 200_000
    assert _peak(tensors.read_manifest, path)[0] is Reason.SIZE_LIMIT


def test_many_empty_tensors_are_counted_before_they_are_parsed(tmp_path):
    entries = b",".join(b'"%d":{}' % i for i in range(90_000))
    path = _file(tmp_path, b"{" + entries + b"}")
    code, peak = _peak(tensors.check_file, path, MANIFEST)
    assert code is Reason.SIZE_LIMIT
    assert peak < 4 * limits.HEADER


@pytest.mark.parametrize("unit", [b"[],", b'"a":[],', b"0,", b'"",', b"[[[],[]]],"])
def test_the_most_wasteful_header_stays_within_64_mb(tmp_path, unit):
    inside = (unit * (limits.HEADER // len(unit)))[: limits.HEADER - 10].rpartition(b",")[0]
    path = _file(tmp_path, (b"{%b}" if b":" in unit else b"[%b]") % inside)
    code, peak = _peak(tensors.check_file, path, MANIFEST)
    assert code is Reason.MALFORMED
    assert peak < 64 * limits.MIB


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
