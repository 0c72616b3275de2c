"""What must hold. `check` after every operation, `close` and `audit` at the end of a run."""

import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import select, text

from anabranch.tlog import merkle
from anabranch.tlog.checkpoint import open_checkpoint
from anabranch.tlog.entry import parse_entry
from anabranch.tlog.note import NoteVerifier
from auditor.export import Export
from auditor.pin import pin
from auditor.receipts import read_receipts
from auditor.replay import replay
from auditor.verify import verify
from server.audit.export import export
from server.audit.register import CheckpointRegister
from server.state import tables
from tests.simulation.silos import Network

if TYPE_CHECKING:
    from tests.simulation.world import Federation

OPEN, TERMINAL = ("received", "frozen"), ("merged", "retired", "refused")


class Broken(Exception):
    """An invariant does not hold."""


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
        with world.machine.core.reader.connect() as connection:
            rows = {row.id: row for row in connection.execute(select(tables.updates))}
            data = [
                bytes(d)
                for d in connection.execute(select(tables.entries.c.data).order_by(text('"index"'))).scalars()
            ]
            notes = {row.size: row.note for row in connection.execute(select(tables.checkpoints))}
            versions = connection.execute(select(tables.versions)).all()
            leases = connection.execute(select(tables.leases).where(tables.leases.c.status == "open")).all()
            steps = connection.execute(select(tables.steps).where(tables.steps.c.status == "frozen")).all()
        self.updates = len(rows)
        for name, ended in self._ended.items():
            row = rows.get(name)
            if row is None or (row.id, row.status, row.version, row.reason, row.entry) != ended:
                raise Broken(f"update {name} had ended as {ended} and is now {row}")
        for row in rows.values():
            if row.status not in TERMINAL:
                raise Broken(f"update {row.id} has no end: {row.status}")
        if leases or steps:
            raise Broken(f"every job has ended, and open are {leases} {steps}")
        roots = self._log(world, data, notes)
        self._story(data, rows, versions)
        self._receipts(world, data, roots)
        for aside in (world.root / "silos").glob("*/refused/*"):
            row = rows.get(aside.name)
            if row is not None and row.status != "refused" and aside.parts[-3].startswith(f"{row.silo}-"):
                raise Broken(
                    f"{row.silo} was told that {row.id} is refused; it was admitted, and {row.status}"
                )

    def _log(self, world: "Federation", data: list[bytes], notes: dict[int, str]) -> dict[int, bytes]:
        """Every checkpoint ever signed is one of this log."""
        verifier = NoteVerifier.from_vkey(world.machine.info.log_vkey)
        frontier, roots = merkle.Frontier(), {}
        for entry in data:
            frontier.append(merkle.leaf_hash(entry))
            roots[frontier.size] = frontier.root()
        for size, note in notes.items():
            if open_checkpoint(note, verifier, world.machine.info.log_origin).root != roots.get(size):
                raise Broken(f"the checkpoint of {size} entries is not of this log")
        return roots

    def _story(self, data: list[bytes], rows: dict[str, Any], versions: Any) -> None:
        """The log tells of every update exactly one end, and of every version its parent."""
        fates: dict[str, list[str]] = {}
        published: dict[str, list[int]] = {}
        for raw in data:
            entry = parse_entry(raw)
            detail: Any = entry.detail
            match entry.type:
                case "update.received":
                    fates.setdefault(detail.update, []).append("received")
                case "update.refused" if detail.update is not None:
                    fates.setdefault(detail.update, []).append("refused")
                case "update.retired":
                    fates[detail.update].append("retired")
                case "aggregation.performed":
                    for one in detail.inputs:
                        fates[one.update].append("merged")
                case "model.published":
                    chain = published.setdefault(str(entry.job), [])
                    if detail.version != len(chain) or (
                        detail.parent is not None and detail.parent != len(chain) - 1
                    ):
                        raise Broken(
                            f"job {entry.job}: version {detail.version} of parent {detail.parent} after {len(chain)}"
                        )
                    chain.append(detail.version)
        for name, fate in fates.items():
            known = rows.get(name)
            wanted = ["refused"] if known is None or known.status == "refused" else ["received", known.status]
            if fate != wanted:
                raise Broken(f"update {name}: the log says {fate}, the table {wanted}")
        if missing := rows.keys() - fates.keys():
            raise Broken(f"updates the log does not know: {missing}")
        numbers: dict[str, list[int]] = {}
        for version in versions:
            numbers.setdefault(version.job, []).append(version.number)
        if {job: sorted(found) for job, found in numbers.items()} != published:
            raise Broken("the versions in the table are not those in the log")

    def _receipts(self, world: "Federation", data: list[bytes], roots: dict[int, bytes]) -> None:
        """Every receipt a silo kept is of this log, and every update it was told of is there where it was said."""
        verifier = NoteVerifier.from_vkey(world.machine.info.log_vkey)
        journals = self._journals(world)
        for where, receipt in read_receipts(journals):
            checkpoint = open_checkpoint(receipt.checkpoint, verifier, world.machine.info.log_origin)
            if data[receipt.index] != receipt.entry or roots[checkpoint.size] != checkpoint.root:
                raise Broken(f"receipt {where} is not of this log")
            self.receipts += 1
        for name, (index, reason) in self._network.answered.items():
            entry = parse_entry(data[index])
            detail: Any = entry.detail
            if detail.update != name or entry.type != ("update.refused" if reason else "update.received"):
                raise Broken(f"update {name} was answered with entry {index}, which is {entry.type}")
        log = world.machine.core.log
        for name in sorted(self._network.acknowledged)[:20]:
            receipt = log.receipt(self._network.answered[name][0])
            merkle.verify_inclusion(
                receipt.index,
                len(data),
                merkle.leaf_hash(receipt.entry),
                list(receipt.proof),
                roots[len(data)],
            )

    @staticmethod
    def _journals(world: "Federation") -> list[Path]:
        found = sorted((world.root / "silos").glob("*/jobs/*/receipts.jsonl"))
        for path in found:  # what was torn off would be cut off at the next append
            data = path.read_bytes()
            path.write_bytes(data[: data.rfind(b"\n") + 1])
        return found

    def audit(self, world: "Federation") -> None:
        """Export, and let the auditor say that the log verifies and that every version follows from its updates."""
        out = world.root / "export"
        machine = world.machine
        info = machine.info
        done = export(machine.core.reader, machine.core.blobs, info.log_vkey, info.ca_pem.encode(), out, True)
        if done.missing:
            raise Broken(f"{done.missing} objects the log names are not there")
        opened = Export(out)
        checked = verify(opened, pin(opened, info.log_vkey), self._journals(world))
        if not checked.report.verified:
            raise Broken(f"the auditor found {checked.report.findings[:3]}")
        again = replay(opened, checked.history, world.root)
        if not again.ok or again.digest_only:
            raise Broken(f"replay differs: {again.different[:2]} {again.digest_only[:2]}")
        heads = {name: job.head for name, job in checked.history.jobs.items()}
        if heads != dict(self._heads):
            raise Broken(f"replay ends at {heads}, the heads are {dict(self._heads)}")
        shutil.rmtree(out)
