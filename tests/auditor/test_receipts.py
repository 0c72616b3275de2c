"""What a silo was promised must be in the log it is shown later."""

import base64
import json

import pytest

from anabranch.errors import Refused
from anabranch.tlog.checkpoint import Checkpoint, sign
from anabranch.tlog.merkle import Frontier, leaf_hash
from auditor.receipts import read_receipts
from tests.auditor.book import ORIGIN


def test_receipts_of_any_age_as_journal_list_or_single_file(story, audit, tmp_path):
    story.begin().whole().book.write()
    size = len(story.book.entries)
    journal = [story.book.receipt(index) for index in range(size)]
    early = [story.book.receipt(3, 4), story.book.receipt(0, 7)]
    (tmp_path / "kept/deep").mkdir(parents=True)
    lines = [json.dumps(one) for one in journal]
    (tmp_path / "kept/receipts.jsonl").write_text("\n".join(lines) + "\n" + '{"torn')
    (tmp_path / "kept/deep/list.json").write_text(json.dumps(early))
    (tmp_path / "single").write_text(json.dumps(early[0], indent=2))
    report = audit(story, [tmp_path / "kept", tmp_path / "single"]).report
    assert report.findings == []
    assert report.receipts == size + 2 + 1


def keep(tmp_path, receipt):
    path = tmp_path / "receipt.json"
    path.write_text(json.dumps(receipt))
    return path


def test_a_receipt_for_an_entry_the_log_does_not_have(story, audit, tmp_path):
    """The server answered, then rolled back and went another way."""
    story.begin()
    story.lease("a")
    story.book.write()
    receipt = story.book.receipt(len(story.book.entries) - 1)
    story.book.entries.pop()
    story.book.rebuild()
    story.lease("b")
    report = audit(story, [keep(tmp_path, receipt)]).report
    assert [finding.step for finding in report.findings] == [7]
    assert "is another one" in report.findings[0].what


def test_a_receipt_younger_than_the_export(story, audit, tmp_path):
    story.begin().whole().book.write()
    receipt = story.book.receipt(2)
    for _ in range(3):
        story.book.entries.pop()
    story.book.rebuild()
    report = audit(story, [keep(tmp_path, receipt)]).report
    assert any(finding.step == 7 and "make a newer export" in finding.what for finding in report.findings)


def test_a_receipt_from_a_fork_that_shares_the_entry(story, audit, tmp_path):
    """Same entry at the same index, but under a tree head this log never had."""
    story.begin().book.write()
    fork = Frontier()
    for entry in [*story.book.entries[:4], b"something else"]:
        fork.append(leaf_hash(entry))
    receipt = story.book.receipt(3, 4)
    receipt["proof"].append(base64.b64encode(leaf_hash(b"something else")).decode())
    receipt["checkpoint"] = sign(Checkpoint(ORIGIN, 5, fork.root()), story.book.signer)
    report = audit(story, [keep(tmp_path, receipt)]).report
    assert [finding.step for finding in report.findings] == [7]
    assert "is not this one" in report.findings[0].what


@pytest.mark.parametrize("part", ["entry", "index", "proof", "checkpoint"])
def test_a_receipt_that_does_not_verify(story, audit, tmp_path, part):
    story.begin().whole().book.write()
    receipt = story.book.receipt(4)
    receipt[part] = {
        "entry": base64.b64encode(story.book.entries[5]).decode(),
        "index": 5,
        "proof": receipt["proof"][:-1],
        "checkpoint": story.book.notes[-2],
    }[part]
    report = audit(story, [keep(tmp_path, receipt)]).report
    assert [finding.step for finding in report.findings] == [7]


@pytest.mark.parametrize(
    "text", ["{}", "[1]", "no json", '{"entry": 1, "index": 0, "proof": [], "checkpoint": ""}']
)
def test_what_is_no_receipt_is_refused(tmp_path, text):
    (tmp_path / "file.json").write_text(text + "\n")
    with pytest.raises(Refused):
        list(read_receipts([tmp_path / "file.json"]))


def test_a_directory_without_receipts_is_refused(tmp_path):
    with pytest.raises(Refused, match="no receipts"):
        list(read_receipts([tmp_path]))
