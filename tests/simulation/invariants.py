"""What must hold. `check` after every operation, `close` and `audit` at the end of a run."""

import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from anabranch.tlog import merkle
from anabranch.tlog.entry import parse_entry
from server.audit.register import CheckpointRegister
from server.state import tables
from tests.simulation.history import (
    OPEN,
    TERMINAL,
    Broken,
    History,
    check_ends,
    check_export,
    check_log,
    check_receipts,
    check_story,
    read_history,
    whole_lines,
)
from tests.simulation.silos import Network

if TYPE_CHECKING:
    from tests.simulation.world import Federation


class Books:
    """What is known from outside, held against what the server's tables say."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._ended: dict[str, tuple[Any, ...]] = {}  # update → its terminal state
        self._heads: Counter[str] = Counter()
        self._size = 0
        self.updates = self.receipts = 0

    # --- after each operation ------------------------------------------------------------------------------------

    def check(self, world: "Federation") -> None:
        if self._network.problems:
            raise Broken(self._network.problems[0])
        if world.machine.dead:
            return
        with world.machine.core.reader.connect() as connection:
            ask = connection.exec_driver_sql
            twice = ask(
                "select silo, job from leases where status = 'open' group by silo, job having count(*) > 1"
            )
            if (row := twice.first()) is not None:
                raise Broken(f"silo {row.silo} holds two open leases of job {row.job}")
            size = ask('select max("index") + 1 from entries').scalar() or 0
            if size < self._size:
                raise Broken(f"the log had {self._size} entries and has {size}")
            if (signed := ask("select max(size) from checkpoints").scalar()) != size:
                raise Broken(f"the log has {size} entries, its newest checkpoint is for {signed}")
            self._size = size
            register = CheckpointRegister(world.machine.directory / "state" / "checkpoint").read()
            if register != ask("select note from checkpoints order by size desc limit 1").scalar():
                raise Broken("the server serves, and its register is not at its newest checkpoint")
            jobs = ask(
                "select id, head, status, (select max(number) from versions where job = id) as newest from jobs"
            ).all()
            for job in jobs:
                if job.head < self._heads[job.id] or job.newest != job.head:
                    raise Broken(
                        f"job {job.id}: head {job.head} after {self._heads[job.id]}, newest version {job.newest}"
                    )
                self._heads[job.id] = job.head
            ended = ask(
                "select job, silo, status, reason, count(*) from updates"
                " where status not in ('received', 'frozen') group by job, silo, status, reason"
            )
            counted = ask("select job, silo, outcome, reason, count from tallies where outcome <> 'released'")
            if wrong := set(map(tuple, ended)) ^ set(map(tuple, counted)):
                raise Broken(f"updates that ended, and what was counted, differ in {sorted(wrong)}")
            world.jobs = [job.id for job in jobs if job.status not in ("completed", "aborted")]
            self._check_updates(ask)

    def _check_updates(self, ask: Any) -> None:
        waiting = [name for name in self._network.answered if name not in self._ended]
        for start in range(0, len(waiting), 500):
            names = waiting[start : start + 500]
            marks = ",".join("?" * len(names))
            rows = ask(
                f"select id, status, version, reason, entry from updates where id in ({marks})", tuple(names)
            )
            found = {row.id: row for row in rows}
            for name in names:
                entry, reason = self._network.answered[name]
                row = found.get(name)
                if row is None:
                    raise Broken(f"update {name} was answered and is not there")
                if row.entry != entry or (row.status == "refused") != bool(reason):
                    raise Broken(f"update {name} was answered {entry} {reason!r}, the table says {row}")
                if row.status in TERMINAL:
                    self._ended[name] = tuple(row)
                elif row.status not in OPEN:
                    raise Broken(f"update {name} is {row.status}")

    def open_jobs(self, world: "Federation") -> list[str]:
        with world.machine.core.reader.connect() as connection:
            open_ = tables.jobs.c.status.not_in(("completed", "aborted"))
            return list(
                connection.execute(
                    select(tables.jobs.c.id).where(open_).order_by(tables.jobs.c.submitted_index)
                ).scalars()
            )

    def active(self, world: "Federation", silo: str) -> bool:
        with world.machine.core.reader.connect() as connection:
            status = connection.execute(
                select(tables.silos.c.status).where(tables.silos.c.name == silo)
            ).scalar()
        return bool(status == "active")

    # --- at the end ----------------------------------------------------------------------------------------------

    def close(self, world: "Federation") -> None:
        history = read_history(world.machine.core.reader, world.machine.info)
        self.updates = len(history.updates)
        for name, ended in self._ended.items():
            row = history.updates.get(name)
            if row is None or (row.id, row.status, row.version, row.reason, row.entry) != ended:
                raise Broken(f"update {name} had ended as {ended} and is now {row}")
        check_ends(history)
        roots = check_log(history)
        check_story(history)
        self.receipts = sum(map(len, check_receipts(history, roots, self._journals(world)).values()))
        self._answers(world, history, roots)
        for aside in (world.root / "silos").glob("*/refused/*"):
            row = history.updates.get(aside.name)
            if row is not None and row.status != "refused" and aside.parts[-3].startswith(f"{row.silo}-"):
                raise Broken(
                    f"{row.silo} was told that {row.id} is refused; it was admitted, and {row.status}"
                )

    def _answers(self, world: "Federation", history: History, roots: dict[int, bytes]) -> None:
        """Every update a silo was told of is there where it was said."""
        for name, (index, reason) in self._network.answered.items():
            entry = parse_entry(history.entries[index])
            detail: Any = entry.detail
            if detail.update != name or entry.type != ("update.refused" if reason else "update.received"):
                raise Broken(f"update {name} was answered with entry {index}, which is {entry.type}")
        size = len(history.entries)
        for name in sorted(self._network.acknowledged)[:20]:
            receipt = world.machine.core.log.receipt(self._network.answered[name][0])
            leaf = merkle.leaf_hash(receipt.entry)
            merkle.verify_inclusion(receipt.index, size, leaf, list(receipt.proof), roots[size])

    @staticmethod
    def _journals(world: "Federation") -> list[Path]:
        return whole_lines(sorted((world.root / "silos").glob("*/jobs/*/receipts.jsonl")))

    def audit(self, world: "Federation") -> None:
        machine, out = world.machine, world.root / "export"
        heads = check_export(
            machine.core.reader, machine.core.blobs, machine.info, out, self._journals(world)
        )
        if heads != dict(self._heads):
            raise Broken(f"replay ends at {heads}, the heads are {dict(self._heads)}")
        shutil.rmtree(out)
