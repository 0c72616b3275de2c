"""lineage and silo, and what they share with gaps and report: the questions a reviewer asks of a log that is verified."""

import json

import pytest

from anabranch.wire import canonical
from auditor.export import Export
from auditor.parsing import revive
from auditor.pin import pin
from auditor.verify import verify
from auditor.words import say
from tests.auditor.book import Book

JOB = "digits-1"


def test_lineage_tells_every_update_in_order(told, run, asked):
    found = asked("lineage", told.book.directory)["lineage"]
    assert (found["job"], found["version"], found["asked_for"]["part"]) == (JOB, 3, "parameters")
    assert found["files"]["parameters"] == told.view(3)
    assert found["terms"] == {"sha256": told.terms.digest(), "in_export": True}
    logged = [canonical.decode(entry) for entry in told.book.entries]
    performed = [one["detail"] for one in logged if one["type"] == "aggregation.performed"]
    assert [step["version"] for step in found["steps"]] == [1, 2, 3]
    for step, detail in zip(found["steps"], performed, strict=True):
        assert [one["update"] for one in step["inputs"]] == [one["update"] for one in detail["inputs"]]
        for given, said in zip(step["inputs"], detail["inputs"], strict=True):
            assert {key: given[key] for key in said} == said
            received = logged[given["received_entry"]]
            assert (received["type"], received["detail"]["update"]) == ("update.received", given["update"])
            assert given["examples"] == 10 + int(given["update"].removeprefix("update-"))
    late = [(one["silo"], one["staleness"]) for one in found["steps"][1]["inputs"]]
    assert late == [("a", 0), ("b", 1)]


def test_shares_are_of_all_coefficients(told, run, asked):
    found = asked("lineage", told.book.directory)["lineage"]
    given = {"a": 0.0, "b": 0.0}
    for step in found["steps"]:
        for one in step["inputs"]:
            given[one["silo"]] += canonical.from_hexfloat(one["coefficient"])
    total = sum(given.values())
    assert {one["silo"]: one["share"] for one in found["silos"]} == {
        silo: round(value / total, 6) for silo, value in given.items()
    }
    for one in found["silos"]:
        assert one["approved_entry"] < one["first_update_entry"]


@pytest.mark.parametrize(("version", "steps"), [("head", 3), ("2", 2), ("0", 0)])
def test_lineage_of_a_version(told, run, asked, version, steps):
    found = asked("lineage", told.book.directory, "--version", version)["lineage"]
    assert len(found["steps"]) == steps
    code, out, _ = run("lineage", told.book.directory, "--version", version, "--job", JOB)
    assert code == 0
    assert f"version {steps} of {JOB}" in out


def test_a_model_file_is_found_by_its_bytes(busy, run, asked, tmp_path):
    for part in ("parameters", "ema"):
        (tmp_path / "model").write_bytes(busy.heads[2][part].read_bytes())
        found = asked("lineage", busy.book.directory, "--version", tmp_path / "model")["lineage"]
        assert (found["version"], found["asked_for"]["part"]) == (2, part)
    assert asked("lineage", busy.book.directory, "--version", "best")["lineage"]["version"] == 1
    (tmp_path / "model").write_bytes(b"something else")
    code, _, err = run("lineage", busy.book.directory, "--version", tmp_path / "model")
    assert code == 1
    assert canonical.sha256(b"something else") in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--job", "nothing"), JOB),
        (("--version", "7"), "its head is 3"),
        (("--version", "best"), "--version head"),
        (("--version", "nowhere.safetensors"), "no file that can be read"),
        (("--version", "/dev"), "not"),
    ],
)
def test_lineage_of_what_is_not_there(told, run, arguments, said):
    code, out, err = run("lineage", told.book.directory, *arguments, "--json")
    assert code == 1
    assert said in err
    assert json.loads(out)["error"]["code"] == "not_found"


# silo


def test_everything_about_a_silo(busy, run, asked):
    found = asked("silo", busy.book.directory, "b")["silo"]
    assert found["standing"] == "enrolled"
    assert found["decisions"] == {JOB: "approved"}
    assert found["leases"] == {"train": 2, "evaluate": 0}
    assert len(found["open_leases"]) == 1
    assert found["updates"]["received"] == found["updates"]["merged"] == 1
    assert found["updates"]["refused"] == {"too_stale": 1}
    assert found["absent_from_versions"] == 1
    assert found["lost"] == 2
    assert found["away_since_entry"] == len(busy.book.entries) - 2
    entries = [event["entry"] for event in found["events"]]
    assert entries == sorted(entries)
    told = " | ".join(event["what"] for event in found["events"])
    for what in (
        "invites silo b",
        "enrols agent 0",
        "certificate issued to silo b",
        f"approves job {JOB}",
        f"job {JOB} starts with a, b",
        "fell silent",
        "is back",
        "absent: version 1",
        "refused: too_stale",
        "paused",
        "merged into version 2 of digits-1, 1 version late",
    ):
        assert what in told
    assert "silo a " not in told.replace("starts with a, b", "")


def test_a_silo_that_left(busy, run, asked):
    found = asked("silo", busy.book.directory, "c")["silo"]
    assert found["standing"] == "revoked"
    assert found["decisions"] == {JOB: "withdrawn"}
    words = [event["what"] for event in found["events"]]
    assert sum(f"job {JOB}" in what for what in words) == 5  # three decisions; paused and resumed later
    code, out, _ = run("silo", busy.book.directory, "c")
    assert code == 0
    assert "revokes silo c (left)" in out


def test_a_silo_nobody_knows(told, run):
    code, _, err = run("silo", told.book.directory, "zebra")
    assert code == 1
    assert "its silos are: a, b" in err


# what all of them share


@pytest.mark.parametrize(
    "command", [("lineage",), ("silo", "a"), ("gaps",), ("report", "-o", "out")], ids=lambda one: one[0]
)
def test_nothing_is_told_of_a_log_that_is_not_verified(told, run, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bundle = next((told.book.directory / "tile" / "entries").rglob("*[0-9]"))
    for path in (bundle, told.book.directory / "checkpoint", told.book.path(told.view(1))):
        honest = path.read_bytes()
        path.write_bytes(honest[:-5] + bytes([honest[-5] ^ 1]) + honest[-4:])
        name, *rest = command
        code, out, _ = run(name, told.book.directory, *rest, "--json")
        path.write_bytes(honest)
        document = json.loads(out)
        assert code == 1
        assert not document["verify"]["verified"]
        assert document.get(name) is None or name == "gaps"
        assert "participation" not in document
        code, out, _ = run(name, told.book.directory, *rest)
        assert code == 0


def test_each_command_pins_the_key(told, run, tmp_path):
    other = Book(tmp_path / "other", log_key=told.update_key("a")).signer.vkey
    for command in (("lineage",), ("silo", "a"), ("gaps",), ("report", "-o", tmp_path / "out")):
        name, *rest = command
        assert run(name, told.book.directory, *rest, "--vkey", other)[0] == 1
        assert run(name, told.book.directory, *rest, "--vkey", told.book.signer.vkey)[0] == 0


def test_every_entry_has_words(busy):
    for data in busy.book.entries:
        entry = revive(data)
        words = say(entry)
        assert words != entry.type
        assert len(words) > 10


def test_a_busy_story_is_verified(busy):
    export = Export(busy.book.directory)
    assert verify(export, pin(export, None)).report.findings == []
