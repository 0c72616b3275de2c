import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.errors import Misuse, Reason, Refused
from anabranch.wire import canonical, limits
from anabranch.wire.tensors import Manifest, TensorSpec, parse_manifest

names = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Cf", "Co", "Cn", "Zl", "Zp", "Zs"]),
    min_size=1,
    max_size=20,
)
specs = st.builds(
    TensorSpec,
    names,
    st.lists(st.integers(0, 5), max_size=4).map(tuple),
    st.sampled_from(["trainable", "buffer"]),
)
manifests = st.lists(specs, min_size=1, max_size=8, unique_by=lambda spec: spec.name).map(
    lambda found: Manifest(tuple(found))
)


def refused(call, *args):
    with pytest.raises(Refused) as caught:
        call(*args)
    return caught.value.code


@given(manifests)
def test_round_trip(manifest):
    again = parse_manifest(manifest.encode())
    assert again == manifest
    assert again.digest() == canonical.sha256(manifest.encode())


@given(manifests)
def test_layout_is_gapless_in_bytewise_name_order(manifest):
    header = manifest.header()
    assert len(header) % 8 == 0
    assert int.from_bytes(header[:8], "little") == len(header) - 8
    entries = json.loads(header[8:])
    assert list(entries) == sorted(entries, key=str.encode) == [spec.name for spec in manifest.specs]
    position = len(header)
    for spec in manifest.specs:
        assert manifest.offset(spec.name) == position
        position += spec.bytes
        assert entries[spec.name]["data_offsets"] == [
            manifest.offset(spec.name) - len(header),
            position - len(header),
        ]
    assert manifest.file_bytes == position


def test_the_bytes_of_a_small_example():
    manifest = Manifest((TensorSpec("b", (2,), "buffer"), TensorSpec("a.w", (1, 3), "trainable")))
    text = (
        b'{"a.w":{"data_offsets":[0,12],"dtype":"F32","shape":[1,3]},'
        b'"b":{"data_offsets":[12,20],"dtype":"F32","shape":[2]}}'
    )
    padded = text + b" " * (-len(text) % 8)
    assert manifest.header() == len(padded).to_bytes(8, "little") + padded
    assert manifest.encode() == (
        b'[{"name":"a.w","role":"trainable","shape":[1,3]},{"name":"b","role":"buffer","shape":[2]}]'
    )
    assert manifest.trainable() == (TensorSpec("a.w", (1, 3), "trainable"),)


@pytest.mark.parametrize(
    "name", ["", "__metadata__", "a\nb", "\x1b[2J", "\u202e", "a b\u2028", "x" * 513, "ä" * 257]
)
def test_names_that_could_fool_a_reader_are_refused(name):
    assert refused(Manifest, (TensorSpec(name, (1,), "trainable"),)) is Reason.MALFORMED


@pytest.mark.parametrize(
    ("shape", "code"),
    [
        ((-1,), Reason.MALFORMED),
        ((True,), Reason.MALFORMED),
        ((1.0,), Reason.MALFORMED),
        (("1",), Reason.MALFORMED),
        ((1,) * 17, Reason.SIZE_LIMIT),
        ((2**62,), Reason.SIZE_LIMIT),
        ((2**30, 2**30), Reason.SIZE_LIMIT),
    ],
)
def test_shapes_are_bounded(shape, code):
    assert refused(Manifest, (TensorSpec("w", shape, "trainable"),)) is code


def test_counts_and_sizes_are_bounded():
    one = TensorSpec("w", (1,), "trainable")
    assert refused(Manifest, ()) is Reason.SIZE_LIMIT
    assert refused(Manifest, (one, one)) is Reason.MALFORMED
    assert refused(Manifest, (one,) * (limits.TENSORS + 1)) is Reason.SIZE_LIMIT
    long = tuple(TensorSpec(f"{i:0500}", (1,), "trainable") for i in range(2000))
    assert refused(Manifest, long) is Reason.SIZE_LIMIT
    fits = tuple(TensorSpec(f"{i:0500}", (1,), "trainable") for i in range(1800))
    assert refused(Manifest(fits).encode) is Reason.SIZE_LIMIT
    with pytest.raises(Misuse):
        Manifest((one,)).offset("v")


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        ["w"],
        [{"name": "w", "role": "trainable"}],
        [{"name": "w", "role": "frozen", "shape": []}],
        [{"name": 1, "role": "buffer", "shape": []}],
        [{"name": "w", "role": "buffer", "shape": "1"}],
        [{"name": "w", "role": "buffer", "shape": [], "dtype": "F32"}],
        [{"name": "w", "role": "buffer", "shape": []}, {"name": "v", "role": "buffer", "shape": []}],
    ],
)
def test_other_documents_are_refused(value):
    assert refused(parse_manifest, canonical.encode(value)) in (Reason.MALFORMED, Reason.SIZE_LIMIT)


def test_size_is_judged_first():
    assert refused(parse_manifest, b"[" * (limits.MANIFEST + 1)) is Reason.SIZE_LIMIT
    assert refused(parse_manifest, b"[" * 100_000) is Reason.MALFORMED
