"""Charges that were killed, or met a full disk: what was acknowledged is there, and nothing is spent twice."""

import json
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import pytest

from anabranch import durable
from anabranch.errors import Unavailable
from silo_agent.budget import ledger as ledger_module
from silo_agent.budget.ledger import Ledger
from tests.silo_agent.budget.conftest import NOON, spend

Reopened = Callable[..., Ledger]


def heads(ledger: Ledger) -> list[str]:
    return [one.hash for one in ledger.charges()]


CHARGES = """
import sys
from pathlib import Path
from tests.silo_agent.budget.conftest import spend
from silo_agent.budget.ledger import Ledger
folder = Path(sys.argv[1])
ledger = Ledger(folder, {})
for number in range(len(ledger.charges()), 100000):
    print(number, "asks", flush=True)
    print(number, ledger.charge(spend(f"l-{number}")).hash, flush=True)
"""


def test_killed_while_charging(tmp_path: Path) -> None:
    """At moments spread over a charge: what was acknowledged is there, and at most the one that was asked for besides."""
    told: dict[int, str] = {}
    for round in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", CHARGES, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2 + round % 3)]
        time.sleep(0.002 * round)
        process.kill()
        lines += process.stdout.read().splitlines()
        process.wait()
        asked = [line.split() for line in lines if len(line.split()) == 2]
        told |= {int(number): head for number, head in asked if len(head) == 64}
        ledger = Ledger(tmp_path, dict.fromkeys(told.values(), tmp_path))
        assert max(told, default=-1) < len(ledger.charges()) <= max(int(number) for number, _ in asked) + 1
        assert all(heads(ledger)[number] == head for number, head in told.items())
    assert len(told) >= 8


def test_killed_between_commit_and_head(
    tmp_path: Path, reopened: Reopened, monkeypatch: pytest.MonkeyPatch
) -> None:
    reopened().charge(spend("l-0"))
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "_mark", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            reopened().charge(spend("l-1"))
    assert json.loads((tmp_path / "ledger-head.json").read_bytes())["sequence"] == 0
    found = reopened()
    assert len(found.charges()) == 2
    found.charge(spend("l-1"))
    assert json.loads((tmp_path / "ledger-head.json").read_bytes())["sequence"] == 1


def test_killed_before_anything_was_written(
    tmp_path: Path, reopened: Reopened, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "_create", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            reopened().charge(spend("l-0"))
    assert not (tmp_path / "ledger.db").exists()
    (tmp_path / "ledger.db").touch()  # or between that and the first row
    assert reopened().charges() == []
    reopened().charge(spend("l-0"))
    assert len(reopened().charges()) == 1


def test_a_full_disk(tmp_path: Path, reopened: Reopened, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite's own word for it, through a limit on the file: nothing is spent, and when there is room it goes on."""
    ledger = reopened()
    for number in range(3):
        ledger.charge(spend(f"l-{number}"))
    connect = sqlite3.connect

    def small(*args: object, **more: object) -> sqlite3.Connection:
        connection = connect(*args, **more)  # type: ignore[call-overload]
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    with monkeypatch.context() as patch:
        patch.setattr(ledger_module.sqlite3, "connect", small)
        with pytest.raises(Unavailable, match="disk is full; make it writable") as error:
            deque((ledger.charge(spend(f"l-{number}")) for number in range(3, 100)), maxlen=0)
    assert "nothing trains privately" in str(error.value)
    before = len(ledger.charges())
    assert [one.spend.cycle for one in reopened().charges()] == [f"l-{n}" for n in range(before)]
    ledger.charge(spend(f"l-{before}"))
    assert len(reopened().charges()) == before + 1


def test_a_full_disk_under_the_head(
    tmp_path: Path, reopened: Reopened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spent although the caller heard otherwise: asked again, it is not charged again."""
    ledger = reopened()
    ledger.charge(spend("l-0"))

    def full(*_: object) -> None:
        raise Unavailable("full")

    with monkeypatch.context() as patch:
        patch.setattr(durable, "write", full)
        with pytest.raises(Unavailable):
            ledger.charge(spend("l-1"))
    assert ledger.charge(spend("l-1")).sequence == 1
    assert len(reopened().charges()) == 2


def test_a_commit_that_failed_may_have_happened(reopened: Reopened, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = reopened()
    ledger.charge(spend("l-0"))
    connected = Ledger._connected

    def failing(self: Ledger):
        class Failing:
            def __enter__(self) -> sqlite3.Connection:
                self.inner = connected(ledger)
                return self.inner.__enter__()

            def __exit__(self, *args: object) -> None:
                self.inner.__exit__(None, None, None)
                raise Unavailable("the disk did not answer")

        return Failing()

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "_connected", failing)
        with pytest.raises(Unavailable):
            ledger.charge(spend("l-1"))
    assert ledger.charge(spend("l-1")).sequence == 1
    assert [one.spend.cycle for one in reopened().charges()] == ["l-0", "l-1"]


def test_a_head_tells_nothing_of_the_numbers(tmp_path: Path) -> None:
    """The same charge at the same moment in two ledgers."""
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        made.append(Ledger(tmp_path / name, {}, lambda: NOON).charge(spend()).hash)
    assert made[0] != made[1]


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_charge_is_on_the_disk_before_it_returns(tmp_path: Path, reopened: Reopened) -> None:
    """Power may go at once: the rows are synced, then the journal goes, and that it has gone is synced as well."""
    reopened(now=time.time()).charge(spend("l-0"))
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom silo_agent.budget.ledger import Ledger\n"
        "from tests.silo_agent.budget.conftest import spend\n"
        "Ledger(Path(sys.argv[1]), {}).charge(spend('l-1'))\nos.write(1, b'returned')"
    )
    trace, calls = tmp_path / "trace", "fsync,fdatasync,unlink,/^rename,write,pwrite64"
    strace = ["strace", "-f", "-y", "-e", f"trace={calls}", "-o", str(trace)]
    done = subprocess.run(
        [*strace, sys.executable, "-c", code, str(tmp_path)], capture_output=True, check=False
    )
    if b"ptrace" in done.stderr.lower():
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    lines = [
        line
        for line in trace.read_text().splitlines()
        if "ledger" in line or "returned" in line or "sync" in line
    ]

    def at(*words: str, after: int = -1) -> int:
        found = [n for n, line in enumerate(lines) if n > after and all(word in line for word in words)]
        assert found, (words, lines)
        return found[0]

    written = at("pwrite64", "ledger.db>")
    synced = at("sync(", "ledger.db>", after=written)
    gone = at("unlink", "ledger.db-journal", after=synced)
    directory = at("sync(", f"{tmp_path}>", after=gone)
    head = at("rename", "ledger-head.json", after=directory)
    at("write(1", "returned", after=at("fsync(", f"{tmp_path}>", after=head))
