"""Packed files that are not what `pack` writes: refused, within bounds, and the tensor named."""

import errno
import os
import struct
import tracemalloc

import numpy as np
import pytest

from anabranch.errors import Corrupt, Reason, Refused, Unavailable
from anabranch.link import Packing
from anabranch.rules.packing import BLOCK
from anabranch.wire import limits, packed
from anabranch.wire.packed import PackedFile, check_packed, expand, pack
from anabranch.wire.tensors import Manifest, TensorSpec
from tests.rules.conftest import Held
from tests.rules.test_packing import VALUES
from tests.wire.samples import ARRAYS, MANIFEST, refused
from tests.wire.test_packed import PINNED, PINNED_ARRAYS, read

HEAD = len(packed.header(PINNED, "bf16"))
BEGIN = HEAD + 4 * 5  # of the first block


@pytest.fixture
def pinned(tmp_path):
    path = tmp_path / "packed"
    pack(Held(PINNED_ARRAYS), PINNED, Packing(1, "bf16"), path)
    return path


def judged(path, data):
    """The code of what is refused; by whoever looks at the whole file."""
    path.write_bytes(data)
    dense = path.with_name("dense")
    codes = {
        refused(check_packed, path, PINNED, Packing(1, "bf16")),
        refused(expand, path, PINNED, "bf16", dense),
    }
    assert not dense.exists()
    return codes.pop() if len(codes) == 1 else codes


def relabelled(data, old, new):
    text = data[12:HEAD].rstrip().replace(old, new)
    text += b" " * (-len(text) % 8)
    return data[:8] + struct.pack("<I", len(text)) + text + data[HEAD:]


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"anabrpk2" + data[8:],
        lambda data: data[:8] + struct.pack("<I", 8) + data[12:],
        lambda data: data[:8] + struct.pack("<I", 2**32 - 1) + data[12:],
        lambda data: relabelled(data, b'"blocks":5', b'"blocks":6'),
        lambda data: relabelled(data, b'"blocks":5', b'"blocks":05'),
        lambda data: relabelled(data, b'"blocks":5', b'"blocks": 5'),
        lambda data: relabelled(data, b'"bf16"', b'"fp32"'),
        lambda data: relabelled(data, b'"bf16"', b'"bf\\u00316"'),
        lambda data: relabelled(data, PINNED.digest().encode(), MANIFEST.digest().encode()),
        lambda data: relabelled(data, PINNED.digest().encode(), PINNED.digest().upper().encode()),
        lambda data: relabelled(data, b"}", b',"x":1}'),
        lambda data: relabelled(data, b'"blocks":5,', b""),
        lambda data: data[:8] + struct.pack("<I", HEAD - 4) + data[12:HEAD] + b" " * 8 + data[HEAD:],
        lambda data: data[: HEAD - 1] + b"\0" + data[HEAD:],
    ],
)
def test_a_header_has_one_form(pinned, change):
    assert judged(pinned, change(pinned.read_bytes())) is Reason.MALFORMED


def test_a_file_belongs_to_its_manifest_and_its_values(pinned):
    assert refused(PackedFile, pinned, MANIFEST, "bf16") is Reason.MALFORMED
    assert refused(PackedFile, pinned, PINNED, "fp16") is Reason.MALFORMED


@pytest.mark.parametrize(
    ("number", "length", "reason"),
    [
        (0, 4, Reason.MALFORMED),
        (0, 6, Reason.MALFORMED),
        (0, 7, Reason.SIZE_LIMIT),
        (0, 2**32 - 1, Reason.SIZE_LIMIT),
        (4, 1, Reason.MALFORMED),
        (4, 3 + 1 + 10 + 1, Reason.SIZE_LIMIT),
    ],
)
def test_lengths_add_up_and_are_bounded(pinned, number, length, reason):
    data = bytearray(pinned.read_bytes())
    data[HEAD + 4 * number : HEAD + 4 * number + 4] = struct.pack("<I", length)
    assert judged(pinned, data) is reason


def test_lengths_that_add_up_still_belong_to_their_blocks(pinned):
    """A byte of one block given to the next; a buffer cut short or left out; nothing where a value is."""
    data = pinned.read_bytes()
    for lengths in (
        (6, 7, 14, 17, 0),
        (4, 9, 14, 17, 0),
        (5, 0, 14, 17, 8),
        (0, 8, 14, 17, 5),
        (5, 8, 14, 16, 1),
    ):
        wrong = data[:HEAD] + struct.pack("<5I", *lengths) + data[BEGIN:]
        assert judged(pinned, wrong) in (Reason.MALFORMED, Reason.SIZE_LIMIT)


def test_no_file_cut_short_or_extended_is_taken(pinned):
    data = pinned.read_bytes()
    for wrong in (*(data[:size] for size in range(len(data))), data + b"\0", data + data):
        assert judged(pinned, wrong) is Reason.MALFORMED


def test_no_byte_can_be_changed_unseen(pinned):
    """Whatever is still taken has other values: no byte is without meaning."""
    data, view = pinned.read_bytes(), read(pinned, PINNED, "bf16")
    for at in range(len(data)):
        for bit in (1, 128):
            pinned.write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
            try:
                check_packed(pinned, PINNED, Packing(1, "bf16"))
            except Refused:
                continue
            found = read(pinned, PINNED, "bf16")
            assert any(found[name].tobytes() != view[name].tobytes() for name in view), at


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("name", ["gaps", "buffer"])
def test_what_is_not_finite_is_not_packed_and_names_its_tensor(tmp_path, name, values, bad):
    arrays = {key: array.copy() for key, array in PINNED_ARRAYS.items()}
    arrays[name][1] = bad
    path = tmp_path / "packed"
    with pytest.raises(Refused, match=repr(name)) as caught:
        pack(Held(arrays), PINNED, Packing(0.1, values), path)
    assert caught.value.code is Reason.NONFINITE
    assert not path.exists()


@pytest.mark.parametrize(("at", "name"), [(BEGIN + 3, "all"), (BEGIN + 5, "buffer")])
def test_what_is_not_finite_is_refused_and_names_its_tensor(pinned, at, name):
    data = bytearray(pinned.read_bytes())
    data[at : at + 4] = b"\x80\x7f" + data[at + 2 : at + 4] if name == "all" else b"\0\0\x80\x7f"
    pinned.write_bytes(data)
    with pytest.raises(Refused, match=repr(name)) as caught:
        check_packed(pinned, PINNED, Packing(1, "bf16"))
    assert caught.value.code is Reason.NONFINITE


def test_a_link_and_a_pipe_are_refused(pinned, tmp_path):
    (tmp_path / "link").symlink_to(pinned)
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        assert refused(PackedFile, tmp_path / name, PINNED, "bf16") is Reason.MALFORMED


def test_a_file_cut_short_while_open_is_corrupt(pinned):
    with PackedFile(pinned, PINNED, "bf16") as found:
        os.truncate(pinned, BEGIN + 10)
        with pytest.raises(Corrupt):
            found.read("map", 0, 10, np.empty(10, np.float32))


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for call in ("pwrite", "fdatasync"):
        with monkeypatch.context() as patched:
            patched.setattr(os, call, full)
            with pytest.raises(Unavailable, match="make room"):
                pack(Held(ARRAYS), MANIFEST, Packing(1, "fp32"), tmp_path / "packed")
        assert not (tmp_path / "packed").exists()


def test_a_hostile_table_takes_no_memory(tmp_path):
    """Lengths of 4 GiB each, in a sparse file as long as they say."""
    size = 200 * BLOCK
    manifest = Manifest((TensorSpec("w", (size,), "trainable"),))
    path = tmp_path / "packed"
    header = packed.header(manifest, "fp32")
    path.write_bytes(header + b"\xff" * 4 * 200)
    os.truncate(path, len(header) + 800 + 200 * (2**32 - 1))
    tracemalloc.start()
    try:
        assert refused(PackedFile, path, manifest, "fp32") is Reason.SIZE_LIMIT
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limits.MIB
