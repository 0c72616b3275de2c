"""An update in a few kilobytes, from which lengths and distances between updates can be told.

A count sketch: every element is added to one of WIDTH sums with a sign of its own. Sums and differences of sketches are
sketches of sums and differences, and the squared length of a sketch is that of what was sketched, give or take
sqrt(2 / WIDTH): four percent. Made while an aggregation reads its inputs, it costs no reading and no memory that grows.
"""

import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from anabranch.rules.buffer import Buffer, Delta, Source
from anabranch.rules.step import CHUNK, TensorReader
from anabranch.wire.manifest import ITEM_BYTES, Manifest
from server.core.allocation import WINDOW

WIDTH = 1024
# Raw bits, because their stream is the same in every release of numpy.
_BITS = np.unpackbits(np.random.PCG64(0).random_raw(2 * CHUNK // 64).view(np.uint8))
_SIGNS = _BITS.astype(np.float32) * 2 - 1


class Sketch:
    """Reads as `source` does, and adds up what is read of trainable tensors the first time."""

    def __init__(self, source: TensorReader, manifest: Manifest) -> None:
        self.sums: NDArray[np.float64] = np.zeros(WIDTH)
        self._source, self._manifest = source, manifest
        self._trainable = {spec.name for spec in manifest.trainable()}
        self._until = (
            0  # a step reads in canonical order, and once more from the front for each further state
        )

    def read(self, name: str, start: int, stop: int, out: NDArray[np.float32]) -> None:
        self._source.read(name, start, stop, out)
        first = self._manifest.offset(name) + start * ITEM_BYTES
        if first >= self._until and name in self._trainable:
            self._until = first + 1
            self._add(f"{name}/{start}", out)

    def _add(self, span: str, values: NDArray[np.float32]) -> None:
        """Spans of one place have the same signs in every update, whatever else is read."""
        shift = zlib.crc32(span.encode()) % CHUNK
        whole = values.size - values.size % WIDTH
        signed = values * _SIGNS[shift : shift + values.size]
        sums = signed[:whole].reshape(-1, WIDTH).sum(axis=0)
        sums[: values.size - whole] += signed[whole:]
        self.sums += np.roll(sums, shift)


def sketched(
    manifest: Manifest, buffer: Buffer, sources: Mapping[Source, TensorReader]
) -> dict[Source, Sketch]:
    """Over the readers of the newest updates of `buffer`, in its order."""
    newest = [Delta(one.update) for one in buffer.inputs[-WINDOW:]]
    return {delta: Sketch(sources[delta], manifest) for delta in newest}
