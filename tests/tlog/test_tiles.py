"""Tiles and entry bundles: the specification's sizes and paths, Tessera's bytes."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.errors import Misuse, Reason, Refused
from anabranch.tlog.merkle import leaf_hash
from anabranch.tlog.tiles import (
    Tile,
    bundles,
    encode_bundle,
    entries_path,
    parse_bundle,
    tile_path,
    tiles,
)


def test_the_worked_sizes_of_the_specification():
    every = list(tiles(70_000))
    assert Counter(tile.level for tile in every if tile.width == 256) == {0: 273, 1: 1}
    assert [tile for tile in every if tile.width < 256] == [Tile(0, 273, 112), Tile(1, 1, 17), Tile(2, 0, 1)]
    assert list(bundles(70_000))[-2:] == [(272, 256), (273, 112)]


def test_an_empty_log_has_no_tiles():
    assert list(tiles(0)) == []
    assert list(tiles(256)) == [Tile(0, 0, 256), Tile(1, 0, 1)]


def test_paths():
    assert tile_path(0, 0, 256) == "tile/0/000"
    assert tile_path(0, 1_234_067, 256) == "tile/0/x001/x234/067"
    assert tile_path(2, 999, 17) == "tile/2/999.p/17"
    assert Tile(1, 1000, 1).path == "tile/1/x001/000.p/1"
    assert entries_path(273, 112) == "tile/entries/273.p/112"
    assert entries_path(1_000_000, 256) == "tile/entries/x001/x000/000"
    for index, width in ((-1, 1), (0, 0), (0, 257)):
        with pytest.raises(Misuse):
            tile_path(0, index, width)


def test_tiles_hold_the_nodes_of_every_eighth_level(new_log):
    entries = [str(i).encode() for i in range(600)]
    log = new_log(*entries)
    data = {(tile.level, tile.index): tile.data(log.node) for tile in tiles(600)}
    assert data[0, 1] == b"".join(leaf_hash(entry) for entry in entries[256:512])
    assert data[0, 2] == b"".join(leaf_hash(entry) for entry in entries[512:])
    assert data[1, 0] == log.node(8, 0) + log.node(8, 1)
    assert new_log(*entries[:256]).roots[256] == data[1, 0][:32]


def test_the_bundle_of_the_tessera_test_log():
    data = bytes.fromhex("00036f6e65000374776f00057468726565")
    assert encode_bundle([b"one", b"two", b"three"]) == data
    assert parse_bundle(data) == [b"one", b"two", b"three"]


@given(st.lists(st.binary(max_size=300), max_size=256))
def test_bundles_round_trip(entries):
    assert parse_bundle(encode_bundle(entries)) == entries


@given(st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=5), st.data())
def test_a_bundle_cut_inside_an_entry_is_refused(entries, data):
    whole = encode_bundle(entries)
    edges = {sum(len(entry) + 2 for entry in entries[:n]) for n in range(len(entries) + 1)}
    cut = data.draw(st.integers(0, len(whole)).filter(lambda n: n not in edges))
    with pytest.raises(Refused) as caught:
        parse_bundle(whole[:cut])
    assert caught.value.code is Reason.MALFORMED


def test_limits_of_a_bundle():
    assert parse_bundle(encode_bundle([b"x" * 65_535] * 2)) == [b"x" * 65_535] * 2
    with pytest.raises(Misuse):
        encode_bundle([b"x" * 65_536])
    with pytest.raises(Misuse):
        encode_bundle([b""] * 257)
    with pytest.raises(Refused) as caught:
        parse_bundle(b"\x00\x00" * 257)
    assert caught.value.code is Reason.SIZE_LIMIT
