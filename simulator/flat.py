"""The tensors of a file in one array in memory, read and written as `anabranch.rules` reads and writes files."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anabranch.errors import Misuse
from anabranch.wire.manifest import ITEM_BYTES, Manifest

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Flat:
    """All tensors of `manifest` in its order, one after the other. Nobody changes `values`."""

    manifest: Manifest
    values: Floats

    def read(self, name: str, start: int, stop: int, out: Floats) -> None:
        """As `TensorFile.read`."""
        first = (self.manifest.offset(name) - len(self.manifest.header())) // ITEM_BYTES
        np.copyto(out, self.values[first + start : first + stop])

    def encode(self) -> bytes:
        """The canonical file."""
        return self.manifest.header() + self.values.tobytes()

    def digest(self) -> str:
        """Hex SHA-256 of the canonical file."""
        digest = hashlib.sha256(self.manifest.header())
        digest.update(self.values.data)
        return digest.hexdigest()


class FlatSink:
    """Takes a file's elements in order."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._values = np.empty(sum(spec.elements for spec in manifest.specs), np.dtype("<f4"))
        self._written = 0

    def write(self, chunk: Floats) -> None:
        self._values[self._written : self._written + chunk.size] = chunk
        self._written += chunk.size

    def close(self) -> Flat:
        if self._written != self._values.size:
            raise Misuse(f"{self._written} of {self._values.size} elements were written")
        return Flat(self._manifest, self._values)


def read(path: Path, manifest: Manifest) -> Flat:
    """A canonical file this process wrote: it is not checked again."""
    return Flat(manifest, np.fromfile(path, np.dtype("<f4"), offset=len(manifest.header())))


def write(parameters: Flat, path: Path) -> None:
    with open(path, "wb") as file:
        file.write(parameters.manifest.header())
        parameters.values.tofile(file)
