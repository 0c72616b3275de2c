"""What the demo's report says of revival, from a log that has some."""

from dataclasses import replace
from pathlib import Path

import demo_log as fed
import pytest

from anabranch.errors import Refused
from anabranch.tlog.entry import Entry, Target
from anabranch.wire.canonical import hexfloat
from console.demo import data, measure, page, pictures, report, worth
from console.demo.federation import Place
from console.demo.history import tell
from console.demo.settings import Settings, job_file, slowness

JOB = Path(__file__).parents[2] / "console" / "demo" / "job"


def log() -> list[Entry]:
    """Revival r1 is used in version 5, r2 is dropped as too late, r3 fails and r4 does not pay."""
    entries = fed.federation()
    told = fed.Log()

    def add(type: str, name: str, detail: dict) -> None:
        target = Target(kind="revival", id=name)
        told.add(fed.START + 9, type, {"revival": name, "version": 3, **detail}, target=target)

    for name, seconds in (("r1", 0.25), ("r2", 0.75)):
        teachers = [{"silo": silo, "update": f"u-{silo}"} for silo in ("aare", "tagus")]
        libraries = {"torch": "2.13.0"}
        made = {"teachers": teachers, "seed": 0, "device": "cpu", "libraries": libraries}
        numbers = {"norm": hexfloat(1.0), "seconds": hexfloat(seconds), "delta_sha256": "0" * 64}
        add("revival.performed", name, {**made, **numbers})
    add("revival.skipped", "r2", {"reason": "late"})
    add("revival.skipped", "r3", {"reason": "failed", "why": "ValueError"})
    add("revival.skipped", "r4", {"reason": "not_worth", "why": "slow"})
    place = next(
        n for n, e in enumerate(entries) if e.type == "aggregation.performed" and e.detail.version == 5
    )
    before = entries[place]
    uses = before.model_copy(update={"detail": before.detail.model_copy(update={"revival": "r1"})})
    return [*entries[:place], *told.entries, uses, *entries[place + 1 :]]


def build(revive: float, fedbuff: float = 0.5) -> dict:
    """The document's part when the entrant with a reviver ends at `revive`, and ca2fl at 0.6."""
    history = tell(log(), fed.JOB)
    entrants = []
    for name, end in (("fedbuff", fedbuff), ("ca2fl", 0.6), ("revive", revive)):
        versions = {str(version.number): end for version in history.versions}
        entrants.append(worth.Entrant(name, history, {"versions": versions, "averages": {}}))
    return worth.build(entrants)


def test_what_became_of_revivals_is_read_from_the_log() -> None:
    told = build(0.7)["reviver"]
    assert (told["tasks"], told["results"], told["used"], told["first_used"]) == (4, 2, 1, 5)
    assert told["not_used"] == {"late": 1, "failed: ValueError": 1, "not_worth: slow": 1}
    assert told["teachers"] == {"aare": 1, "danube": 0, "elbe": 0, "loire": 0, "tagus": 1}
    assert told["seconds"] == 0.5
    assert told["fastest_task_seconds"] > 0


def test_the_cost_is_told_against_the_fastest_silo_s_task() -> None:
    told = {**build(0.7)["reviver"], "fastest_task_seconds": 2.0}
    assert "25% of a task of the fastest silo" in worth.cost(told)
    assert "1 late" in worth.cost(told)
    assert worth.cost({**told, "used": 0}).startswith("No result of the reviver was used.")


@pytest.mark.parametrize(
    ("revive", "fedbuff", "words"),
    [
        (0.7, 0.5, "Here it was: +10.0\u00a0points beside ca2fl, the same job without a reviver."),
        (0.55, 0.5, "Not here: −5.0\u00a0points beside ca2fl, the same job without a reviver."),
        (
            0.7,
            0.9,
            "Not here: fedbuff did best. Revival is −20.0\u00a0points to it, +10.0\u00a0points beside ca2fl",
        ),
    ],
)
def test_the_page_says_who_won_whoever_it_was(revive: float, fedbuff: float, words: str) -> None:
    history = tell(log(), fed.JOB)
    setup = replace(fed.setup(), strategy="revive", concentration=None)
    verify = report.Verdict("anabranch-audit verify EXPORT", 0, fed.VERIFIED)
    replay = report.Verdict("anabranch-audit replay EXPORT", 0, fed.REPLAYED)
    document = report.build(history, fed.measured(), setup, verify, replay)
    document["revival"] = build(revive, fedbuff)
    drawn = {
        "river": pictures.river(history, document),
        "bars": pictures.bars(document),
        "staleness": pictures.staleness(history, document),
        "race": pictures.race(document["revival"]),
    }
    shown = page.render(document, drawn)
    assert words in shown
    assert "no two silos have a digit in common" in shown
    document["revival"]["reviver"]["used"] = 0
    assert "its row is another run of ca2fl" in page.render(document, drawn)


def test_dealt_apart_no_two_silos_have_a_digit_in_common() -> None:
    for silos, seed in ((5, 0), (3, 1), (10, 2)):
        parts = data.deal(silos, seed, apart=True)
        holders = [sum(part.counts()[digit] > 0 for part in parts) for digit in range(10)]
        assert holders == [1] * 10
    parts = data.deal(12, 0, apart=True)
    assert all(len(part.held_out) > 0 for part in parts)
    assert sum(sum(part.counts()) for part in parts) == 1797


def test_revive_is_judged_beside_the_same_job_without_a_reviver() -> None:
    settings = Settings(5, 7, "revive", 80, None, Path("x"), False)
    files = {entrant: job_file(JOB, settings, entrant) for entrant in settings.entrants}
    assert [file.aggregation.strategy for file in files.values()] == ["fedbuff", "ca2fl", "ca2fl"]
    assert [file.revival is not None for file in files.values()] == [False, False, True]
    assert len({(file.job.seed, file.stop.versions, file.aggregation.buffer) for file in files.values()}) == 1
    plain = Settings(5, 7, "ca2fl", 80, None, Path("x"), False)
    assert plain.entrants == ("ca2fl",)
    assert slowness(plain.silos)[-1] == 10


def test_a_program_that_takes_too_long_is_a_sentence(monkeypatch, tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr(measure, "program", lambda _: str(slow))
    monkeypatch.setattr(measure, "PROGRAM_SECONDS", 0.2)
    place = Place(tmp_path)
    place.logs.mkdir()
    with pytest.raises(Refused, match="the export of the log did not finish"):
        measure.export(place)
