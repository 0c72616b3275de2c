"""The commands as a person, or a script, meets them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_verify_an_honest_export(told, run):
    code, out, _ = run("verify", told.book.directory, "--vkey", told.book.signer.vkey)
    assert code == 0
    assert "VERIFIED" in out
    assert "NOT VERIFIED" not in out
    assert "6 updates received: 5 merged, 1 retired, 0 open" in " ".join(out.split())


def test_replay_an_honest_export(told, run):
    code, out, _ = run("replay", told.book.directory, "--vkey", told.book.signer.vkey)
    assert code == 0
    assert "replayed: 3/3 steps exact" in out


def test_json_is_one_document(told, run):
    code, out, _ = run("verify", told.book.directory, "--json")
    document = json.loads(out)
    assert (code, document["verified"]) == (0, True)
    assert document["updates"] == {"received": 6, "merged": 5, "retired": 1, "open": 0, "refused": 1}
    assert document["log"]["size"] == len(told.book.entries)

    code, out, _ = run("replay", told.book.directory, "--json", "--job", "digits-1")
    document = json.loads(out)
    assert code == 0
    assert document["verify"]["verified"]
    assert document["replay"] == {
        "replayed": 3,
        "exact": 3,
        "different": [],
        "digest_only": [],
        "missing": [],
    }


@pytest.mark.parametrize("command", ["verify", "replay"])
def test_a_tampered_export_fails_and_says_where(told, run, command):
    path = next((told.book.directory / "objects").iterdir())
    path.write_bytes(path.read_bytes() + b"x")
    code, out, _ = run(command, told.book.directory)
    assert code == 1
    assert "NOT VERIFIED" in out
    assert path.name[:16] in out
    assert "steps exact" not in out


def test_receipts_are_asked_for_by_option(told, run, tmp_path):
    (tmp_path / "kept.json").write_text(json.dumps(told.book.receipt(3)))
    code, out, _ = run("verify", told.book.directory, "--receipts", tmp_path / "kept.json")
    assert code == 0
    assert "1 kept by silos are in the log" in out


def test_errors_have_a_message_and_a_code(told, run, tmp_path):
    code, out, err = run("verify", tmp_path / "nowhere", "--json")
    assert code == 1
    assert json.loads(out)["error"]["code"] == "not_found"
    assert "no audit export" in err
    code, _, err = run("verify", told.book.directory, "--vkey", "nonsense")
    assert code == 1
    assert "nonsense is no file here, and not a vkey" in err
    code, _, err = run("replay", told.book.directory, "--job", "nothing")
    assert code == 1
    assert "digits-1" in err
    code, _, _ = run("verify")
    assert code == 2


def test_text_from_an_export_cannot_paint_the_terminal(told, run):
    """Names in an export are hostile: neither markup nor control characters get through."""
    (told.book.directory / "[red]stray\x1b[31m\udcff").write_text("x")
    _, out, _ = run("verify", told.book.directory)
    assert "\x1b" not in out
    assert "[red]stray" in out
    _, out, _ = run("verify", told.book.directory, "--json")
    assert "[red]stray" in json.loads(out)["notes"][-1]


def test_the_auditor_knows_neither_server_nor_agent_nor_network():
    program = "import sys, auditor.main; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not {"server", "silo_agent", "console", "grpc", "torch", "sqlalchemy"} & set(done.stdout.split())
