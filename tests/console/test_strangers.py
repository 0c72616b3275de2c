"""The four programs as somebody meets them who has read nothing: each answer says what was wrong, where, what to do.

One table, every row twice: for a person, and with `--json`.
"""

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

import auditor.main
import console.main
import server.main
import silo_agent.main
from anabranch import exits
from anabranch.errors import Corrupt, Refused, Unavailable, wording
from anabranch.exits import CORRUPT, FAILED, UNAVAILABLE, USAGE

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
    return root


@pytest.fixture
def here(strange_place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(strange_place)
    for name in ("ANABRANCH_ADMIN", "ANABRANCH_SILO"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    return strange_place


@pytest.mark.parametrize("row", table(), ids=lambda row: row.command)
def test_a_stranger(
    row: Row, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(here.rglob("*"))
    code, out, err = run(row.command, monkeypatch, capsys)
    assert (code, FOREIGN.findall(out + err)) == (row.code, []), out + err
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
    assert sorted(here.rglob("*")) == before
