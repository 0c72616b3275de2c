"""The commands as a person types them, up to the server that is not there."""

import datetime
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from anabranch import exits
from anabranch.tlog.note import NoteSigner
from anabranch.wire.bundle import FederationInfo
from anabranch.wire.identity import new_tls_key, private_pem, spki_pin
from console import main as console_main


@pytest.fixture
def admin(tmp_path: Path) -> Path:
    """An admin directory of a federation whose server is not running."""
    key = new_tls_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(Encoding.PEM)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    info = FederationInfo(
        server=address,
        enrolment=address,
        ca_pem=pem.decode(),
        ca_pins=(spki_pin(certificate),),
        federation="demo.anabranch",
        log_origin="demo.anabranch/log",
        log_vkey=NoteSigner("demo.anabranch/log", Ed25519PrivateKey.generate()).vkey,
    )
    directory = tmp_path / "admin"
    directory.mkdir()
    for file, content in (("cert", pem), ("ca", pem), ("key", private_pem(key))):
        (directory / f"{file}.pem").write_bytes(content)
    (directory / "federation.json").write_bytes(info.encode())
    return directory


def run(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["anabranch", *arguments])
    with pytest.raises(SystemExit) as ended:
        console_main.main()
    return ended.value.code or 0


def test_an_absent_server_is_unavailable(monkeypatch, admin: Path, capsys) -> None:
    assert run(monkeypatch, "job", "list", "--admin", str(admin), "--json") == exits.UNAVAILABLE
    said = capsys.readouterr()
    error = json.loads(said.out)["error"]
    assert error["kind"] == "unavailable"
    assert "127.0.0.1" in error["message"]
    assert "Traceback" not in said.err


def test_the_admin_directory_may_come_from_the_environment(monkeypatch, admin: Path) -> None:
    monkeypatch.setenv("ANABRANCH_ADMIN", str(admin))
    assert run(monkeypatch, "silo", "list") == exits.UNAVAILABLE


@pytest.mark.parametrize("file", ["cert.pem", "key.pem", "ca.pem", "federation.json"])
def test_an_incomplete_admin_directory_is_named(monkeypatch, admin: Path, capsys, file: str) -> None:
    (admin / file).unlink()
    assert run(monkeypatch, "silo", "list", "--admin", str(admin)) == exits.FAILED
    assert file in capsys.readouterr().err


def test_a_ca_that_is_not_pinned_is_refused(monkeypatch, admin: Path, capsys) -> None:
    info = json.loads((admin / "federation.json").read_text())
    info["ca_pins"] = ["sha256:" + "0" * 64]
    (admin / "federation.json").write_text(json.dumps(info))
    assert run(monkeypatch, "silo", "list", "--admin", str(admin), "--json") == exits.FAILED
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "bad_certificate"


@pytest.mark.parametrize(
    "arguments",
    [
        ["job", "list"],
        ["job", "export", "j", "--admin", "."],
        ["demo", "--silos", "0"],
        ["demo", "--strategy", "magic"],
        ["nonsense"],
    ],
)
def test_usage_errors_exit_with_2(monkeypatch, arguments: list[str]) -> None:
    monkeypatch.delenv("ANABRANCH_ADMIN", raising=False)
    assert run(monkeypatch, *arguments) == exits.USAGE


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["job", "submit", "nowhere"], "nowhere"),
        (["job", "export", "j", "-o", "m.safetensors", "--version", "latest"], "head, best, ema"),
        (["silo", "invite", "aare", "-o", "b.json", "--ttl", "soon"], "--ttl soon"),
    ],
)
def test_bad_values_are_named(monkeypatch, admin: Path, capsys, arguments: list[str], word: str) -> None:
    assert run(monkeypatch, *arguments, "--admin", str(admin)) == exits.FAILED
    assert word in capsys.readouterr().err


def test_the_demo_does_not_empty_somebody_s_directory(monkeypatch, tmp_path: Path, capsys) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert run(monkeypatch, "demo", "--dir", str(tmp_path)) == exits.FAILED
    assert (tmp_path / "thesis.tex").is_file()
    assert "--dir" in capsys.readouterr().err


def test_job_commands_need_no_extras_and_nothing_imports_torch() -> None:
    code = (
        "import sys, console.main; assert not {'sklearn', 'matplotlib', 'torch'} & set(sys.modules);"
        "import console.demo.demo; assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
