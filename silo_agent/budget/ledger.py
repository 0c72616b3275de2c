"""The ledger: every privacy event of this silo's data sets, in one chain of hashes that only grows.

A row is written, and on stable storage, before the first record of its cycle is read for training. Nothing takes a row
back: what was spent by a cycle that crashed, or whose update was refused, is spent.

Beside `ledger.db` lies `ledger-head.json`, which says how far the chain has come. The two, and every head that this silo
has signed in an update, have to agree; where they do not, nobody knows what was spent, and nothing trains.
"""

import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anabranch import durable
from anabranch.errors import AnabranchError, Corrupt, Misuse, Reason, Refused, Unavailable
from anabranch.privacy import Unit
from anabranch.wire import canonical
from silo_agent.budget.accounting import Event
from silo_agent.budget.witnesses import signed_heads
from silo_agent.config import Home

FIRST = "0" * 64  # what the first row follows
CLOCK_TOLERANCE = 60.0  # seconds that a clock may be set back
BUSY_SECONDS = 10.0  # another process reads
RESTORE = (
    "Restore both from one backup, the newest there is. Without one nobody knows what was spent: whoever answers for the "
    "data decides what happens then (docs/privacy.md)"
)
_COLUMNS = (
    "sequence", "binding", "job", "cycle", "unit", "units", "sample_rate", "noise_multiplier", "steps", "epsilon", "delta",
    "cycles_max", "time", "salt", "previous", "hash",
)  # fmt: skip
_CREATE = f"""CREATE TABLE IF NOT EXISTS events (
    {_COLUMNS[0]} INTEGER PRIMARY KEY, {", ".join(f"{name} NOT NULL" for name in _COLUMNS[1:])}, UNIQUE (job, cycle))"""
_INSERT = f"INSERT INTO events ({', '.join(_COLUMNS)}) VALUES ({', '.join(':' + name for name in _COLUMNS)})"  # noqa: S608
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM events ORDER BY sequence"  # noqa: S608 - names of ours
_BROKEN = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR})


@dataclass(frozen=True)
class Spend:
    """What a job asks of a data set for one cycle, and what its terms promise for all of them."""

    binding: str  # the data's name in policy.toml
    job: str
    cycle: str  # the lease
    unit: Unit
    units: int  # in the data set, as it was counted for this cycle
    event: Event
    epsilon: float  # of the whole job
    delta: float
    cycles_max: int


@dataclass(frozen=True)
class Charge:
    """A row: what was spent, when, and its place in the chain."""

    sequence: int
    spend: Spend
    time: float  # unix seconds
    hash: str


class Ledger:
    """For all threads of one agent. Other processes of this home may open it to read."""

    def __init__(
        self, folder: Path, signed: Mapping[str, Path], clock: Callable[[], float] = time.time
    ) -> None:
        """`folder`: the agent's directory. `signed`: heads in what this silo has signed, and where each was found.

        Nothing is created before the first charge. Raises Corrupt, Unavailable.
        """
        self._path, self._head = folder / "ledger.db", folder / "ledger-head.json"
        self._clock, self._lock = clock, threading.Lock()
        self._doubtful = False  # a disk failed in a commit: what it holds is read again
        self._marked = self._mark_on_disk()
        self._charges = self._load()
        self._agree(signed)

    @property
    def path(self) -> Path:
        return self._path

    def charges(self, binding: str | None = None) -> list[Charge]:
        """In order; those of one data binding, or all."""
        with self._lock:
            return [one for one in self._charges if binding in (None, one.spend.binding)]

    def of(self, job: str, cycle: str) -> Charge | None:
        with self._lock:
            return self._of(job, cycle)

    def require(self, head: str, where: object) -> None:
        """Raises Corrupt unless `head`, which `where` says this silo has signed, is of this chain."""
        if all(one.hash != head for one in self._charges):
            raise Corrupt(
                f"{self._path} lacks an event that {where} names in an update this silo has signed: the ledger was put "
                f"back, or begun anew. {RESTORE}"
            )

    def check_clock(self) -> None:
        """Raises Refused(POLICY) when the clock was set back: an older copy of this machine may be running."""
        now, newest = self._clock(), self._charges[-1].time if self._charges else 0.0
        if now < newest - CLOCK_TOLERANCE:
            raise Refused(
                Reason.POLICY,
                f"this machine's clock says {canonical.utc(now)} and the ledger's newest event is of "
                f"{canonical.utc(newest)}: set the clock. Nothing trains privately before that time has come",
            )

    def charge(self, spend: Spend) -> Charge:
        """Spend it, durably. The same cycle again, after a restart, is not charged again.

        Killed before the commit: nothing is spent, and nothing was trained. Killed after it: spent; the head file is behind
        the chain until the next call. Raises Refused(POLICY) for a cycle that was charged with
        other numbers and for a clock that was set back, Unavailable when the disk takes nothing, Corrupt.
        """
        with self._lock:
            if self._doubtful:
                self._charges, self._doubtful = self._load(), False
            known = self._of(spend.job, spend.cycle)
            if known is None:
                self.check_clock()
                known = self._append(spend)
            elif known.spend != _counted(spend, known.spend.units):
                raise Refused(
                    Reason.POLICY,
                    f"cycle {spend.cycle} of job {spend.job} was charged with {known.spend.event}, not with {spend.event}",
                )
            if self._marked < self._charges[-1].sequence:
                self._mark(self._charges[-1])
            return known

    def _of(self, job: str, cycle: str) -> Charge | None:
        wanted = (job, cycle)
        return next((one for one in self._charges if (one.spend.job, one.spend.cycle) == wanted), None)

    def _append(self, spend: Spend) -> Charge:
        if not self._head.exists():
            self._mark(None)  # first: from now on a ledger that is not there is missing
        if not self._path.exists():
            self._create()
        last = self._charges[-1] if self._charges else None
        row = _row(spend, last, self._clock(), os.urandom(16).hex())
        self._doubtful = True
        with self._connected() as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(_CREATE)  # killed before it was: the file is there and empty
            (rows,) = connection.execute("SELECT count(*) FROM events").fetchone()
            if rows != row["sequence"]:
                raise Corrupt(
                    f"{self._path} has {rows} events instead of {row['sequence']}: two agents write to it"
                )
            connection.execute(_INSERT, row)
        self._doubtful = False
        self._charges.append(_charge(row))
        return self._charges[-1]

    def _create(self) -> None:
        os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        durable.sync_dir(self._path.parent)

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """EXTRA, because FULL leaves the removal of the journal, which is the commit, to the power supply."""
        try:
            with closing(sqlite3.connect(self._path, BUSY_SECONDS, isolation_level=None)) as connection:
                connection.execute("PRAGMA synchronous = EXTRA")
                yield connection
        except sqlite3.Error as error:
            raise self._meant(error) from error

    def _meant(self, error: sqlite3.Error) -> AnabranchError:
        if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF not in _BROKEN:
            return Unavailable(
                f"{self._path}: {error}; make it writable again. Until then nothing trains privately"
            )
        return Corrupt(f"{self._path} is damaged ({error}). {RESTORE}")

    def _load(self) -> list[Charge]:
        """All rows, each held to its hash and to the row before it. Raises Corrupt."""
        if not self._path.exists():
            return []
        with self._connected() as connection:
            (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
            if verdict != "ok":
                raise Corrupt(f"{self._path} is damaged ({verdict}). {RESTORE}")
            named = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'events'").fetchone()
            rows = connection.execute(_SELECT).fetchall() if named[0] else []
        charges: list[Charge] = []
        for values in rows:
            row = dict(zip(_COLUMNS, values, strict=True))
            last = charges[-1].hash if charges else FIRST
            if (row["sequence"], row["previous"]) != (len(charges), last) or _hash(row) != row["hash"]:
                raise Corrupt(f"{self._path}: event {len(charges)} is not what was written. {RESTORE}")
            charges.append(_charge(row))
        return charges

    def _agree(self, signed: Mapping[str, Path]) -> None:
        """The chain holds all that is known to have been in it. Raises Corrupt."""
        if self._charges and not self._head.exists():
            raise Corrupt(f"{self._head} is gone, which says how far {self._path.name} has come. {RESTORE}")
        if self._marked >= 0 and not self._path.exists():
            raise Corrupt(f"{self._path} is gone and has had {self._marked + 1} events or more. {RESTORE}")
        if self._marked >= len(self._charges) or (
            self._marked >= 0 and self._charges[self._marked].hash != self._marked_hash
        ):
            raise Corrupt(
                f"{self._path} is older than {self._head.name}, which knows of {self._marked + 1} events: it was put "
                f"back, or cut off. {RESTORE}"
            )
        for head, where in signed.items():
            self.require(head, where)

    def _mark_on_disk(self) -> int:
        """The sequence in the head file; -1: nothing was charged yet. Raises Corrupt."""
        try:
            document = json.loads(self._head.read_bytes())
            sequence, self._marked_hash = document["sequence"], str(document["hash"])
            if type(sequence) is not int or sequence < -1:
                raise ValueError("no sequence")
        except FileNotFoundError:
            self._marked_hash = FIRST
            return -1
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise Corrupt(f"{self._head} is damaged. {RESTORE}") from error
        return sequence

    def _mark(self, newest: Charge | None) -> None:
        sequence, digest = (newest.sequence, newest.hash) if newest else (-1, FIRST)
        durable.write(self._head, json.dumps({"sequence": sequence, "hash": digest}).encode(), 0o600)
        self._marked, self._marked_hash = sequence, digest


def open_ledger(home: Home, clock: Callable[[], float] = time.time) -> Ledger:
    """Raises Corrupt when it is not what this silo has written and signed, Unavailable."""
    return Ledger(home.path, signed_heads(home), clock)


def _counted(spend: Spend, units: int) -> Spend:
    """Records that came or went between two starts of one cycle do not make it another cycle."""
    return Spend(**{**vars(spend), "units": units})


def _row(spend: Spend, last: Charge | None, now: float, salt: str) -> dict[str, Any]:
    """The salt: a head that leaves this site tells nothing of the numbers behind it, not even by trying."""
    event = spend.event
    row = {
        **{name: getattr(spend, name) for name in ("binding", "job", "cycle", "unit", "units", "cycles_max")},
        "sequence": last.sequence + 1 if last else 0,
        "sample_rate": canonical.hexfloat(event.sample_rate),
        "noise_multiplier": canonical.hexfloat(event.noise_multiplier),
        "steps": event.steps,
        "epsilon": canonical.hexfloat(spend.epsilon),
        "delta": canonical.hexfloat(spend.delta),
        "time": canonical.utc(max(now, last.time) if last else now),
        "salt": salt,
        "previous": last.hash if last else FIRST,
    }
    return {**row, "hash": _hash(row)}


def _hash(row: Mapping[str, Any]) -> str:
    try:
        return canonical.sha256(canonical.encode({name: row[name] for name in _COLUMNS if name != "hash"}))
    except Misuse:  # somebody wrote values that we never write
        return ""


def _charge(row: Mapping[str, Any]) -> Charge:
    """Raises Corrupt: a row with the right hash that is none of ours."""
    try:
        event = Event(
            canonical.from_hexfloat(row["sample_rate"]),
            canonical.from_hexfloat(row["noise_multiplier"]),
            int(row["steps"]),
        )
        spend = Spend(
            **{name: row[name] for name in ("binding", "job", "cycle", "unit", "units", "cycles_max")},
            event=event,
            epsilon=canonical.from_hexfloat(row["epsilon"]),
            delta=canonical.from_hexfloat(row["delta"]),
        )
        return Charge(row["sequence"], spend, canonical.from_utc(row["time"]), row["hash"])
    except (Refused, TypeError) as error:
        raise Corrupt(f"event {row['sequence']} of the ledger is not one of ours: {error}") from error
