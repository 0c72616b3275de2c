import json
import re
from html.parser import HTMLParser

import demo_log as fed
import pytest

from console.demo import page, pictures, report
from console.demo.history import tell

VOID = {"meta", "br", "link", "img", "hr"}


def build(killed_at=None):
    history = tell(fed.federation(killed_at=killed_at), fed.JOB)
    killed = None
    if killed_at:
        at = next(v.time for v in history.versions if v.number == killed_at)
        killed = report.Killed(killed_at, at + 0.01, at + 0.4, at + 2.4)
    verify = report.Verdict("anabranch-audit verify EXPORT", 0, fed.VERIFIED)
    replay = report.Verdict("anabranch-audit replay EXPORT", 0, fed.REPLAYED)
    return history, report.build(history, fed.measured(), fed.setup(killed), verify, replay)


def draw(history, document) -> dict[str, str]:
    return {
        "river": pictures.river(history, document),
        "bars": pictures.bars(document),
        "staleness": pictures.staleness(history, document),
    }


def test_figures_per_silo_come_from_the_log() -> None:
    history, document = build()
    silos = {silo["silo"]: silo for silo in document["silos"]}
    assert sum(silo["updates"]["merged"] for silo in silos.values()) == 80
    assert sum(silo["updates"]["retired"] for silo in silos.values()) == 1
    assert silos["danube"]["updates"]["refused"] == 1
    assert silos["danube"]["refused_because"] == ["too_stale"]
    for silo in silos.values():
        updates = silo["updates"]
        assert updates["sent"] == sum(updates[fate] for fate in ("merged", "refused", "retired", "open"))
        assert silo["bytes"] == 19_000 * len(history.of(silo["silo"]))
    assert (
        silos["tagus"]["mean_staleness"] > silos["loire"]["mean_staleness"] > silos["aare"]["mean_staleness"]
    )


def test_the_verdict_says_when_federation_wins_and_where_local_does() -> None:
    _, document = build()
    assert document["verdict"]["federated_beats_every_local_on_all"]
    wins = [silo["silo"] for silo in document["silos"] if silo["local_wins_on_own"]]
    assert wins == ["elbe", "loire", "tagus"]


def test_a_failed_verdict_is_not_dressed_up() -> None:
    history, _ = build()
    measured = fed.measured()
    measured["silos"]["tagus"]["local"]["all"] = 0.99
    bad = report.Verdict(
        "anabranch-audit verify EXPORT", 1, {"error": {"message": "entry 17 <b>differs</b>"}}
    )
    document = report.build(history, measured, fed.setup(), bad, bad)
    assert not document["verdict"]["federated_beats_every_local_on_all"]
    html = page.render(document, draw(history, document))
    assert "did not beat every silo alone" in html
    assert "Log did not verify" in html
    assert "entry 17 &lt;b&gt;differs" in html


def test_the_auditor_s_first_finding_is_shown() -> None:
    history, _ = build()
    finding = {"step": 5, "where": "entry 9", "what": "merged twice"}
    verify = report.Verdict("verify", 1, {**fed.VERIFIED, "findings": [finding]})
    differs = {
        "replayed": 40,
        "exact": 39,
        "different": [{"version": 7, "first": "0.bias[3]"}],
        "digest_only": [],
    }
    replay = report.Verdict("replay", 1, {"verify": fed.VERIFIED, "replay": differs})
    log = report.build(history, fed.measured(), fed.setup(), verify, replay)["log"]
    assert log["verify"]["words"] == "entry 9: merged twice"
    assert log["replay"]["words"] == "Version 7 differs: 0.bias[3]"


def test_a_replay_that_rests_on_digests_is_not_bit_exact() -> None:
    history, _ = build()
    partly = {"replayed": 39, "exact": 39, "different": [], "digest_only": [{"version": 1, "missing": ["x"]}]}
    verify = report.Verdict("verify", 0, fed.VERIFIED)
    replay = report.Verdict("replay", 0, {"verify": fed.VERIFIED, "replay": partly})
    document = report.build(history, fed.measured(), fed.setup(), verify, replay)
    assert not document["verdict"]["replayed_bit_exactly"]
    assert "1 more rest on their digests only" in document["log"]["replay"]["words"]


def test_a_kill_reports_the_gap_and_that_nothing_was_lost() -> None:
    history, document = build(killed_at=20)
    killed = document["server_killed"]
    assert killed["seconds_until_next_update"] == pytest.approx(
        min(u.received for u in history.updates if u.received > history.started + killed["seconds"] + 0.39)
        - history.started
        - killed["seconds"],
        abs=1e-3,
    )
    assert (killed["of_those_lost"], killed["of_those_merged_twice"]) == (0, 0)
    assert (
        killed["acknowledged_before"]
        == killed["of_those_merged_once"] + killed["of_those_retired_or_refused"]
    )
    assert "0 lost and 0 merged" in page.render(document, draw(history, document)).replace("\n", " ")


def test_the_report_is_json() -> None:
    _, document = build()
    assert json.loads(json.dumps(document)) == document


class Balanced(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.ids += [value for key, value in attrs if key == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.ids += [value for key, value in attrs if key == "id"]

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_alone_and_is_well_formed() -> None:
    history, document = build(killed_at=20)
    html = page.render(document, draw(history, document))
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids))
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\"'\s)]+", html)) <= namespaces
    assert "<script" not in html
    assert document["model"]["sha256"] == fed.digest("e40")
    assert document["model"]["sha256"] in html
    assert all(silo in html for silo in fed.SILOS)


def test_pictures_take_the_page_s_colours() -> None:
    history, document = build()
    for svg in draw(history, document).values():
        assert not re.search(r"#0[0-9ab]0[0-9ab]0[0-9ab]", svg)
        assert "var(--muted)" in svg
        assert "DejaVu" not in svg


def test_pictures_are_the_same_every_time() -> None:
    history, document = build()
    assert draw(history, document) == draw(history, document)
