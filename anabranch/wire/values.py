"""The values of a tensor file, judged while its bytes go by."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from anabranch.errors import Reason, Refused
from anabranch.wire.manifest import ITEM_BYTES, Manifest, TensorSpec

Bytes = bytes | memoryview
_F32 = np.dtype("<f4")
PIECE = 1 << 16  # elements judged at once: their squares fit the cache of a core


class Values:
    """Takes the bytes of a canonical file in order, in pieces of any size, and keeps a few numbers of them.

    A value that is not finite is refused the moment it has passed. No sum of squares of float32 overflows float64, so a
    sum that is not finite means such a value. The file's header is the caller's to judge; here it is skipped.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._tensors: Iterator[TensorSpec] = iter(manifest.specs)
        self._header_left = len(manifest.header())
        self._tensor: TensorSpec | None = None
        self._done = 0  # elements of `_tensor` that have passed
        self._split = b""  # the first bytes of an element whose others are in the next piece
        self._squares = 0.0
        self._wide = np.empty(PIECE, np.float64)

    @property
    def norm(self) -> float:
        """L2, over the trainable tensors that have passed, in float64."""
        return math.sqrt(self._squares)

    def take(self, data: Bytes) -> None:
        """Raises Refused(NONFINITE) naming tensor and element."""
        view = memoryview(data)
        skipped = min(self._header_left, len(view))
        self._header_left -= skipped
        view = view[skipped:]
        if self._split:
            missing = ITEM_BYTES - len(self._split)
            self._split += view[:missing]
            view = view[missing:]
            if len(self._split) < ITEM_BYTES:
                return
            whole, self._split = self._split, b""
            self._judge(np.frombuffer(whole, _F32))
        rest = len(view) % ITEM_BYTES
        if rest:
            view, self._split = view[:-rest], bytes(view[-rest:])
        self._judge(np.frombuffer(view, _F32))

    def _judge(self, values: NDArray[np.float32]) -> None:
        while values.size:
            if self._tensor is None or self._done == self._tensor.elements:
                self._tensor, self._done = next(self._tensors), 0
                continue
            piece = values[: min(self._tensor.elements - self._done, self._wide.size)]
            squares = self._sum_of_squares(piece)
            if not math.isfinite(squares):
                index = self._done + int(np.flatnonzero(~np.isfinite(piece))[0])
                raise Refused(
                    Reason.NONFINITE, f"tensor {self._tensor.name!r}: element {index} is NaN or infinite"
                )
            if self._tensor.role == "trainable":
                self._squares += squares
            self._done += piece.size
            values = values[piece.size :]

    def _sum_of_squares(self, values: NDArray[np.float32]) -> float:
        wide = self._wide[: values.size]
        with np.errstate(all="ignore"):
            np.copyto(wide, values)
            np.multiply(wide, wide, out=wide)
            return float(np.add.reduce(wide))
