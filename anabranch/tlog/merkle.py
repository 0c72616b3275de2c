"""The Merkle tree of RFC 6962 §2.1, and its proofs, verified as RFC 9162 §2.1.3.2 and §2.1.4.2 say.

A *node* is the root of a complete subtree: (level, index) covers the leaves [index << level, (index + 1) <<
level). Complete nodes never change once written; the ragged right edge is folded from them when a root or
proof is asked for. Hashes are 32 bytes everywhere, and the verifiers check it, so that two empty "hashes"
cannot agree with each other.
"""

import hashlib
from collections.abc import Callable, Sequence

from anabranch.errors import Misuse, Reason, Refused

HASH_SIZE = 32  # bytes
EMPTY_ROOT: bytes = hashlib.sha256(b"").digest()

Node = Callable[[int, int], bytes]
"""(level, index) → hash of a complete node; asked only for nodes inside the tree."""


class ProofError(Refused):
    """A proof does not prove what it was presented for: the log, or whoever relayed it, is not to be
    believed.
    """

    def __init__(self, message: str) -> None:
        super().__init__(Reason.DIGEST_MISMATCH, message)


def leaf_hash(data: bytes) -> bytes:
    """SHA-256(0x00 ‖ data)."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 ‖ left ‖ right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Frontier:
    """The right edge of a growing tree: roots of the complete subtrees that make up its leaves, largest
    first.

    Appending needs nothing else, so a writer holds at most 63 hashes however long the log is.
    """

    def __init__(self, size: int = 0, hashes: Sequence[bytes] = ()) -> None:
        """`hashes`: one per set bit of `size`, highest bit first. Raises Misuse on any other number."""
        if size < 0 or len(hashes) != size.bit_count() or any(len(h) != HASH_SIZE for h in hashes):
            raise Misuse(f"a tree of {size} leaves has not these {len(hashes)} complete subtrees")
        self._size = size
        self._hashes = list(hashes)

    @classmethod
    def restore(cls, size: int, node: Node) -> "Frontier":
        """The frontier of a stored tree."""
        levels = [level for level in reversed(range(size.bit_length())) if size >> level & 1]
        return cls(size, [node(level, (size >> level) - 1) for level in levels])

    @property
    def size(self) -> int:
        """Number of leaves."""
        return self._size

    @property
    def hashes(self) -> tuple[bytes, ...]:
        """What the constructor takes: together with `size`, a copy of this frontier."""
        return tuple(self._hashes)

    def append(self, leaf: bytes) -> list[tuple[int, int, bytes]]:
        """Add a leaf hash; returns (level, index, hash) of every node it completes, the leaf itself first."""
        if len(leaf) != HASH_SIZE:
            raise Misuse(f"a leaf hash has {HASH_SIZE} bytes, not {len(leaf)}")
        level, index, current = 0, self._size, leaf
        completed = [(level, index, current)]
        while index & 1:
            current = node_hash(self._hashes.pop(), current)
            level, index = level + 1, index >> 1
            completed.append((level, index, current))
        self._hashes.append(current)
        self._size += 1
        return completed

    def root(self) -> bytes:
        """Merkle tree hash of all leaves so far."""
        return _fold(self._hashes) if self._hashes else EMPTY_ROOT


def root(size: int, node: Node) -> bytes:
    """Merkle tree hash of the first `size` leaves of a stored tree."""
    return Frontier.restore(size, node).root()


def inclusion_proof(index: int, size: int, node: Node) -> list[bytes]:
    """Audit path of leaf `index` in the tree of `size` leaves (RFC 9162 §2.1.3.1), deepest hash first.

    Raises Refused(MALFORMED) when that tree has no such leaf: the numbers usually come from a peer.
    """
    if not 0 <= index < size:
        raise Refused(Reason.MALFORMED, f"no leaf {index} in a log of {size} entries")
    begin, end, path = 0, size, []
    while end - begin > 1:
        middle = begin + _split(end - begin)
        if index < middle:
            path.append(_subtree(middle, end, node))
            end = middle
        else:
            path.append(_subtree(begin, middle, node))
            begin = middle
    return path[::-1]


def consistency_proof(old: int, new: int, node: Node) -> list[bytes]:
    """Proof that the tree of `new` leaves extends the tree of `old` (RFC 9162 §2.1.4.1); empty when `old` is
    0 or new.

    Raises Refused(MALFORMED) unless 0 <= old <= new.
    """
    if not 0 <= old <= new:
        raise Refused(Reason.MALFORMED, f"a log of {new} entries cannot extend one of {old}")
    if old == 0:
        return []
    begin, end, path = 0, new, []
    while old < end:
        middle = begin + _split(end - begin)
        if old <= middle:
            path.append(_subtree(middle, end, node))
            end = middle
        else:
            path.append(_subtree(begin, middle, node))
            begin = middle
    if begin > 0:  # else the old tree is this very subtree, and the verifier has its root
        path.append(_subtree(begin, end, node))
    return path[::-1]


def verify_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes], root: bytes) -> None:
    """Check that `leaf` (a leaf hash) is at `index` of the tree of `size` leaves under `root`. Raises
    ProofError.
    """
    if not 0 <= index < size:
        raise ProofError(f"no leaf {index} in a log of {size} entries")
    _check_lengths(leaf, root, *proof)
    position, last, computed = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise ProofError(f"inclusion proof of leaf {index} in {size} is too long")
        if position & 1 or position == last:
            computed = node_hash(sibling, computed)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            computed = node_hash(computed, sibling)
        position, last = position >> 1, last >> 1
    if last != 0:
        raise ProofError(f"inclusion proof of leaf {index} in {size} is too short")
    if computed != root:
        raise ProofError(f"inclusion proof of leaf {index} in {size} leads to another root")


def verify_consistency(old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> None:
    """Check that the tree (`new`, `new_root`) extends the tree (`old`, `old_root`). Raises ProofError.

    `old` = 0 is refused: every tree extends the empty one, so there is nothing a proof could add, and a
    caller that asks has lost its own state. Callers that begin with an empty view compare with EMPTY_ROOT
    themselves.
    """
    if not 0 < old <= new:
        raise ProofError(f"a log of {new} entries cannot be shown to extend one of {old}")
    _check_lengths(old_root, new_root, *proof)
    if old == new:
        if proof or old_root != new_root:
            raise ProofError(f"two different logs of {old} entries")
        return
    if not proof:
        raise ProofError(f"no proof that {new} entries extend {old}")
    from_old, from_new = _fold_consistency(old, new, old_root, proof)
    if from_old != old_root:
        raise ProofError(f"consistency proof {old} to {new} does not start at the old root")
    if from_new != new_root:
        raise ProofError(f"consistency proof {old} to {new} leads to another root")


def _fold_consistency(old: int, new: int, old_root: bytes, proof: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Steps 3 to 6 of RFC 9162 §2.1.4.2: the two roots that the proof implies."""
    path = list(proof)
    if old.bit_count() == 1:  # the old tree is a complete subtree of the new one
        path.insert(0, old_root)
    position, last = old - 1, new - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    from_old = from_new = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise ProofError(f"consistency proof {old} to {new} is too long")
        if position & 1 or position == last:
            from_old, from_new = node_hash(sibling, from_old), node_hash(sibling, from_new)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            from_new = node_hash(from_new, sibling)
        position, last = position >> 1, last >> 1
    if last != 0:
        raise ProofError(f"consistency proof {old} to {new} is too short")
    return from_old, from_new


def _split(count: int) -> int:
    """The largest power of two strictly below `count` (≥ 2)."""
    return 1 << (count - 1).bit_length() - 1


def _subtree(begin: int, end: int, node: Node) -> bytes:
    """Root over leaves [begin, end); `begin` is a multiple of the power of two that holds end - begin."""
    count = end - begin
    if count & (count - 1) == 0:
        level = count.bit_length() - 1
        return node(level, begin >> level)
    middle = begin + _split(count)
    return node_hash(_subtree(begin, middle, node), _subtree(middle, end, node))


def _fold(hashes: Sequence[bytes]) -> bytes:
    """Root of complete subtrees, largest first."""
    computed = hashes[-1]
    for left in reversed(hashes[:-1]):
        computed = node_hash(left, computed)
    return computed


def _check_lengths(*hashes: bytes) -> None:
    for value in hashes:
        if len(value) != HASH_SIZE:
            raise ProofError(f"a hash has {HASH_SIZE} bytes, not {len(value)}")
