"""Packed files: what is read is the masked rounding of the source, every file has one form, and bounds come first."""

import hashlib
import math
import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anabranch.errors import Misuse, Reason
from anabranch.link import Packing
from anabranch.rules.packing import BLOCK
from anabranch.wire import limits, packed, tensors
from anabranch.wire.packed import PackedFile, check_packed, expand, most_bytes, pack
from anabranch.wire.tensors import Manifest, TensorSpec
from tests.rules.conftest import Held
from tests.rules.test_packing import VALUES, ranked, rounded
from tests.wire.samples import ARRAYS, MANIFEST, refused

quick = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
DENSITIES = (1e-9, 0.01, 1 / 16, 0.25, 0.9, 1.0)


def masked(manifest, arrays, packing):
    """The packed view of `arrays`, made without the code under test."""
    flat = [arrays[spec.name].reshape(-1) for spec in manifest.trainable()]
    whole = np.concatenate([*flat, np.empty(0, np.float32)])
    keep = ranked(whole, max(math.floor(packing.density * whole.size), 1))
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


@quick
@given(files(), packings, st.data())
def test_reads_by_position(tmp_path, file, packing, data):
    manifest, arrays = file
    pack(Held(arrays), manifest, packing, tmp_path / "packed")
    expected = masked(manifest, arrays, packing)
    with PackedFile(tmp_path / "packed", manifest, packing.values) as found:
        for _ in range(6):
            spec = data.draw(st.sampled_from(manifest.specs))
            near = [n for n in (0, BLOCK - 1, BLOCK, BLOCK + 1, spec.elements) if n <= spec.elements]
            place = st.one_of(st.sampled_from(near), st.integers(0, spec.elements))
            start, stop = sorted((data.draw(place), data.draw(place)))
            out = np.full(stop - start, np.nan, np.float32)
            found.read(spec.name, start, stop, out)
            assert out.tobytes() == expected[spec.name].reshape(-1)[start:stop].tobytes()


LARGE = Manifest((TensorSpec("b", (3,), "buffer"), TensorSpec("w", (6 * BLOCK + 5,), "trainable")))


def large(seed=0):
    chance = np.random.default_rng(seed)
    return {s.name: chance.standard_normal(s.shape).astype(np.float32) for s in LARGE.specs}


@pytest.mark.parametrize(("offset", "step"), [(0, BLOCK), (100, BLOCK), (0, 1000), (BLOCK - 1, 2)])
def test_reads_in_order_decode_each_block_once(tmp_path, monkeypatch, offset, step):
    pack(Held(large()), LARGE, Packing(0.1, "bf16"), tmp_path / "packed")
    decoded = []
    decode = packed.decode

    def counted(block, values, out):
        decoded.append(bytes(block))
        decode(block, values, out)

    monkeypatch.setattr(packed, "decode", counted)
    with PackedFile(tmp_path / "packed", LARGE, "bf16") as found:
        last = min(LARGE.spec("w").elements, offset + 200 * step)
        for start in range(offset, last, step):
            stop = min(start + step, last)
            found.read("w", start, stop, np.empty(stop - start, np.float32))
    assert len(decoded) == len(set(decoded)) == -(-last // BLOCK)


def test_threads_read_at_once(tmp_path):
    packing = Packing(0.1, "int8")
    pack(Held(large()), LARGE, packing, tmp_path / "packed")
    expected, wrong = masked(LARGE, large(), packing)["w"], []

    def look(seed):
        chance = np.random.default_rng(seed)
        for start in chance.integers(0, expected.size, 60):
            stop = int(min(start + chance.integers(1, 3000), expected.size))
            out = np.empty(stop - start, np.float32)
            found.read("w", int(start), stop, out)
            if not np.array_equal(out, expected[start:stop]):
                wrong.append(start)

    with PackedFile(tmp_path / "packed", LARGE, "int8") as found:
        threads = [threading.Thread(target=look, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_a_read_that_does_not_fit_is_a_bug_of_the_caller(tmp_path):
    pack(Held(ARRAYS), MANIFEST, Packing(1, "fp32"), tmp_path / "packed")
    with PackedFile(tmp_path / "packed", MANIFEST, "fp32") as found:
        for name, start, stop, out in (
            ("fc.weight", 0, 7, np.empty(7, np.float32)),
            ("fc.weight", -1, 2, np.empty(3, np.float32)),
            ("fc.weight", 0, 2, np.empty(3, np.float32)),
            ("fc.weight", 0, 2, np.empty(2, np.float64)),
            ("fc.weight", 0, 2, np.empty(4, np.float32)[::2]),
            ("other", 0, 2, np.empty(2, np.float32)),
        ):
            with pytest.raises(Misuse):
                found.read(name, start, stop, out)


PINNED = Manifest(
    (
        TensorSpec("all", (), "trainable"),
        TensorSpec("buffer", (2,), "buffer"),
        TensorSpec("gaps", (300,), "trainable"),
        TensorSpec("map", (2, 5), "trainable"),
        TensorSpec("none", (0, 4), "trainable"),
        TensorSpec("zeros", (5,), "trainable"),
    )
)
PINNED_ARRAYS = {spec.name: np.zeros(spec.shape, np.float32) for spec in PINNED.specs}
PINNED_ARRAYS["all"][()] = 3
PINNED_ARRAYS["buffer"][:] = 1, -2
PINNED_ARRAYS["gaps"][[0, 150, 299]] = 1.5, -0.3, 0.1
PINNED_ARRAYS["map"][:, ::2] = 1 / 3
# Lengths of the blocks, then the blocks: all, the buffer, gaps, the map; of zeros nothing is written.
VECTORS = {
    "fp32": "07000000 08000000 14000000 1d000000 00000000"
    "000000 00004040 0000803f000000c0 020200 00 9501 9401 009acd 0099cc c099cc 3fbe3d"
    "010500 b502 abababababab aaaaaaaaaaaa aaaaaaaaaaaa 3e3e3e3e3e3e",
    "bf16": "05000000 08000000 0e000000 11000000 00000000"
    "000000 4040 0000803f000000c0 020200 00 9501 9401 c09acd 3fbe3d 010500 b502 abababababab 3e3e3e3e3e3e",
    "fp16": "05000000 08000000 0e000000 11000000 00000000"
    "000000 0042 0000803f000000c0 020200 00 9501 9401 00cd66 3eb42e 010500 b502 555555555555 353535353535",
    "int8": "08000000 08000000 0f000000 0f000000 00000000"
    "000000 0683c13c 7f 0000803f000000c0 020200 0683413c 00 9501 9401 7fe708"
    "010500 b0022c3b b502 7f7f7f7f7f7f",
}


@pytest.mark.parametrize("values", VALUES)
def test_the_format_is_pinned(tmp_path, values):
    """A file that changes here is another format, and wants another magic."""
    header = (
        b'anabrpk1p\0\0\0{"blocks":5,"manifest":'
        b'"9d31714ae0c3a5dca4a3a68aa06f9764125933ea7614570bbfd7d6f389980b56","values":"%s"}      '
        % values.encode()
    )
    pack(Held(PINNED_ARRAYS), PINNED, Packing(1, values), tmp_path / "packed")
    assert (tmp_path / "packed").read_bytes() == header + bytes.fromhex(VECTORS[values])
    check_packed(tmp_path / "packed", PINNED, Packing(1, values))


def test_at_most_so_many_elements(tmp_path):
    path, chance = tmp_path / "packed", np.random.default_rng(0)
    w = np.abs(chance.standard_normal(3 * BLOCK)).astype(np.float32) + 1
    manifest = Manifest((TensorSpec("w", w.shape, "trainable"),))
    pack(Held({"w": w}), manifest, Packing(0.5, "bf16"), path)
    check_packed(path, manifest, Packing(0.5, "bf16"))
    assert refused(check_packed, path, manifest, Packing(0.5 - 1 / w.size, "bf16")) is Reason.SIZE_LIMIT
    assert np.count_nonzero(read(path, manifest, "bf16")["w"]) == 3 * BLOCK // 2


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("density", DENSITIES)
def test_no_file_is_larger_than_the_bound(tmp_path, values, density):
    """Neither of evenly spread elements nor of runs."""
    size, packing = 2 * BLOCK + 4097, Packing(density, values)
    manifest = Manifest((TensorSpec("w", (size,), "trainable"),))
    k = packing.kept(sum(spec.elements for spec in manifest.trainable()))
    for step in (1, 2, 9, 129, max(1, size // max(k, 1))):
        w = np.zeros(size, np.float32)
        w[::step] = np.random.default_rng(step).random(w[::step].size, np.float32) + 1
        _, taken = pack(Held({"w": w}), manifest, packing, tmp_path / "packed")
        assert taken <= most_bytes(manifest, packing)
    assert most_bytes(manifest, packing) <= 300 + 1.13 * (k * packed_width(values) + size / 8)


def packed_width(values):
    return {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}[values]


def test_memory_is_that_of_blocks(tmp_path):
    """Of a model of 26 MB and of one four times as large the same few MiB, to pack, judge and expand."""
    peaks = []
    for blocks in (100, 400):
        manifest = Manifest((TensorSpec("w", (blocks * BLOCK,), "trainable"),))
        packing = Packing(1 / 16, "bf16")
        tracemalloc.start()
        try:
            pack(Drawn(), manifest, packing, tmp_path / "packed")
            check_packed(tmp_path / "packed", manifest, packing)
            expand(tmp_path / "packed", manifest, "bf16", tmp_path / "dense")
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < peaks[0] + limits.MIB
    assert peaks[1] < 16 * limits.MIB


class Drawn:
    """A tensor of any size without its memory."""

    def read(self, name, start, stop, out):
        out[:] = np.random.default_rng(start).standard_normal(stop - start, np.float32)
