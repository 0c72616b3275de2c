"""Packed files whose tensors were ranked in chunks, or travel in two bits: whole files, and those that are refused."""

import hashlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.errors import Reason, Refused
from anabranch.link import Packing
from anabranch.rules.packing import BLOCK
from anabranch.wire import limits
from anabranch.wire.packed import PackedFile, check_packed, expand, most_bytes, pack
from anabranch.wire.tensors import Manifest, TensorFile, TensorSpec, check_values
from tests.rules.conftest import Held
from tests.rules.test_chunks import in_chunks
from tests.wire.samples import refused
from tests.wire.test_packed import PINNED, PINNED_ARRAYS, Drawn, files, quick, read, same

TWO_BITS = Packing(1, "int2")
chunked = st.builds(
    Packing,
    st.sampled_from((1e-9, 1 / 64, 0.3, 0.9)),
    st.sampled_from(("fp32", "bf16", "int8", "int2")),
    st.sampled_from((512, 4096, BLOCK)),
)


@quick
@given(files(), chunked)
def test_of_every_chunk_of_every_tensor_the_largest_are_read(tmp_path, file, packing):
    manifest, arrays = file
    path = tmp_path / "packed"
    digest, size = pack(Held(arrays), manifest, packing, path)
    assert (digest, size) == (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
    assert size <= most_bytes(manifest, packing)
    found = read(path, manifest, packing.values)
    for spec in manifest.specs:
        flat, got = arrays[spec.name].reshape(-1), found[spec.name].reshape(-1)
        if spec.role == "buffer":
            assert got.tobytes() == flat.tobytes()
            continue
        keep = in_chunks(flat, packing.chunk, packing.density)
        assert not got[~keep].any()
        if packing.values == "fp32":
            assert got[keep].tobytes() == flat[keep].tobytes()
        if packing.values == "int2":
            assert np.array_equal(np.sign(got[keep]), np.sign(flat[keep]))
    norm = check_packed(path, manifest, packing)
    expand(path, manifest, packing.values, tmp_path / "dense")
    assert norm == pytest.approx(check_values(tmp_path / "dense", manifest), rel=1e-12)


@quick
@given(files())
def test_two_bits_packed_again_are_the_same_file(tmp_path, file):
    manifest, arrays = file
    path, again = tmp_path / "packed", tmp_path / "again"
    digest, _ = pack(Held(arrays), manifest, TWO_BITS, path)
    expand(path, manifest, "int2", tmp_path / "dense")
    with TensorFile(tmp_path / "dense", manifest) as dense:
        assert pack(dense, manifest, TWO_BITS, again)[0] == digest


def test_one_entry_too_many_in_one_chunk(tmp_path):
    """Within what all chunks together may keep, and so within the size that was admitted."""
    path, packing = tmp_path / "packed", Packing(1 / 4, "bf16", 8)
    w = np.zeros(BLOCK + 16, np.float32)
    w[-8:-5] = 1  # three of a chunk that may keep two; of the others nothing
    manifest = Manifest((TensorSpec("w", w.shape, "trainable"),))
    _, size = pack(Held({"w": w}), manifest, Packing(1, "bf16"), path)
    assert size < most_bytes(manifest, packing)
    with pytest.raises(Refused, match="tensor 'w': a chunk keeps more") as caught:
        check_packed(path, manifest, packing)
    assert caught.value.code is Reason.SIZE_LIMIT
    check_packed(path, manifest, Packing(1 / 4, "bf16", 16))


@pytest.mark.parametrize("chunk", [4, 4096])
@pytest.mark.parametrize("density", [1e-9, 1 / 64, 0.5, 0.9])
def test_no_file_is_larger_than_the_bound(tmp_path, chunk, density):
    shapes = (2 * BLOCK + 4097, 3, 1, 0, 4096, 5000)
    manifest = Manifest(tuple(TensorSpec(f"t{n}", (size,), "trainable") for n, size in enumerate(shapes)))
    chance = np.random.default_rng(0)
    arrays = {s.name: chance.standard_normal(s.elements, np.float32) for s in manifest.specs}
    for packing in (
        Packing(density, "int2", chunk),
        Packing(density, "int2"),
        Packing(density, "bf16", chunk),
    ):
        _, size = pack(Held(arrays), manifest, packing, tmp_path / "packed")
        assert size <= most_bytes(manifest, packing)
        check_packed(tmp_path / "packed", manifest, packing)


# Lengths of the blocks, then the blocks: all, the buffer, gaps, the map; of zeros nothing is written.
VECTOR = (
    "0c000000 08000000 11000000 0f000000 00000000"
    "000000 00004040 00004040 00"
    "0000803f000000c0"
    "020200 cdcc4c3e 0000c03f 00 9501 9401 09"
    "010500 abaaaa3e abaaaa3e b502 0000"
)


def test_the_format_is_pinned(tmp_path):
    """A file that changes here is another format, and wants another magic."""
    header = (
        b'anabrpk1p\0\0\0{"blocks":5,"manifest":'
        b'"9d31714ae0c3a5dca4a3a68aa06f9764125933ea7614570bbfd7d6f389980b56","values":"int2"}      '
    )
    pack(Held(PINNED_ARRAYS), PINNED, TWO_BITS, tmp_path / "packed")
    assert (tmp_path / "packed").read_bytes() == header + bytes.fromhex(VECTOR)
    check_packed(tmp_path / "packed", PINNED, TWO_BITS)


def test_no_byte_can_be_changed_unseen(tmp_path):
    """Whatever is still taken has other values: no byte is without meaning."""
    path = tmp_path / "packed"
    pack(Held(PINNED_ARRAYS), PINNED, TWO_BITS, path)
    data, view = path.read_bytes(), read(path, PINNED, "int2")
    for at in range(len(data)):
        for bit in (1, 2, 128):
            path.write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
            try:
                check_packed(path, PINNED, TWO_BITS)
            except Refused:
                continue
            found = read(path, PINNED, "int2")
            assert any(found[name].tobytes() != view[name].tobytes() for name in view), at


def test_two_bits_are_not_read_as_eight(tmp_path):
    pack(Held(PINNED_ARRAYS), PINNED, TWO_BITS, tmp_path / "packed")
    assert refused(PackedFile, tmp_path / "packed", PINNED, "int8") is Reason.MALFORMED


def test_reads_by_position_are_of_the_whole(tmp_path):
    chance = np.random.default_rng(0)
    manifest = Manifest((TensorSpec("w", (2 * BLOCK + 5,), "trainable"),))
    w = chance.standard_normal(2 * BLOCK + 5, np.float32)
    pack(Held({"w": w}), manifest, Packing(1 / 64, "int2", 4096), tmp_path / "packed")
    whole = read(tmp_path / "packed", manifest, "int2")["w"]
    with PackedFile(tmp_path / "packed", manifest, "int2") as found:
        for start, stop in ((0, 7), (BLOCK - 3, BLOCK + 3), (100, 2 * BLOCK + 5)):
            out = np.empty(stop - start, np.float32)
            found.read("w", start, stop, out)
            same({"w": out}, {"w": whole[start:stop]})


def test_memory_is_that_of_blocks(tmp_path):
    """Of a model of 26 MB and of one four times as large the same few MiB, to pack, judge and expand."""
    peaks = []
    for blocks in (100, 400):
        manifest = Manifest((TensorSpec("w", (blocks * BLOCK,), "trainable"),))
        packing = Packing(1 / 64, "int2", 4096)
        tracemalloc.start()
        try:
            pack(Drawn(), manifest, packing, tmp_path / "packed")
            check_packed(tmp_path / "packed", manifest, packing)
            expand(tmp_path / "packed", manifest, "int2", tmp_path / "dense")
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < peaks[0] + limits.MIB
    assert peaks[1] < 16 * limits.MIB
