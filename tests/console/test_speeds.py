"""What the watch says of speed and of what a link saved."""

import json

from anabranch.v1 import admin_pb2
from console import board, documents, words
from tests.console.test_watch import look, shown, status


def at_work() -> admin_pb2.JobStatus:
    found = status()
    aare, tagus, *_ = found.silos
    aare.samples_per_second, aare.tokens_per_second, aare.whole_bytes = 1234.5, 157_000.0, 2_770_000
    tagus.samples_per_second = 35.25
    return found


def test_speed_and_saving_have_a_table_that_fits_where_there_are_any() -> None:
    said = shown(board.board(look(at_work()), every_silo=True), 80)
    rows = [line.split() for line in said.splitlines()]
    assert ["silo", "samples/s", "tokens/s", "data", "whole", "saved"] in rows
    assert ["aare", "1.2k", "157k", "171.0", "kB", "2.8", "MB", "16.2×"] in rows
    assert ["tagus", "35.2", "–", "0", "B", "–", "–"] in rows
    assert sum(row[:1] == ["oder"] for row in rows) == 1  # it has neither
    assert "samples/s" not in shown(board.board(look(status()), every_silo=True), 80)
    assert max(map(len, said.splitlines())) <= 80


def test_json_has_the_same() -> None:
    silo = json.loads(json.dumps(documents.job(at_work())))["silos"][0]
    assert (silo["samples_per_second"], silo["tokens_per_second"]) == (1234.5, 157_000.0)
    assert (silo["bytes"], silo["whole_bytes"]) == (171_000, 2_770_000)


def test_counts_for_people() -> None:
    assert [words.short(n) for n in (0.25, 99.95, 999, 12_345, 3.2e6, 1e12)] == [
        "0.2", "100.0", "999", "12.3k", "3.2M", "1000G",
    ]  # fmt: skip
