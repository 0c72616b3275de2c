"""The tree and its proofs: published vectors, every size up to 256, and mutations of valid proofs."""

import base64
from functools import cache

import pytest

from anabranch.errors import Misuse, Reason, Refused
from anabranch.tlog.merkle import (
    EMPTY_ROOT,
    Frontier,
    ProofError,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root,
    verify_consistency,
    verify_inclusion,
)

# transparency-dev/merkle, testonly/constants.go
CT_LEAVES = [
    "",
    "00",
    "10",
    "2021",
    "3031",
    "40414243",
    "5051525354555657",
    "606162636465666768696a6b6c6d6e6f",
]
CT_ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def b64(*values):
    return [base64.b64decode(value) for value in values]


def test_hashes_of_the_rfc6962_reference():
    assert leaf_hash(b"L123456").hex() == "395aa064aa4c29f7010acfe3f25db9485bbd4b91897b6ad7ad547639252b4d56"
    assert (
        node_hash(b"N123", b"N456").hex()
        == "aa217fe888e47007fa15edab33c2b492a722cb106c64667fc2b044444de66bbb"
    )


def test_roots_of_the_certificate_transparency_vectors(new_log):
    log = new_log(*map(bytes.fromhex, CT_LEAVES))
    assert [value.hex() for value in log.roots] == CT_ROOTS
    assert [root(size, log.node).hex() for size in range(9)] == CT_ROOTS
    assert CT_ROOTS[0] == EMPTY_ROOT.hex()


def test_proofs_of_the_tessera_test_log(new_log):
    words = b"one two three four five six seven eit nain ten ileven twelf threeten fourten fivten".split()
    log = new_log(*words)
    assert log.roots[15:] == b64("rKbDipCvhuX1GZ7g5BBe8sA6BbJ7ja/1nk427v383cs=")
    assert log.roots[6:7] == b64("a6sWvsc2eEzmj72vah7mZ5dwFltivehh2b11qwlp5Jg=")
    shared = b64(
        "nk9gCR+floFqznAPtqjjcnnV64dge2jQB95D5t164Hg=",
        "zY1lN35vrXYAPixXSd59LsU29xUJtuW4o2dNNg5Y2Co=",
        "5jLpqTgjsBDSEX6SgZiRnbTMdTuRd8bQ5tSsAOxe0Ks=",
    )
    inclusion = inclusion_proof(4, 15, log.node)
    assert inclusion == [*b64("yiM+eia4w1wsk/Ukx7kF56IQVkDW3MWUaUz/VtJu+yU="), *shared]
    verify_inclusion(4, 15, leaf_hash(b"five"), inclusion, log.roots[15])
    consistency = consistency_proof(6, 15, log.node)
    assert consistency == [*b64("ycRkkNklus5eMVRUvkD1pK321vMrA+jjOiZKU8aOcY4="), *shared]
    verify_consistency(6, 15, log.roots[6], log.roots[15], consistency)


def test_proofs_of_the_sigsum_witness_conversation():
    leaves = [bytes([0x2A, i]) + bytes(30) for i in range(5)]
    frontier, nodes, roots = Frontier(), {}, [EMPTY_ROOT]
    for leaf in leaves:
        nodes |= {(level, index): value for level, index, value in frontier.append(leaf)}
        roots.append(frontier.root())
    assert [roots[1], roots[3], roots[5]] == b64(
        "KgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "RcCI1Nk56ZcSmIEfIn0SleqtV7uvrlXNccFx595Iwl0=",
        "QrtXrQZCCvpIgsSmOsah7HdICzMLLyDfxToMql9WTjY=",
    )
    proof = consistency_proof(3, 5, lambda level, index: nodes[level, index])
    assert proof == b64(
        "KgIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "KgMAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "wgiIFdZfYNv6WU1OllBKsWnLYIS/DBMqt8Uh/S4OukE=",
        "KgQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    )
    verify_consistency(3, 5, roots[3], roots[5], proof)


# The definitions of RFC 6962 §2.1 and RFC 9162 §2.1.3.1, §2.1.4.1, word for word, as the oracle.


def split(n):
    k = 1
    while k * 2 < n:
        k *= 2
    return k


@cache
def mth(begin, end):
    if end - begin == 0:
        return EMPTY_ROOT
    if end - begin == 1:
        return leaf_hash(str(begin).encode())
    k = split(end - begin)
    return node_hash(mth(begin, begin + k), mth(begin + k, end))


def path(m, begin, end):
    if end - begin == 1:
        return []
    k = split(end - begin)
    if m < k:
        return [*path(m, begin, begin + k), mth(begin + k, end)]
    return [*path(m - k, begin + k, end), mth(begin, begin + k)]


def subproof(m, begin, end, whole):
    if m == end - begin:
        return [] if whole else [mth(begin, end)]
    k = split(end - begin)
    if m <= k:
        return [*subproof(m, begin, begin + k, whole), mth(begin + k, end)]
    return [*subproof(m - k, begin + k, end, False), mth(begin, begin + k)]


def mutations(proof):
    """Everything near a valid proof that must not verify in its place."""
    stranger = bytes(31) + b"\x01"
    yield [*proof, stranger]
    yield [stranger, *proof]
    yield [*proof, b""]
    if proof:
        yield proof[:-1]
        yield proof[1:]
        yield [*proof, proof[-1]]
        yield [proof[0], *proof]
        yield [*proof[:-1], proof[-1][:-1]]
        for i, value in enumerate(proof):
            yield [*proof[:i], bytes([value[0] ^ 0x10]) + value[1:], *proof[i + 1 :]]
    for i in range(len(proof) - 1):
        yield [*proof[:i], proof[i + 1], proof[i], *proof[i + 2 :]]


def test_inclusion_for_every_size_up_to_256(log256):
    for size in range(1, 257):
        assert log256.roots[size] == mth(0, size)
        for index in range(size):
            proof = inclusion_proof(index, size, log256.node)
            assert proof == path(index, 0, size)
            verify_inclusion(index, size, mth(index, index + 1), proof, mth(0, size))


def test_consistency_for_every_pair_of_sizes_up_to_256(log256):
    for new in range(1, 257):
        for old in range(1, new + 1):
            proof = consistency_proof(old, new, log256.node)
            assert proof == subproof(old, 0, new, True)
            verify_consistency(old, new, mth(0, old), mth(0, new), proof)


def near(size):
    """Positions at the ends and inside of a tree."""
    return sorted({0, 1, size // 3, size // 2, size - 2, size - 1} & set(range(size)))


def test_mutated_inclusion_proofs_are_refused_for_every_size_up_to_256():
    for size in range(1, 257):
        for index in near(size):
            refuse_mutated_inclusion(index, size)


def refuse_mutated_inclusion(index, size):
    leaf, proof, good_root = mth(index, index + 1), path(index, 0, size), mth(0, size)
    for mutated in mutations(proof):
        refuse_inclusion(index, size, leaf, mutated, good_root)
    for other in {index - 1, index + 1, index ^ 2} - {index}:
        refuse_inclusion(other, size, leaf, proof, good_root)
    for other in (size * 2, size * 3, index, 0, -1):
        refuse_inclusion(index, other, leaf, proof, good_root)
    refuse_inclusion(index, size, node_hash(leaf, leaf), proof, good_root)
    refuse_inclusion(index, size, leaf, proof, EMPTY_ROOT)
    refuse_inclusion(index, size + 1, good_root, [], leaf)


def refuse_inclusion(index, size, leaf, proof, root_hash):
    with pytest.raises(ProofError) as caught:
        verify_inclusion(index, size, leaf, proof, root_hash)
    assert caught.value.code is Reason.DIGEST_MISMATCH


def test_mutated_consistency_proofs_are_refused_for_every_size_up_to_256():
    for new in range(2, 257):
        for old in set(near(new)) - {0}:
            refuse_mutated_consistency(old, new)


def refuse_mutated_consistency(old, new):
    before, after, proof = mth(0, old), mth(0, new), subproof(old, 0, new, True)
    for mutated in mutations(proof):
        refuse_consistency(old, new, before, after, mutated)
    for old_root, new_root in (
        (after, before),
        (before, before),
        (after, after),
        (EMPTY_ROOT, after),
        (before, EMPTY_ROOT),
    ):
        refuse_consistency(old, new, old_root, new_root, proof)
    for other_old, other_new in ((new, old), (old, new * 2), (old, old), (old - 1, new), (old + 1, new)):
        refuse_consistency(other_old, other_new, before, after, proof)
    for other_proof in ([], [before, *proof], [*proof, before], [after, *proof], [*proof, after]):
        refuse_consistency(old, new, before, after, other_proof)


def test_a_proof_does_not_serve_another_old_root(log256):
    forked = leaf_hash(b"other")
    for old in range(1, 64):
        proof = consistency_proof(old, 64, log256.node)
        refuse_consistency(old, 64, forked, mth(0, 64), proof)


def refuse_consistency(old, new, old_root, new_root, proof):
    with pytest.raises(ProofError) as caught:
        verify_consistency(old, new, old_root, new_root, proof)
    assert caught.value.code is Reason.DIGEST_MISMATCH


def test_policy_old_size_zero_is_refused():
    refuse_consistency(0, 5, EMPTY_ROOT, mth(0, 5), [])
    refuse_consistency(0, 5, EMPTY_ROOT, mth(0, 5), [mth(0, 5)])


def test_policy_zero_to_zero_is_refused_whatever_the_roots():
    refuse_consistency(0, 0, EMPTY_ROOT, EMPTY_ROOT, [])
    refuse_consistency(0, 0, b"x" * 32, b"y" * 32, [])


def test_policy_every_hash_has_32_bytes():
    refuse_inclusion(0, 1, b"", [], b"")
    refuse_inclusion(0, 2, mth(0, 1), [b""], mth(0, 2))
    refuse_consistency(1, 1, b"twelve bytes", b"twelve bytes", [])  # upstream's probe accepts; we do not
    refuse_consistency(3, 3, b"", b"", [])
    verify_consistency(1, 1, mth(0, 1), mth(0, 1), [])


def test_policy_equal_sizes_take_no_proof():
    refuse_consistency(3, 3, mth(0, 3), mth(0, 3), [mth(0, 3)])
    refuse_consistency(3, 3, mth(0, 3), mth(0, 4), [])


def test_proofs_outside_the_tree_are_refused(log256):
    for index, size in ((0, 0), (5, 5), (-1, 5)):
        with pytest.raises(Refused):
            inclusion_proof(index, size, log256.node)
    for old, new in ((6, 5), (-1, 5)):
        with pytest.raises(Refused):
            consistency_proof(old, new, log256.node)
    assert consistency_proof(0, 5, log256.node) == []
    assert consistency_proof(5, 5, log256.node) == []


def test_frontier_completes_each_node_once_and_restores(log256):
    complete = {(level, index) for level in range(9) for index in range(256 >> level)}
    assert set(log256.nodes) == complete
    for size in range(257):
        frontier = Frontier.restore(size, log256.node)
        assert frontier.size == size
        assert frontier.root() == root(size, log256.node) == log256.roots[size]
        twin = Frontier(frontier.size, frontier.hashes)
        assert twin.append(leaf_hash(b"next")) == frontier.append(leaf_hash(b"next"))
        assert twin.root() == frontier.root()


def test_frontier_refuses_what_is_no_edge():
    with pytest.raises(Misuse):
        Frontier(3, [EMPTY_ROOT])
    with pytest.raises(Misuse):
        Frontier(1, [b"short"])
    with pytest.raises(Misuse):
        Frontier(-1, [])
    with pytest.raises(Misuse):
        Frontier().append(b"not a hash")
