"""The gate: whatever is not the one canonical header is refused, with its code, before memory is taken."""

import json
import os
import struct
import tracemalloc

import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anabranch.errors import Reason, Refused
from anabranch.wire import limits, tensors
from anabranch.wire.tensors import check_header_bytes
from tests.wire.samples import MANIFEST, refused

quick = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


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
        (b"[" * 100_000, Reason.SIZE_LIMIT),
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
    assert code is (Reason.SIZE_LIMIT if b"[" in unit else Reason.MALFORMED)
    assert peak < 64 * limits.MIB
