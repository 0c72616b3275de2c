"""What an honest export looks like to the auditor."""

import json

import pytest

from anabranch.errors import Refused
from anabranch.tlog.checkpoint import Checkpoint, sign
from anabranch.tlog.entry import Target
from anabranch.tlog.merkle import EMPTY_ROOT, Frontier
from anabranch.tlog.tiles import entries_path
from anabranch.wire import canonical
from auditor.export import Export
from auditor.pin import pin
from auditor.tree import read_entries, recompute
from auditor.verify import verify
from tests.auditor.book import ORIGIN, Book, key


def test_an_honest_log_is_verified(story, audit):
    report = audit(story.begin().whole()).report
    assert report.findings == []
    assert report.verified
    assert report.size == len(story.book.entries)
    assert report.updates == {"received": 6, "merged": 5, "retired": 1, "open": 0, "refused": 1}
    assert report.versions == {"digits-1": 3}
    assert report.signatures == 6 + 2 + 1
    assert report.views == 6
    assert report.opened == 1
    assert report.missing == []
    assert report.notes == []


def test_a_log_longer_than_one_bundle(story, audit):
    story.begin()
    for epoch in range(600):
        story.book.log("server.started", Target(kind="server", id="0"), {"release": "0.1.0", "epoch": epoch})
    report = audit(story).report
    assert report.findings == []
    assert report.verified
    assert report.types["server.started"] == 600


def test_an_entry_that_changes_after_it_was_hashed_is_named(story):
    story.begin()
    for epoch in range(300):
        story.book.log("server.started", Target(kind="server", id="0"), {"release": "0.1.0", "epoch": epoch})
    export = Export(story.book.write())
    size = len(story.book.entries)
    tree = recompute(export, size, lambda path, what: pytest.fail(f"{path} {what}"))
    assert [data for _, data in read_entries(export, tree)] == story.book.entries
    last = export.root / entries_path(1, size - 256)
    last.write_bytes(last.read_bytes()[:-1] + b" ")
    with pytest.raises(Refused, match=f"entry {size - 1} changed while it was verified"):
        list(read_entries(export, tree))


def test_open_updates_are_listed(story, audit):
    update = story.begin().update("a", story.lease("a"))
    report = audit(story).report
    assert report.verified
    assert report.open_updates == [update.id]


def test_without_a_pinned_key_a_caution_is_printed(told):
    export = Export(told.book.directory)
    report = verify(export, pin(export, None)).report
    assert report.verified
    assert "--vkey" in report.notes[0]


def test_the_key_may_be_given_as_text_as_file_or_as_federation_json(told, tmp_path):
    export, vkey = Export(told.book.directory), told.book.signer.vkey
    (tmp_path / "key").write_text(vkey + "\n")
    (tmp_path / "federation.json").write_text(json.dumps({"log_vkey": vkey, "log_origin": "x"}))
    for given in (vkey, str(tmp_path / "key"), str(tmp_path / "federation.json")):
        assert pin(export, given).vkey == vkey
        assert not pin(export, given).own


def test_another_key_than_the_pinned_one(told, tmp_path):
    other = Book(tmp_path / "other", log_key=key(2))
    report = verify(Export(told.book.directory), pin(Export(told.book.directory), other.signer.vkey)).report
    assert not report.verified
    assert {finding.step for finding in report.findings} == {1}
    assert report.reached == 1


def test_an_unknown_type_is_counted_and_stays_verifiable(story, audit):
    story.begin()
    known = json.loads(story.book.entries[-1])
    known |= {"type": "witness.cosigned", "action": "cosigned", "detail": {"anything": [1, {"goes": "here"}]}}
    story.book.append(canonical.encode(known))
    report = audit(story.whole()).report
    assert report.findings == []
    assert report.verified
    assert report.not_understood == {"witness.cosigned": 1}


@pytest.mark.parametrize(
    "change",
    [
        {"detail": {"silos": ["a"], "extra": 1}},
        {"detail": {}},
        {"v": 2},
        {"action": "stopped"},
        {"observer": "spiffe://other.example/aggregator/0"},
        {"fed": "other.example"},
    ],
    ids=["extra field", "missing field", "version", "action", "observer", "federation"],
)
def test_an_entry_outside_its_schema_is_found(story, audit, change):
    story.begin()
    story.book.append(canonical.encode(json.loads(story.book.entries[-1]) | change))
    report = audit(story).report
    assert [finding.step for finding in report.findings] == [3]
    assert f"entry {len(story.book.entries) - 1}" in report.findings[0].where


def test_an_entry_that_is_not_canonical_is_found(story, audit):
    story.begin()
    story.book.append(json.dumps(json.loads(story.book.entries[-1]), indent=1).encode())
    assert [finding.step for finding in audit(story).report.findings] == [3]


def test_a_genesis_of_another_log(story, audit):
    document = json.loads(story.book.entries[0])
    document["detail"]["origin"] = "audit.fed.example/other"
    story.book.entries.clear()
    story.book.frontier = Frontier()
    story.book.append(canonical.encode(document))
    findings = audit(story).report.findings
    assert [finding.step for finding in findings] == [3]
    assert "audit.fed.example/other" in findings[0].what


def test_an_empty_log_is_no_log(story, audit):
    story.book.entries.clear()
    story.book.notes[:] = [sign(Checkpoint(ORIGIN, 0, EMPTY_ROOT), story.book.signer)]
    findings = audit(story).report.findings
    assert "log.genesis" in findings[0].what


def test_private_evaluations_may_be_left_out(story, audit):
    report = audit(story.begin().whole(publish=False)).report
    assert report.findings == []
    assert report.verified
    assert [missing.kind for missing in report.missing] == ["evaluation statements"]
    assert report.missing[0].what == "signed for model.evaluated digits-1/1"
    assert "evaluation" in report.notes[0]


def test_files_that_do_not_belong_to_it_are_named(story, audit):
    story.begin().whole()
    (story.book.directory / "README.txt").write_text("hello")
    (story.book.directory / "objects" / "stray").write_text("hello")
    report = audit(story).report
    assert report.verified
    assert "README.txt" in report.notes[0]
    assert "objects/stray" in report.notes[0]
