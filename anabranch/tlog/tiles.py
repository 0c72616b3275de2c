"""C2SP tlog-tiles: where a log's hashes and entries stand when it is published as files.

A tile holds up to 256 hashes of one of every eighth tree level; an entry bundle holds the same 256 leaves'
bytes. Full tiles never change. Partial ones exist for the size of the checkpoint they are published with.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from anabranch.errors import Misuse, Reason, Refused
from anabranch.tlog.merkle import Node

WIDTH = 256  # hashes in a full tile, entries in a full bundle
HEIGHT = 8  # tree levels from one tile level to the next
MAX_BUNDLED_ENTRY = 65_535  # bytes, by the 16-bit length prefix


@dataclass(frozen=True)
class Tile:
    """Hashes [256 · index, 256 · index + width) of tree level 8 · level; `width` is 1 to 256."""

    level: int
    index: int
    width: int

    @property
    def path(self) -> str:
        """Relative to the log's root."""
        return tile_path(self.level, self.index, self.width)

    def data(self, node: Node) -> bytes:
        """The tile's bytes, 32 for each hash."""
        first = WIDTH * self.index
        return b"".join(node(HEIGHT * self.level, first + i) for i in range(self.width))


def tiles(size: int) -> Iterator[Tile]:
    """Every tile of a log of `size` entries, level by level; the last of a level may be partial."""
    level, hashes = 0, size
    while hashes:
        yield from (Tile(level, index, WIDTH) for index in range(hashes // WIDTH))
        if hashes % WIDTH:
            yield Tile(level, hashes // WIDTH, hashes % WIDTH)
        level, hashes = level + 1, hashes // WIDTH


def bundles(size: int) -> Iterator[tuple[int, int]]:
    """(index, width) of every entry bundle of a log of `size` entries, in order."""
    return ((tile.index, tile.width) for tile in tiles(size) if tile.level == 0)


def tile_path(level: int, index: int, width: int) -> str:
    """`tile/<level>/<index in groups of three digits>[.p/<width>]`."""
    return f"tile/{level}/{_numbered(index, width)}"


def entries_path(index: int, width: int) -> str:
    """`tile/entries/<index in groups of three digits>[.p/<width>]`."""
    return f"tile/entries/{_numbered(index, width)}"


def encode_bundle(entries: Sequence[bytes]) -> bytes:
    """Up to 256 entries, each after its length as a big-endian uint16. Raises Misuse beyond either limit."""
    if len(entries) > WIDTH or any(len(entry) > MAX_BUNDLED_ENTRY for entry in entries):
        raise Misuse(f"a bundle holds {WIDTH} entries of {MAX_BUNDLED_ENTRY} bytes at most")
    return b"".join(struct.pack(">H", len(entry)) + entry for entry in entries)


def parse_bundle(data: bytes) -> list[bytes]:
    """The entries of a bundle. Raises Refused: MALFORMED when cut short, SIZE_LIMIT beyond 256 entries."""
    entries: list[bytes] = []
    offset = 0
    while offset < len(data):
        if len(entries) == WIDTH:
            raise Refused(Reason.SIZE_LIMIT, f"entry bundle holds more than {WIDTH} entries")
        start = offset + 2
        end = start + int.from_bytes(data[offset:start])
        if end > len(data):
            raise Refused(Reason.MALFORMED, f"entry bundle is cut short in its entry {len(entries)}")
        entries.append(data[start:end])
        offset = end
    return entries


def _numbered(index: int, width: int) -> str:
    if index < 0 or not 1 <= width <= WIDTH:
        raise Misuse(f"no tile {index} of width {width}: widths are 1 to {WIDTH}")
    groups = []
    rest, last = divmod(index, 1000)
    while rest:
        rest, group = divmod(rest, 1000)
        groups.append(f"x{group:03}/")
    partial = f".p/{width}" if width < WIDTH else ""
    return "".join(reversed(groups)) + f"{last:03}" + partial
