"""What arrives of a version or an update that travels packed, and how much of it crosses the wire."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from anabranch.link import Packing
from anabranch.rules.feedback import Candidate, layout, leave_out
from anabranch.rules.step import TensorReader
from anabranch.wire import codec
from anabranch.wire.manifest import Manifest
from anabranch.wire.packed import PackedFile, pack
from anabranch.wire.squeeze import squeeze
from simulator.flat import Flat, FlatSink, read


@dataclass(frozen=True)
class Travelled:
    values: Flat  # as the other end has them
    data: bytes  # the file
    bytes: int  # that crossed the wire, without the protocol's own
    remainder: Flat | None = None  # what the sender keeps of the rest, once this has been accepted


def travelled(whole: Flat, packing: Packing | None) -> Travelled:
    """By the code that server and agents run. Raises Refused(NONFINITE)."""
    if packing is None:
        return Travelled(whole, b"", whole.manifest.file_bytes)
    return _packed(whole, whole.manifest, packing)


def update_travelled(
    delta: Flat, packing: Packing | None, feedback: float | None, remainder: Flat | None
) -> Travelled:
    """As `travelled`, of an update; `remainder`: what the silo's accepted ones left out. Raises Refused(NONFINITE)."""
    if packing is None or feedback is None:
        return travelled(delta, packing)
    candidate = Candidate(delta, remainder, feedback, delta.manifest)
    sent, left = _packed(candidate, delta.manifest, packing), FlatSink(layout(delta.manifest))
    leave_out(candidate, sent.values, delta.manifest, left)
    return replace(sent, remainder=left.close())


def _packed(whole: TensorReader, manifest: Manifest, packing: Packing) -> Travelled:
    with tempfile.TemporaryDirectory(prefix="anabranch-link-") as folder:
        path = Path(folder) / "packed"
        pack(whole, manifest, packing, path)
        data = path.read_bytes()
        values = arrived(path, manifest, packing)
    return Travelled(values, data, wire_bytes(data))


def wire_bytes(packed: bytes) -> int:
    return sum(len(squeeze(chunk)) for chunk in codec.chunks(packed))


def arrived(path: Path, manifest: Manifest, packing: Packing | None) -> Flat:
    """The tensors of a file that travelled."""
    if packing is None:
        return read(path, manifest)
    with PackedFile(path, manifest, packing.values) as file:
        return _unpacked(file)


def _unpacked(file: PackedFile) -> Flat:
    sink = FlatSink(file.manifest)
    for spec in file.manifest.specs:
        values = np.empty(spec.elements, np.dtype("<f4"))
        file.read(spec.name, 0, spec.elements, values)
        sink.write(values)
    return sink.close()
