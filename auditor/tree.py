"""The Merkle tree of an export, recomputed from its entries."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from anabranch.errors import Reason, Refused
from anabranch.tlog import tiles
from anabranch.tlog.merkle import EMPTY_ROOT, HASH_SIZE, Frontier, leaf_hash, node_hash
from auditor.export import Export


@dataclass
class Tree:
    """Leaf hashes in order, 32 bytes each, and the root over them."""

    leaves: bytearray = field(default_factory=bytearray)
    root: bytes = EMPTY_ROOT

    @property
    def size(self) -> int:
        return len(self.leaves) // HASH_SIZE

    def leaf(self, index: int) -> bytes:
        return bytes(self.leaves[HASH_SIZE * index : HASH_SIZE * (index + 1)])

    def roots(self, sizes: Iterable[int]) -> dict[int, bytes]:
        """The roots this log had at earlier `sizes`; sizes beyond it are left out."""
        wanted, frontier, found = set(sizes), Frontier(), {}
        for index in range(min(self.size, max(wanted, default=-1)) + 1):
            if index in wanted:
                found[index] = frontier.root()
            if index < self.size:
                frontier.append(self.leaf(index))
        return found


def recompute(export: Export, size: int, differs: Callable[[str, str], None]) -> Tree:
    """Hash all entries of a log of `size` and compare every tile on the way.

    A file that is missing, malformed or not what the entries give is reported to `differs(path, what)`. Takes 32
    bytes of memory for each entry, and one entry bundle.
    """
    tree, above = Tree(), Frontier()  # `above` has a leaf for each full bundle: tree level 8 is its level 0
    row: dict[int, list[bytes]] = {}  # tile level → hashes since its last full tile
    rest: list[bytes] = []  # leaves of the last, partial bundle
    for index, width in tiles.bundles(size):
        try:
            leaves = [leaf_hash(entry) for entry in export.bundle(index, width)]
        except Refused as refusal:
            differs(tiles.entries_path(index, width), str(refusal))
            return tree
        tree.leaves += b"".join(leaves)
        _compare(export, tiles.Tile(0, index, width), leaves, differs)
        if width < tiles.WIDTH:
            rest = leaves
            continue
        for level, position, value in above.append(_full(leaves)):
            if level % tiles.HEIGHT == 0:
                _collect(export, row, level // tiles.HEIGHT + 1, position, value, differs)
    for level, hashes in row.items():
        if hashes:
            first = size >> (tiles.HEIGHT * level)
            _compare(export, tiles.Tile(level, first // tiles.WIDTH, len(hashes)), hashes, differs)
    frontier = Frontier(tiles.WIDTH * above.size, above.hashes)
    for leaf in rest:
        frontier.append(leaf)
    tree.root = frontier.root()
    return tree


def _full(leaves: list[bytes]) -> bytes:
    """Root of a complete subtree."""
    while len(leaves) > 1:
        leaves = [node_hash(leaves[i], leaves[i + 1]) for i in range(0, len(leaves), 2)]
    return leaves[0]


def read_entries(export: Export, tree: Tree) -> Iterator[tuple[int, bytes]]:
    """(index, bytes) of every entry again. Raises Refused if the files changed since `recompute` hashed them."""
    for bundle, width in tiles.bundles(tree.size):
        first = tiles.WIDTH * bundle
        entries = export.bundle(bundle, width)
        hashes = list(map(leaf_hash, entries))
        if b"".join(hashes) != tree.leaves[HASH_SIZE * first : HASH_SIZE * (first + width)]:
            changed = next(at for at, value in enumerate(hashes, first) if value != tree.leaf(at))
            raise Refused(Reason.DIGEST_MISMATCH, f"entry {changed} changed while it was verified")
        yield from enumerate(entries, first)


def _collect(
    export: Export,
    row: dict[int, list[bytes]],
    level: int,
    position: int,
    value: bytes,
    differs: Callable[[str, str], None],
) -> None:
    hashes = row.setdefault(level, [])
    hashes.append(value)
    if len(hashes) == tiles.WIDTH:
        _compare(export, tiles.Tile(level, position // tiles.WIDTH, tiles.WIDTH), hashes, differs)
        hashes.clear()


def _compare(
    export: Export, tile: tiles.Tile, hashes: list[bytes], differs: Callable[[str, str], None]
) -> None:
    try:
        if export.tile(tile.level, tile.index, tile.width) != b"".join(hashes):
            differs(tile.path, "its hashes are not those of the entries")
    except Refused as refusal:
        differs(tile.path, str(refusal))
