"""The report of a log: what is in it, what is new in it, and that it is safe to open."""

import json
import re
from html.parser import HTMLParser

import pytest

from tests.auditor import trouble
from tests.auditor.book import Book
from tests.auditor.story import Story

JOB = "digits-1"


def reported(run, story, out, *arguments):
    code, text, err = run("report", story.book.directory, "-o", out, "--json", *arguments)
    assert code == 0, err or text
    document = json.loads(text)
    written = document.pop("written")
    assert written == {name: str(out / name) for name in ("report.html", "report.json", "checkpoint")}
    assert json.loads((out / "report.json").read_text()) == document
    return document


def test_it_tells_who_took_part_and_who_was_absent(busy, run, tmp_path):
    document = reported(run, busy, tmp_path / "out")
    rows = {row["silo"]: row for row in document["participation"]}
    assert sorted(rows) == ["a", "b"]
    assert (rows["a"]["merged"], rows["a"]["released"], rows["a"]["evaluations"]) == (2, 1, 1)
    assert rows["b"]["absent"] == [1]
    assert (rows["b"]["staleness_mean"], rows["b"]["refused"]) == (1.0, 1)
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1, abs=1e-5)
    assert document["silos"] == [
        {"silo": "a", "standing": "enrolled", "away": False},
        {"silo": "b", "standing": "enrolled", "away": True},
        {"silo": "c", "standing": "revoked", "away": False},
        {"silo": "d", "standing": "invited", "away": False},
    ]
    assert document["refusals"] == [{"code": "too_stale", "silo": "b", "count": 1}]
    assert document["turned_away"] == {"bad_token": 7}
    assert [line["type"] for line in document["approvals"]] == [
        "job.approved",
        "job.approved",
        "job.denied",
        "job.approved",
        "job.withdrawn",
    ]
    incidents = [line["type"] for line in document["incidents"]]
    assert sorted(incidents) == sorted(
        ["lease.released", "silo.lost", "silo.lost", "silo.returned", "server.started", "auth.failed"]
    )
    assert "silo b is away" in document["attention"]
    assert (
        document["jobs"][0] | {"closed_by_deadline": 1, "versions_made": 2, "best": 1} == document["jobs"][0]
    )


def test_each_release_has_its_certificate(busy, run, tmp_path):
    document = reported(run, busy, tmp_path / "out")
    plain, average = sorted(document["releases"], key=lambda one: one["file"])
    assert (plain["version"], plain["sha256"]) == (2, busy.view(2))
    assert average["file"] == "running average (ema)"
    assert plain["handed_out"][0]["to"].endswith("/admin/owner")
    assert plain["terms"]["sha256"] == busy.terms.digest()
    assert {one["silo"]: one["updates"] for one in plain["silos"]} == {"a": 2, "b": 1}
    assert plain["counts"] == {"versions": 2, "updates": 3, "closed_by_deadline": 1, "evaluated_by": []}
    assert plain["replay"]["words"] == "all 2 steps recomputed bit for bit"
    assert plain["approved_without_updates"] == []  # c had withdrawn


def test_the_head_of_a_completed_job_is_a_release(told, run, tmp_path):
    (one,) = reported(run, told, tmp_path / "out")["releases"]
    assert (one["version"], one["handed_out"], one["replay"]["verdict"]) == (3, [], "exact")


def test_replay_may_be_left_out_or_fail_for_want_of_a_delta(told, run, tmp_path):
    (one,) = reported(run, told, tmp_path / "out", "--no-replay")["releases"]
    assert one["replay"]["verdict"] == "none"
    logged = map(json.loads, told.book.entries)
    performed = [one["detail"] for one in logged if one["type"] == "aggregation.performed"]
    told.book.path(performed[1]["inputs"][0]["delta_sha256"]).unlink()
    code, text, _ = run("report", told.book.directory, "-o", tmp_path / "out", "--json")
    document = json.loads(text)
    (one,) = document["releases"]
    assert (code, one["replay"]["verdict"]) == (1, "missing")
    assert one["replay"]["words"].startswith("version 2 cannot be recomputed: delta of update")
    assert document["attention"][0] == "not there to be recomputed: 1 version"
    assert "Replay failed" in (tmp_path / "out" / "report.html").read_text()


def test_a_model_that_cannot_be_reproduced_fails_the_report(story, run, tmp_path):
    story.begin()
    update = story.update("a", story.lease("a"))
    story.aggregate([update])
    logged = json.loads(story.book.entries[-1])
    assert logged["type"] == "model.published"
    parameters = logged["detail"]["parameters_sha256"]
    assert parameters
    story.book.entries[-1] = story.book.entries[-1].replace(parameters.encode(), story.view(0).encode())
    story.book.rebuild()
    code, text, _ = run("report", story.book.write(), "-o", tmp_path / "out", "--json")
    document = json.loads(text)
    assert code == 1
    assert document["verified"]
    assert document["attention"][0] == "not reproduced: 1 version"
    assert "Replay failed" in (tmp_path / "out" / "report.html").read_text()


def test_since_the_last_review_only_what_is_new_is_told(story, run, tmp_path):
    story.begin().whole().book.write()
    first = reported(run, story, tmp_path / "first")
    assert first["since"] is None
    size = len(story.book.entries)
    trouble.start_server(story, 3)
    trouble.start_server(story, 4)
    trouble.turn_away(story)
    trouble.export(story, 3)
    story.book.write()
    second = reported(run, story, tmp_path / "second", "--since", tmp_path / "first" / "checkpoint")
    assert (second["since"]["size"], second["since"]["entries_new"]) == (size, 4)
    assert (second["approvals"], second["refusals"], second["participation"]) == ([], [], [])
    assert [line["entry"] for line in second["incidents"]] == [size + 1, size + 2]
    (one,) = second["releases"]
    assert one["handed_out"][0]["entry"] == size + 3
    assert one["counts"]["updates"] == 5  # a certificate is of the whole lineage
    assert f"after the {size} already reviewed" in (tmp_path / "second" / "report.html").read_text()


def test_a_log_that_does_not_continue_the_reviewed_one(story, run, tmp_path):
    story.begin().whole().book.write()
    reported(run, story, tmp_path / "first")
    kept = tmp_path / "first" / "checkpoint"
    fork = trouble.busy(Story(Book(tmp_path / "fork")).begin(trouble.OFTEN))
    code, text, _ = run("report", fork.book.write(), "-o", tmp_path / "out", "--since", kept, "--json")
    document = json.loads(text)
    assert code == 1
    assert "history was rewritten" in document["verify"]["findings"][0]["what"]
    assert not (tmp_path / "out" / "checkpoint").exists()
    page = (tmp_path / "out" / "report.html").read_text()
    assert "is not verified" in page
    assert "Participation" not in page
    shorter = Story(Book(tmp_path / "shorter")).begin()
    code, text, _ = run("report", shorter.book.write(), "-o", tmp_path / "out", "--since", kept, "--json")
    assert code == 1
    assert "cut short" in json.loads(text)["verify"]["findings"][0]["what"]


def test_since_must_be_a_checkpoint_of_this_log(told, run, tmp_path):
    foreign = Book(tmp_path / "other", log_key=told.update_key("a"))
    foreign.write()
    (tmp_path / "text").write_text("hello")
    for path in (foreign.directory / "checkpoint", tmp_path / "text", tmp_path / "nowhere"):
        code, _, err = run("report", told.book.directory, "-o", tmp_path / "out", "--since", path)
        assert code == 1
        assert "--since" in err


def test_where_it_cannot_be_written(told, run, tmp_path):
    (tmp_path / "file").write_text("x")
    code, _, err = run("report", told.book.directory, "-o", tmp_path / "file")
    assert code == 1
    assert "cannot be written" in err
    before = sorted(told.book.directory.rglob("*"))
    for inside in (told.book.directory, told.book.directory / "new"):
        code, _, err = run("report", told.book.directory, "-o", inside)
        assert code == 1
        assert "lies in the export" in err
    assert sorted(told.book.directory.rglob("*")) == before


class Balanced(HTMLParser):
    """Tags in order, each closed."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], set()

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        assert not {"src", "href", "onclick"} & {name for name, _ in attrs}
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_one_file_with_nothing_to_fetch(busy, run, tmp_path):
    reported(run, busy, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert not {"script", "link", "img", "iframe"} & parser.seen
    assert not re.search(r"https?://|url\(|@import", page)
    assert page.count('class="certificate"') == 2
    for title in (
        "Participation",
        "Refusals",
        "Approvals",
        "Identity",
        "Administration",
        "Incidents",
        "Still open",
    ):
        assert f"<h2>{title}</h2>" in page


def test_text_from_an_export_cannot_become_markup(told, run, tmp_path):
    (told.book.directory / "<script>alert(1)<script>").write_text("x")
    reported(run, told, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_it_is_the_same_again(busy, run, tmp_path):
    one, other = (tmp_path / name for name in ("one", "other"))
    reported(run, busy, one)
    reported(run, busy, other)
    for name in ("report.html", "report.json", "checkpoint"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
