"""Retention: content that nobody needs any more leaves the disk, and the log says so first.

    decide (one transaction: entry, namings marked as pruned) → set the files aside → unlink them

Content is shared by digest: a file goes when no naming of it is left. Files are set aside by the writer's thread, so a
decision that names the same content comes before (then it stays) or after (then it is not there, and is sent again).
If the process dies after the commit, the next start removes what the log says is pruned (`sweep`).

Signed statements and the parts of a job stay: without what was signed no signature in the log can be checked.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import Connection, and_, bindparam, delete, func, select, tuple_, update

from anabranch.terms import JobTerms, parse_terms, seconds
from anabranch.tlog.details import SPANS
from anabranch.tlog.entry import Actor, Target
from server import lifecycle
from server.audit.log import newest_checkpoint
from server.blobs.local import BlobStore
from server.core.retention import Facts, Overdue, Stored, overdue, spans
from server.core.turn import due_version
from server.gaps import Gap, Reached, nothing
from server.intake import leases_behind
from server.state import records
from server.state.database import Reader
from server.state.tables import jobs, leases, named, revivals, sketches, updates, versions, views
from server.state.writer import Transaction, Writer

logger = structlog.get_logger("retention")
_LIVE = select(named.c.digest).where(
    # No IS NULL: SQLite would look for it in the index of what is pruned, and read that through for every shelf.
    named.c.digest.between(bindparam("first"), bindparam("last")),
    func.coalesce(named.c.pruned, -1) == -1,
)
EVERY = 600.0  # seconds between looks: the shortest time a disk is ever short of is longer
ABANDONED = (
    86400.0  # seconds after its last byte before a file in the spool without an open lease is given up
)
SOME = 64  # files set aside in one turn of the writer, in the middle of everybody's decisions


@dataclass
class Retention:
    """A chore of the running server; `look` may be called as often as one likes."""

    writer: Writer
    reader: Reader
    blobs: BlobStore
    observer: Actor
    clock: Callable[[], float]  # unix seconds
    reached: Reached = nothing
    _looked: float = field(default=float("-inf"))

    def look(self) -> None:
        now = self.clock()
        if 0 <= now - self._looked < EVERY:
            return
        self._looked = now
        self.prune()
        self.give_up_uploads(time.time())

    def prune(self) -> None:
        """Every job that has something overdue, one decision each."""
        with self.reader.connect() as connection:
            rows = connection.execute(select(jobs).where(jobs.c.pruned_at.is_(None))).all()
            due = [row.id for row in rows if _overdue(connection, row, self.clock()) is not None]
        for job in due:
            gone = self.writer.run(lambda tx, job=job: _prune(tx, self.observer, job), "retention").value  # type: ignore[misc]
            self._remove(gone)
            logger.info("pruned", job=job, files=len(gone))

    def _remove(self, digests: Sequence[str]) -> None:
        for start in range(0, len(digests), SOME):
            some = digests[start : start + SOME]
            for aside in self.writer.run(lambda tx, some=some: _set_aside(tx, self.blobs, some)).value:  # type: ignore[misc]
                aside.unlink(missing_ok=True)
            self.reached(Gap.RETENTION_REMOVING)

    def give_up_uploads(self, now: float) -> None:
        """Remove what lies in the spool for a day with no open lease behind it. `now`: by the clock of the files."""
        with self.reader.connect() as connection:
            held = connection.execute(select(leases.c.id).where(leases.c.status == "open")).scalars()
            behind = leases_behind(held)
        for path in self.blobs.spooled():
            if path.name[64:] in behind:
                continue
            try:
                if now - path.stat().st_mtime > ABANDONED:
                    path.unlink()
                    logger.info("abandoned upload removed", file=path.name)
            except FileNotFoundError:  # it was completed meanwhile
                continue


def sweep(connection: Connection, blobs: BlobStore) -> int:
    """At a start, while nothing is being decided: remove blobs that the log does not name or says are pruned.

    A state without a log names nothing, and proves nothing either: then everything stays.
    """
    size, _ = newest_checkpoint(connection)
    removed = 0
    for number in range(256 if size else 0):
        prefix = f"{number:02x}"
        found = blobs.shelf(prefix)
        live = {"first": prefix, "last": f"{prefix}g"}
        kept = set(connection.execute(_LIVE, live).scalars()) if found else set()
        for digest in set(found) - kept:
            blobs.path(digest).unlink()
            removed += 1
    if removed:
        logger.info("swept", files=removed)
    return removed


def _prune(tx: Transaction, observer: Actor, job_id: str) -> list[str]:
    """Inside the transaction everything is decided afresh. Returns digests of which no naming is left."""
    job = records.job_row(tx.connection, job_id)
    found = _overdue(tx.connection, job, tx.now)
    if found is None:
        return []
    entries = []
    runs = spans(found.versions)
    for start in range(0, len(runs), SPANS):
        some = runs[start : start + SPANS]
        said = {"kind": "snapshots", "versions": [{"first": first, "last": last} for first, last in some]}
        entries.append(_log(tx, observer, job, found, said))
        for first, last in some:
            for table, number in ((versions, versions.c.number), (views, views.c.version)):
                said_by = select(table.c.entry).where(table.c.job == job_id, number.between(first, last))
                _mark(tx, entries[-1], named.c.entry.in_(said_by))
    if found.deltas:
        entries.append(_log(tx, observer, job, found, {"kind": "deltas", "versions": []}))
        of = (updates.c.job == job_id, updates.c.status.in_(("merged", "retired")))
        mine = select(updates.c.delta, updates.c.entry).where(*of)
        tx.connection.execute(delete(sketches).where(sketches.c.job == job_id))  # made of deltas
        revived = select(revivals.c.delta, revivals.c.entry).where(
            revivals.c.job == job_id, revivals.c.delta.is_not(None)
        )
        for files in (mine, revived):
            _mark(tx, entries[-1], tuple_(named.c.digest, named.c.entry).in_(files))
        tx.connection.execute(update(jobs).where(jobs.c.id == job_id).values(pruned_at=tx.now))
    left = named.alias()
    needed = select(left.c.digest).where(left.c.digest == named.c.digest, left.c.pruned.is_(None)).exists()
    gone = select(named.c.digest).where(named.c.pruned.in_(entries), ~needed).distinct()
    return list(tx.connection.execute(gone).scalars())


def _log(tx: Transaction, observer: Actor, job: Any, found: Overdue, said: dict[str, Any]) -> int:
    term = getattr(parse_terms(job.terms).file.retention, found.rule)
    return tx.log(
        "retention.pruned",
        actor=observer,
        target=Target(kind="job", id=job.id, sha256=job.terms_digest),
        job=job.id,
        detail={**said, "rule": found.rule, "seconds": int(seconds(term))},
    )


def _mark(tx: Transaction, entry: int, which: Any) -> None:
    tx.connection.execute(update(named).where(which, named.c.pruned.is_(None)).values(pruned=entry))


def _set_aside(tx: Transaction, blobs: BlobStore, digests: Sequence[str]) -> list[Path]:
    """In the writer's thread, between decisions: what was named again since it was pruned stays."""
    gone = (digest for digest in digests if not records.kept(tx.connection, digest))
    return [aside for digest in gone if (aside := blobs.set_aside(digest)) is not None]


def _overdue(connection: Connection, job: Any, now: float) -> Overdue | None:
    terms = parse_terms(job.terms)
    published = select(versions.c.number, versions.c.published_at, versions.c.handed_out_at)
    known = {row.number: row for row in connection.execute(published.where(versions.c.job == job.id))}
    snapshot = and_(named.c.entry == versions.c.entry, named.c.digest == versions.c.parameters)
    stored = (
        select(versions.c.number)
        .join(named, snapshot)
        .where(versions.c.job == job.id, named.c.pruned.is_(None))
        .order_by(versions.c.number)
    )
    facts = Facts(
        ended_at=job.ended_at,
        handed_out_at=max((row.handed_out_at for row in known.values() if row.handed_out_at), default=None),
        stored=tuple(
            Stored(
                number,
                known[number + 1].published_at if number + 1 in known else None,
                known[number].handed_out_at,
            )
            for number in connection.execute(stored).scalars()
        ),
        head=job.head,
        best=job.best,
        needed=frozenset(_needed(connection, job, terms)),
    )
    return overdue(terms.file.retention, facts, now)


def _needed(connection: Connection, job: Any, terms: JobTerms) -> Iterator[int]:
    """Versions whose bytes a silo may still ask for, or an update was trained from that waits or teaches."""
    if job.status in lifecycle.ENDED:
        return
    yield from connection.execute(
        select(leases.c.version).where(leases.c.job == job.id, leases.c.status == "open")
    ).scalars()
    waiting = (updates.c.job == job.id, updates.c.status.in_(("received", "frozen")))
    yield from connection.execute(select(updates.c.base).where(*waiting)).scalars()
    if terms.file.revival is not None:
        yield from (row.base for row in records.teachers(connection, job.id))
        yield from _in_hand(connection, job.id)
    due = due_version(terms, job.head)
    if due is not None:
        yield due


def _in_hand(connection: Connection, job: str) -> Iterator[int]:
    """What a reviver works on: the version it began from, and its teachers' bases."""
    at_work = select(revivals).where(revivals.c.job == job, revivals.c.status == "claimed")
    for row in connection.execute(at_work).all():
        yield row.version
        taught = list(json.loads(row.teachers).values())
        yield from connection.execute(select(updates.c.base).where(updates.c.id.in_(taught))).scalars()
