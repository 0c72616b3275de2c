"""What stands in a tensor file that is on its way in, judged as early as it can be told."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from anabranch.link import Packing
from anabranch.wire.header import check_header_bytes
from anabranch.wire.manifest import Manifest
from anabranch.wire.packed import check_packed
from anabranch.wire.values import Bytes, Values


class Judge(Protocol):
    """Raises Refused for bytes that cannot be what the job takes."""

    def take(self, chunk: Bytes) -> None:
        """The next bytes, in order."""
        ...

    def norm(self, path: Path) -> float:
        """L2, over the trainable tensors, in float64, once all bytes were taken; they are at `path`."""
        ...


def judge_of(manifest: Manifest, packing: Packing | None, size: int) -> Judge:
    """Of a file of `size` bytes: a canonical one, or a packed one."""
    return Whole(manifest, size) if packing is None else Sparse(manifest, packing)


@dataclass
class Whole:
    """A canonical file: every value is seen as it goes by."""

    manifest: Manifest
    size: int
    _header: bytes = b""  # until it is known to be right
    _good: bool = False
    _values: Values = field(init=False)

    def __post_init__(self) -> None:
        self._values = Values(self.manifest)

    def take(self, chunk: Bytes) -> None:
        if not self._good:
            self._header += chunk  # never much longer than a header may be: it is judged after every chunk
            self._good = check_header_bytes(self._header, self.size, self.manifest)
            if not self._good:
                return
            chunk, self._header = self._header, b""
        self._values.take(chunk)

    def norm(self, path: Path) -> float:
        return self._values.norm


@dataclass(frozen=True)
class Sparse:
    """A packed file: blocks do not end where chunks do, and there is little of it, so it is read when it is complete."""

    manifest: Manifest
    packing: Packing

    def take(self, chunk: Bytes) -> None:
        pass

    def norm(self, path: Path) -> float:
        return check_packed(path, self.manifest, self.packing)
