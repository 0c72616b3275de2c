"""How tensors are cut: in the manifest's order, each into blocks of BLOCK elements, the last one shorter."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anabranch.rules.packing import BLOCK
from anabranch.rules.step import TensorReader
from anabranch.wire.manifest import Manifest, TensorSpec

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Block:
    tensor: TensorSpec
    number: int  # in the file
    start: int  # elements of the tensor
    stop: int

    @property
    def elements(self) -> int:
        return self.stop - self.start


def pieces(source: TensorReader, specs: tuple[TensorSpec, ...]) -> Iterator[tuple[Block, Floats]]:
    """Each block with its elements, which the next one overwrites."""
    buffer = np.empty(BLOCK, np.dtype("<f4"))
    for block in blocks(specs):
        piece = buffer[: block.elements]
        source.read(block.tensor.name, block.start, block.stop, piece)
        yield block, piece


def blocks(specs: tuple[TensorSpec, ...]) -> Iterator[Block]:
    first = 0
    for spec in specs:
        yield from blocks_of(spec, first, 0, spec.elements)
        first += count_blocks((spec,))


def blocks_of(tensor: TensorSpec, first: int, start: int, stop: int) -> Iterator[Block]:
    """Those that hold elements from `start` to `stop`."""
    for at in range(start // BLOCK * BLOCK, stop, BLOCK):
        yield Block(tensor, first + at // BLOCK, at, min(at + BLOCK, tensor.elements))


def count_blocks(specs: tuple[TensorSpec, ...]) -> int:
    return sum(-(-spec.elements // BLOCK) for spec in specs)


def first_blocks(manifest: Manifest) -> dict[str, int]:
    numbers, first = {}, 0
    for spec in manifest.specs:
        numbers[spec.name] = first
        first += count_blocks((spec,))
    return numbers
