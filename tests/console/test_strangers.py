"""The four programs as somebody meets them who has read nothing: each answer says what was wrong, where, what to do.

One table, every row twice: for a person, and with `--json`.
"""

import datetime
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import typer
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

import auditor.main
import console.main
import server.main
import silo_agent.main
from anabranch import exits
from anabranch.errors import Unavailable, wording
from anabranch.exits import CORRUPT, FAILED, UNAVAILABLE, USAGE
from anabranch.wire.identity import new_tls_key

PROGRAMS: dict[str, ModuleType] = {
    "anabranch": console.main,
    "anabranch-server": server.main,
    "anabranch-silo": silo_agent.main,
    "anabranch-audit": auditor.main,
}
BIN = Path(sysconfig.get_path("scripts"))
# The system's numbers, a codec's, Python's and pydantic's way of speaking: none of it helps a stranger.
FOREIGN = re.compile(r"Errno|Traceback|codec can't|object at 0x|\bNone\b|for further information|Exception\(")

# Paths: fed (a server's directory, never served), fed/admin/admin, export (of fed), file, garbage (bytes that are no text),
# dir (empty), toml/job.toml (no task beside it).
ADMIN = "--admin fed/admin/admin"
TABLE = """
anabranch jbo                                      | 2 | 'jbo'. Did you mean 'job'? anabranch --help
anabranch job wacth                                | 2 | 'wacth'. Did you mean 'watch'? anabranch job --help
anabranch job watch --onec                         | 2 | --onec --once anabranch job watch --help
anabranch job watch --interval often               | 2 | --interval anabranch job watch --help
anabranch job watch --interval 0                   | 2 | --interval 0.2
anabranch job list                                 | 2 | --admin ANABRANCH_ADMIN
anabranch job pause {admin}                        | 2 | JOB anabranch job pause --help
anabranch job export j {admin}                     | 2 | --output
anabranch demo --strategy magic                    | 2 | magic fedbuff
anabranch job list --admin nowhere                 | 1 | nowhere cert.pem `anabranch-server init` --admin
anabranch job list --admin file                    | 1 | file cert.pem --admin
anabranch job list --admin dir                     | 1 | dir cert.pem --admin
anabranch job list --admin fed                     | 1 | fed server --admin fed/admin/admin
anabranch job list {admin}                         | 3 | localhost:1 serve
anabranch job watch {admin}                        | 3 | localhost:1 serve
anabranch job watch x --once {admin}               | 3 | localhost:1 serve
anabranch job list --admin bad-key                 | 1 | bad-key/key.pem anabranch-server admin SERVER bad-key
anabranch job list --admin bad-info                | 1 | bad-info/federation.json anabranch-server admin
anabranch job list --admin old                     | 1 | old good until clock anabranch-server admin SERVER old
anabranch job submit nowhere {admin}               | 1 | nowhere job.toml
anabranch job submit dir {admin}                   | 1 | dir/job.toml folder
anabranch job submit garbage {admin}               | 1 | garbage UTF-8 TOML
anabranch job submit file {admin}                  | 1 | file TOML
anabranch job submit toml {admin}                  | 1 | toml/job.toml task.py
anabranch job export j -o dir {admin}              | 1 | dir folder name
anabranch job export j -o file/x {admin}           | 3 | file/x name another place
anabranch job export j -o m.md {admin}             | 1 | m.md model.safetensors
anabranch job export j -o m --version new {admin}  | 1 | new head best ema number
anabranch silo invite Bad_Name -o b {admin}        | 1 | Bad_Name lowercase
anabranch silo invite a -o dir {admin}             | 1 | dir folder
anabranch silo invite a -o /proc/x {admin}         | 3 | /proc/x name another place
anabranch silo invite a -o b --ttl soon {admin}    | 1 | soon 30m
anabranch demo --dir file                          | 3 | file folder
anabranch demo --dir fed                           | 1 | fed --dir
anabranch-server sevre fed                         | 2 | 'serve' anabranch-server --help
anabranch-server serve                             | 2 | DIR
anabranch-server serve fed --log-format xml        | 2 | xml text
anabranch-server serve nowhere                     | 1 | nowhere/server.toml anabranch-server init
anabranch-server serve file                        | 3 | file/server.toml folder
anabranch-server serve fed/admin/admin             | 1 | fed/admin/admin administrator
anabranch-server serve agent                       | 1 | agent silo agent
anabranch-server serve misspelt                    | 1 | misspelt/server.toml federatoin
anabranch-server serve no-toml                     | 1 | no-toml/server.toml TOML
anabranch-server serve no-log-key                  | 4 | no-log-key/keys/log.key backup
anabranch-server serve no-root                     | 4 | no-root/keys/root.pem backup
anabranch-server serve no-state                    | 4 | no-state/state/state.db backup
anabranch-server serve bad-state                   | 4 | bad-state/state/state.db backup
anabranch-server export no-state -o x              | 4 | no-state/state/state.db backup
anabranch-server export bad-state -o x             | 4 | bad-state/state/state.db backup
anabranch-server admin no-state x                  | 4 | no-state/state/state.db backup
anabranch-server init fed --host localhost         | 1 | fed not empty new directory
anabranch-server init file --host localhost        | 3 | file folder
anabranch-server init file/x --host localhost      | 3 | file name another place
anabranch-server init /proc/x --host localhost     | 3 | /proc/x check the path
anabranch-server init new                          | 2 | --host
anabranch-server init new --host a:1               | 1 | a:1 without a port
anabranch-server init new --host a --port 99999    | 2 | --port 65535
anabranch-server admin nowhere x                   | 1 | nowhere/server.toml
anabranch-server admin fed Bad                     | 1 | Bad lowercase
anabranch-server export nowhere -o x               | 1 | nowhere/server.toml
anabranch-server export fed -o export              | 1 | export not empty new directory
anabranch-server export fed -o file                | 3 | file folder
anabranch-server export fed -o /proc/x             | 3 | /proc/x check the path
anabranch-silo rnu                                 | 2 | 'run' anabranch-silo --help
anabranch-silo run --dir nowhere                   | 1 | nowhere enrol bundle
anabranch-silo run --dir dir                       | 1 | dir enrol --dir
anabranch-silo run --dir file                      | 1 | file --dir
anabranch-silo run --dir fed                       | 1 | fed server --dir
anabranch-silo run --dir agent                     | 4 | agent/identity --again
anabranch-silo jobs --dir nowhere                  | 1 | nowhere enrol bundle
anabranch-silo approve --yes                       | 2 | JOB
anabranch-silo approve x --yes --dir nowhere       | 1 | nowhere enrol bundle
anabranch-silo deny x --yes --dir fed              | 1 | fed server --dir
anabranch-silo enrol nowhere                       | 1 | nowhere bundle
anabranch-silo enrol dir                           | 1 | dir bundle
anabranch-silo enrol garbage                       | 1 | garbage bundle again
anabranch-silo enrol fed/admin/admin/federation.json | 1 | federation.json bundle token
anabranch-silo try nowhere                         | 1 | nowhere job.toml
anabranch-silo try dir                             | 1 | dir/job.toml
anabranch-silo try garbage                         | 1 | garbage UTF-8
anabranch-silo try toml                            | 1 | policy.toml default --data
anabranch-audit verfy export                       | 2 | 'verify' anabranch-audit --help
anabranch-audit verify                             | 2 | EXPORT
anabranch-audit verify nowhere                     | 1 | nowhere checkpoint anabranch-server export
anabranch-audit verify file                        | 1 | file checkpoint anabranch-server export
anabranch-audit verify fed                         | 1 | fed checkpoint anabranch-server export
anabranch-audit verify export --vkey nowhere       | 1 | nowhere federation.json
anabranch-audit verify export --vkey garbage       | 1 | garbage vkey
anabranch-audit verify export --receipts nowhere   | 2 | nowhere
anabranch-audit verify export --receipts garbage   | 1 | garbage receipts
anabranch-audit replay export --job x              | 1 | x none
anabranch-audit replay export --scratch nowhere    | 2 | nowhere
anabranch-audit lineage export                     | 1 | --job none
anabranch-audit lineage export --version x         | 1 | x head best number
anabranch-audit silo export x                      | 1 | x none
anabranch-audit gaps nowhere                       | 1 | nowhere anabranch-server export
anabranch-audit report export                      | 2 | --out
anabranch-audit report export -o export/x          | 1 | export/x another
anabranch-audit report export -o file              | 1 | file another
anabranch-audit report export -o /proc/x           | 1 | /proc/x another
anabranch-audit report export -o r --since nowhere | 1 | nowhere checkpoint report
anabranch-audit report export -o r --since garbage | 1 | garbage checkpoint
"""


@dataclass(frozen=True)
class Row:
    command: str
    code: int
    words: tuple[str, ...]


def table() -> list[Row]:
    rows = []
    for line in TABLE.strip().splitlines():
        command, code, words = (part.strip() for part in line.split("|"))
        rows.append(Row(command.format(admin=ADMIN), int(code), tuple(words.split())))
    return rows


def run(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    argv = shlex.split(command)
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as ended:
        PROGRAMS[argv[0]].main()
    told = capsys.readouterr()
    return int(ended.value.code or 0), told.out, told.err


@pytest.fixture(scope="module")
def strange_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What lies about on a stranger's disk. Built once; the rows change nothing in it."""
    root = tmp_path_factory.mktemp("place")
    for name in ("dir", "toml", "agent/identity", "misspelt", "no-toml"):
        (root / name).mkdir(parents=True)
    (root / "file").write_text("x")
    (root / "garbage").write_bytes(bytes(range(256)))
    (root / "toml/job.toml").write_text('[job]\nname = "digits"\ntask = "task.py:Digits"\n')
    (root / "agent/policy.toml").write_text("")
    (root / "agent/identity/tls.pem").write_text("garbage")
    (root / "misspelt/server.toml").write_text('federatoin = "a"\n')
    (root / "no-toml/server.toml").write_text("federation = \n")
    init = [
        "init",
        "fed",
        "--host",
        "localhost",
        "--port",
        "1",
        "--enrolment-port",
        "2",
        "--health-port",
        "3",
    ]
    for arguments in (init, ["export", "fed", "-o", "export"]):
        subprocess.run([BIN / "anabranch-server", *arguments], cwd=root, check=True, capture_output=True)
    for name, damaged in (
        ("no-log-key", "keys/log.key"),
        ("no-root", "keys/root.pem"),
        ("no-state", "state/state.db"),
        ("bad-state", "state/state.db"),
    ):
        shutil.copytree(root / "fed", root / name)
        (root / name / damaged).unlink()
        if name.startswith("bad"):
            (root / name / damaged).write_text("garbage" * 100)
    for name, damaged in (("bad-key", "key.pem"), ("bad-info", "federation.json"), ("old", "cert.pem")):
        shutil.copytree(root / "fed/admin/admin", root / name)
        (root / name / damaged).write_text("garbage")
    (root / "old/cert.pem").write_bytes(expired())
    return root


def expired() -> bytes:
    """A certificate of yesterday; that nobody would accept it for other reasons is found out later."""
    key, then = new_tls_key(), datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "yesterday")])
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(then).not_valid_after(then + datetime.timedelta(hours=12))
    return made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


@pytest.fixture
def here(strange_place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(strange_place)
    for name in ("ANABRANCH_ADMIN", "ANABRANCH_SILO"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(
        silo_agent.main, "protect_agent", lambda: None
    )  # the tests' own process stays as it is
    return strange_place


def files(place: Path) -> set[Path]:
    """Without what SQLite keeps beside a database that was read."""
    return {path for path in place.rglob("*") if not path.name.endswith(("-wal", "-shm"))}


@pytest.mark.parametrize("row", table(), ids=lambda row: row.command)
def test_a_stranger(
    row: Row, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(here)
    code, out, err = run(row.command, monkeypatch, capsys)
    assert (code, FOREIGN.findall(out + err)) == (row.code, []), out + err
    assert "\x1b" not in out + err  # no terminal: no colours
    told = " ".join((out + err).split())
    assert [word for word in row.words if word not in told] == [], told
    code, out, _ = run(f"{row.command} --json", monkeypatch, capsys)
    document = json.loads(out)
    assert code == row.code
    if "error" in document:
        error = document["error"]
        kinds = {
            FAILED: {"refused", "conflict"},
            USAGE: {"usage"},
            UNAVAILABLE: {"unavailable"},
            CORRUPT: {"corrupt"},
        }
        assert error["kind"] in kinds[code]
        assert [word for word in row.words if word not in error["message"]] == [], error
    else:
        assert document["verified"] is False
    assert files(here) == before


@pytest.mark.parametrize("number", exits._REMEDIES)
def test_what_the_system_refuses_is_said_with_a_remedy(number: int) -> None:
    error = exits.meant(OSError(number, os.strerror(number), "/srv/fed"))
    assert isinstance(error, Unavailable)
    said = str(error)
    assert said.startswith("/srv/fed: ")
    assert not FOREIGN.search(said)
    assert said.endswith(exits._REMEDIES[number])


def test_an_error_of_the_system_without_a_remedy_is_no_bug_of_ours() -> None:
    assert exits.exit_code(exits.meant(OSError(5, "Input/output error", "/dev/sda"))) == UNAVAILABLE
    assert wording(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")) == "not UTF-8 text"
    assert wording(OSError(2, "No such file or directory", "x")) == "No such file or directory"


def told_by(
    body: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *flags: str
) -> tuple[int, str, str]:
    """How a program whose one command is `body` ends."""
    app = typer.Typer(add_completion=False)
    app.command()(body)
    monkeypatch.setattr(sys, "argv", ["program", *flags])
    with pytest.raises(SystemExit) as ended:
        exits.run("program", app)
    told = capsys.readouterr()
    return int(ended.value.code or 0), told.out, told.err


def test_a_question_that_nobody_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))

    def ask() -> None:
        typer.confirm("Approve exactly this?")

    code, _, err = told_by(ask, monkeypatch, capsys)
    assert code == FAILED
    assert "nothing was done; --yes" in err


def test_a_bug_of_ours_says_so_and_where(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise KeyError("x")

    code, _, err = told_by(broken, monkeypatch, capsys)
    assert code == exits.BUG
    assert "a bug of ours; please report" in err


def test_ctrl_c_is_no_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    assert told_by(interrupted, monkeypatch, capsys) == (exits.INTERRUPTED, "", "")


@pytest.mark.parametrize(
    "command",
    ["anabranch-audit verify export", "anabranch-audit verify nowhere --json", "anabranch --help"],
)
def test_a_reader_that_has_gone_is_not_told_anything(here: Path, command: str) -> None:
    """`| head`: neither a traceback nor Python's complaint at the end."""
    program, *arguments = shlex.split(command)
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [BIN / program, *arguments], cwd=here, stdout=writing, stderr=subprocess.PIPE, check=False
    )
    os.close(writing)
    assert done.returncode == FAILED
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    assert b"BrokenPipe" not in done.stderr
