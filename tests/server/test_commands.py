"""`anabranch-server` as somebody meets it who mistypes things: a sentence, an exit code, nothing written."""

import json
from pathlib import Path

import pytest

from server import main

MISTYPED = {
    "host": ["--host", "bad host"],
    "host with a port": ["--host", "example.org:7443"],
    "federation": ["--host", "localhost", "--federation", "Bad_Name"],
    "federation is an address": ["--host", "localhost", "--federation", "10.0.0.1"],
    "ports": ["--host", "localhost", "--port", "7000", "--health-port", "7000"],
    "admin": ["--host", "localhost", "--admin", "../x"],
}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["anabranch-server", *arguments])
    with pytest.raises(SystemExit) as ended:
        main.main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("mistake", MISTYPED)
def test_init_mistyped(
    mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "server"
    assert run(monkeypatch, "init", str(place), *MISTYPED[mistake], "--json") == 1
    told = capsys.readouterr()
    assert json.loads(told.out)["error"]["kind"] == "refused"
    assert "bug" not in told.err
    assert not place.exists()


def test_a_federation_is_made_once_and_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = str(tmp_path / "server")
    assert run(monkeypatch, "init", place, "--host", "localhost", "--json") == 0
    admin = Path(json.loads(capsys.readouterr().out)["admin"])
    assert {path.name for path in admin.iterdir()} == {"ca.pem", "cert.pem", "federation.json", "key.pem"}
    assert (admin / "key.pem").stat().st_mode & 0o777 == 0o600
    assert run(monkeypatch, "init", place, "--host", "localhost") == 1
    assert "is not empty" in capsys.readouterr().err
    assert run(monkeypatch, "admin", place, "second", "--json") == 0
    capsys.readouterr()
    out = str(tmp_path / "export")
    assert run(monkeypatch, "export", place, "-o", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["entries"] == 3  # genesis, two administrators' certificates
    assert run(monkeypatch, "export", place, "-o", out) == 1
