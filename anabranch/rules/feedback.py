"""What updates leave out is kept, and added to the next one (SparseLoCo, arXiv 2508.15706).

    candidate = decay * remainder + delta       what is packed in place of the delta
    remainder = candidate - what travels of it  once the server has it

Of trainable tensors, in float32, one IEEE operation per element after the other. Buffers travel whole and leave nothing.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anabranch.rules.packing import BLOCK
from anabranch.rules.step import TensorReader, TensorSink
from anabranch.wire.manifest import Manifest

Float32 = NDArray[np.float32]


def layout(manifest: Manifest) -> Manifest:
    """Of a remainder of updates of such tensors."""
    return Manifest(manifest.trainable())


@dataclass(frozen=True)
class Candidate:
    """As a `TensorReader` of all tensors; of trainable ones, what may travel this time.

    It need not be finite where both parts are: whoever packs it refuses that.
    """

    delta: TensorReader
    remainder: TensorReader | None  # None: nothing has been left out yet
    decay: float
    manifest: Manifest

    def read(self, name: str, start: int, stop: int, out: Float32) -> None:
        self.delta.read(name, start, stop, out)
        if self.remainder is not None and self.manifest.spec(name).role == "trainable":
            kept = np.empty_like(out)
            self.remainder.read(name, start, stop, kept)
            with np.errstate(over="ignore"):
                kept *= np.float32(self.decay)
                out += kept


def leave_out(candidate: TensorReader, sent: TensorReader, manifest: Manifest, sink: TensorSink) -> None:
    """Write the new remainder, of `layout(manifest)`."""
    whole, part = np.empty(BLOCK, np.dtype("<f4")), np.empty(BLOCK, np.dtype("<f4"))
    for spec in layout(manifest).specs:
        for start in range(0, spec.elements, BLOCK):
            stop = min(start + BLOCK, spec.elements)
            left, taken = whole[: stop - start], part[: stop - start]
            candidate.read(spec.name, start, stop, left)
            sent.read(spec.name, start, stop, taken)
            left -= taken
            sink.write(left)
