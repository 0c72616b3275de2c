"""What must hold of a whole history once every job has ended: of tables, log, journals and export, whoever made it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select, text

from anabranch.tlog import merkle
from anabranch.tlog.checkpoint import open_checkpoint
from anabranch.tlog.entry import parse_entry
from anabranch.tlog.note import NoteVerifier
from anabranch.wire.bundle import FederationInfo
from auditor.export import Export
from auditor.pin import pin
from auditor.receipts import read_receipts
from auditor.replay import replay
from auditor.verify import verify
from server.audit.export import export
from server.blobs.local import BlobStore
from server.state import tables
from server.state.database import Reader

OPEN, TERMINAL = ("received", "frozen"), ("merged", "retired", "refused")


class Broken(Exception):
    """An invariant does not hold."""


class Stuck(Broken):
    """Faults have stopped and a job does not complete."""


@dataclass(frozen=True)
class History:
    info: FederationInfo
    updates: dict[str, Any]
    entries: list[bytes]
    notes: dict[int, str]  # by tree size
    versions: Sequence[Any]
    leases: Sequence[Any]  # open
    steps: Sequence[Any]  # frozen


def read_history(reader: Reader, info: FederationInfo) -> History:
    with reader.connect() as connection:
        ask = connection.execute
        entries = ask(select(tables.entries.c.data).order_by(text('"index"'))).scalars()
        return History(
            info=info,
            updates={row.id: row for row in ask(select(tables.updates))},
            entries=[bytes(data) for data in entries],
            notes={row.size: row.note for row in ask(select(tables.checkpoints))},
            versions=ask(select(tables.versions)).all(),
            leases=ask(select(tables.leases).where(tables.leases.c.status == "open")).all(),
            steps=ask(select(tables.steps).where(tables.steps.c.status == "frozen")).all(),
        )


def check_ends(history: History) -> None:
    """Nothing is open any more."""
    for row in history.updates.values():
        if row.status not in TERMINAL:
            raise Broken(f"update {row.id} has no end: {row.status}")
    if history.leases or history.steps:
        raise Broken(f"every job has ended, and open are {history.leases} {history.steps}")


def check_log(history: History) -> dict[int, bytes]:
    """Every checkpoint ever signed is one of this log. The root of each size."""
    verifier = NoteVerifier.from_vkey(history.info.log_vkey)
    frontier, roots = merkle.Frontier(), {}
    for entry in history.entries:
        frontier.append(merkle.leaf_hash(entry))
        roots[frontier.size] = frontier.root()
    for size, note in history.notes.items():
        if open_checkpoint(note, verifier, history.info.log_origin).root != roots.get(size):
            raise Broken(f"the checkpoint of {size} entries is not of this log")
    return roots


def check_story(history: History) -> None:
    """The log tells of every update exactly one end, and of every version its parent."""
    fates: dict[str, list[str]] = {}
    published: dict[str, list[int]] = {}
    for raw in history.entries:
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
        known = history.updates.get(name)
        wanted = ["refused"] if known is None or known.status == "refused" else ["received", known.status]
        if fate != wanted:
            raise Broken(f"update {name}: the log says {fate}, the table {wanted}")
    if missing := history.updates.keys() - fates.keys():
        raise Broken(f"updates the log does not know: {missing}")
    numbers: dict[str, list[int]] = {}
    for version in history.versions:
        numbers.setdefault(version.job, []).append(version.number)
    if {job: sorted(found) for job, found in numbers.items()} != published:
        raise Broken("the versions in the table are not those in the log")


def check_receipts(
    history: History, roots: dict[int, bytes], journals: Sequence[Path]
) -> dict[str, list[int]]:
    """Every receipt a silo kept is of this log. The log indices of those about updates, by update."""
    verifier = NoteVerifier.from_vkey(history.info.log_vkey)
    told: dict[str, list[int]] = {}
    for where, receipt in read_receipts(journals):
        checkpoint = open_checkpoint(receipt.checkpoint, verifier, history.info.log_origin)
        if history.entries[receipt.index] != receipt.entry or roots[checkpoint.size] != checkpoint.root:
            raise Broken(f"receipt {where} is not of this log")
        merkle.verify_inclusion(
            receipt.index,
            checkpoint.size,
            merkle.leaf_hash(receipt.entry),
            list(receipt.proof),
            checkpoint.root,
        )
        entry = parse_entry(receipt.entry)
        detail: Any = entry.detail
        about = detail.update if entry.type in ("update.received", "update.refused") else ""
        told.setdefault(about or "", []).append(receipt.index)
    return told


def check_export(
    reader: Reader, blobs: BlobStore, info: FederationInfo, out: Path, journals: Sequence[Path]
) -> dict[str, int]:
    """Export, and let the auditor say that the log verifies and every version follows from its updates. The heads."""
    done = export(reader, blobs, info.log_vkey, info.ca_pem.encode(), out, True)
    if done.missing:
        raise Broken(f"{done.missing} objects the log names are not there")
    opened = Export(out)
    checked = verify(opened, pin(opened, info.log_vkey), journals)
    if not checked.report.verified:
        raise Broken(f"the auditor found {checked.report.findings[:3]}")
    again = replay(opened, checked.history, out.parent)
    if not again.ok:
        raise Broken(f"replay fails: {again.different[:2]} {again.missing[:2]}")
    return {name: job.head for name, job in checked.history.jobs.items()}


def whole_lines(journals: Sequence[Path]) -> list[Path]:
    """What was torn off would be cut off at the next append."""
    for path in journals:
        data = path.read_bytes()
        path.write_bytes(data[: data.rfind(b"\n") + 1])
    return list(journals)
