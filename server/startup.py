"""Opening the state of a server: what must hold before anything is served, in this order.

1. This process alone has the directory (file lock).
2. The schema is current.
3. The log in the database extends the registered checkpoint. Register behind: a crash after a commit; advance it.
   Register ahead: an old database was restored; refuse to serve.
4. Everybody who served before is fenced off (epoch).
5. Files that nobody needs are removed: outputs that were not adopted, blobs that no entry names or that are pruned.
6. What a crash left half done is counted and logged; the rooms pick it up.
"""

import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, Engine

import anabranch
from anabranch.errors import Conflict, Corrupt
from anabranch.tlog import merkle
from anabranch.tlog.entry import Actor, Target
from anabranch.tlog.note import NoteSigner, NoteVerifier
from server.aggregation import Aggregation
from server.audit.log import Log, newest_checkpoint, node_reader
from server.audit.register import CheckpointRegister, registered_checkpoint
from server.audit.sequencer import Sequencer
from server.blobs.local import BlobStore
from server.core.allocation import TURNS, Allocation
from server.gaps import Reached, nothing
from server.intake import Intake
from server.jobs import Jobs
from server.retention import Retention, sweep
from server.reviving import Reviving
from server.scheduling import Scheduling
from server.sharing import Sharing
from server.state import records
from server.state.database import Reader, damage, migrate, open_engine
from server.state.tables import steps, updates
from server.state.writer import Transaction, Watcher, Writer, raise_epoch
from server.status import Presence


@dataclass(frozen=True)
class World:
    """Time, chance, faults and the road to the database: everything a test or a simulation may replace."""

    clock: Callable[[], float]  # unix seconds
    entropy: Callable[[int], bytes]
    reached: Reached = nothing
    open_engine: Callable[[Path, str], Engine] = open_engine


@dataclass(frozen=True)
class Core:
    """The rooms behind the transport. `start` before use, `stop` after."""

    federation: str
    observer: Actor
    writer: Writer
    reader: Reader
    blobs: BlobStore
    log: Log
    intake: Intake
    aggregation: Aggregation
    scheduling: Scheduling
    jobs: Jobs
    reviving: Reviving
    retention: Retention
    epoch: int
    _lock: int  # file descriptor; closing it lets another process serve

    def start(self) -> None:
        """Log the start with what it found unfinished, then let aggregation run."""
        self.writer.start()
        self.writer.run(lambda tx: _log_start(tx, self.observer, self.epoch))
        self.aggregation.start()
        self.aggregation.wake()

    def stop(self) -> None:
        """The step in progress is published, what is queued is answered; then the directory is free."""
        self.aggregation.stop()
        self.close()

    def close(self) -> None:
        self.writer.stop()
        self.reader.engine.dispose()
        os.close(self._lock)


def open_core(
    directory: Path,
    federation: str,
    origin: str,
    signer: NoteSigner,
    presence: Presence,
    world: World,
    watch: Watcher = lambda entry: None,
    allocation: Allocation = TURNS,
) -> Core:
    """Steps 1 to 5. Raises Conflict when another process serves this directory, Corrupt when its state may not be served."""
    held = lock(directory / "state" / "lock")
    try:
        with damage(directory / "state" / "state.db"):
            return _open(directory, federation, origin, signer, presence, world, watch, allocation, held)
    except BaseException:
        os.close(held)
        raise


def _open(
    directory: Path,
    federation: str,
    origin: str,
    signer: NoteSigner,
    presence: Presence,
    world: World,
    watch: Watcher,
    allocation: Allocation,
    held: int,
) -> Core:
    state = directory / "state"
    migrate(state / "state.db")
    register = CheckpointRegister(state / "checkpoint")
    reader = Reader(world.open_engine(state / "state.db", "BEGIN"))
    with reader.connect() as connection:
        reconcile(connection, register, NoteVerifier.from_vkey(signer.vkey), origin)
    engine = world.open_engine(state / "state.db", "BEGIN IMMEDIATE")
    epoch = raise_epoch(engine)
    blobs = _swept(BlobStore(directory / "blobs"), reader)
    observer = Actor(id=f"spiffe://{federation}/aggregator/0", auth="local")
    sequencer = Sequencer(origin, federation, observer.id, signer, world.entropy)
    writer = Writer(engine, sequencer, register, epoch, blobs.holds, world.clock, world.reached, watch)
    log, sharing = Log(reader), Sharing(allocation)
    aggregation = Aggregation(
        writer,
        reader,
        blobs,
        observer,
        world.clock,
        world.entropy,
        world.reached,
        scores=allocation.rule == "fedast",
    )
    return Core(
        federation=federation,
        observer=observer,
        writer=writer,
        reader=reader,
        blobs=blobs,
        log=log,
        intake=Intake(federation, writer, reader, log, blobs, world.entropy, aggregation.wake, world.reached),
        aggregation=aggregation,
        scheduling=Scheduling(writer, reader, log, blobs, observer, world.entropy, world.clock, sharing),
        jobs=Jobs(
            federation,
            writer,
            reader,
            log,
            blobs,
            observer,
            presence,
            world.clock,
            world.entropy,
            aggregation.wake,
            sharing,
        ),
        reviving=Reviving(writer, reader, log, blobs, observer, world.entropy, world.clock, world.reached),
        retention=Retention(writer, reader, blobs, observer, world.clock, world.reached),
        epoch=epoch,
        _lock=held,
    )


def _swept(blobs: BlobStore, reader: Reader) -> BlobStore:
    """Ready, and without what nothing names."""
    blobs.prepare()
    discard_unfinished(blobs)
    with reader.connect() as connection:
        sweep(connection, blobs)
    return blobs


def lock(path: Path) -> int:
    """Hold `path` for the life of this process. Raises Conflict when another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise Conflict(f"another server is running on {path.parent.parent}; stop it first") from error
    return descriptor


def reconcile(
    connection: Connection, register: CheckpointRegister, verifier: NoteVerifier, origin: str
) -> None:
    """Step 3. Raises Corrupt when the database does not extend the registered checkpoint."""
    registered = registered_checkpoint(register, verifier, origin)
    size, note = newest_checkpoint(connection)
    if registered is None:
        if size:
            raise Corrupt(
                f"{register.path} is missing but the log has {size} entries; restore it from a backup"
            )
        return
    if registered.size > size:
        raise Corrupt(
            f"the log was at {registered.size} entries, the database has {size}: an old database was restored. "
            "Serving would fork the log; restore the newest database, or start a new federation."
        )
    if merkle.root(registered.size, node_reader(connection)) != registered.root:
        raise Corrupt(
            "the database holds another log than the registered checkpoint; restore the right database"
        )
    if size > registered.size:
        register.advance(register.read(), note)


def discard_unfinished(blobs: BlobStore) -> None:
    """Aggregation outputs that were never adopted are computed again; uploads (UPDATE-LEASE) are kept to resume."""
    for path in blobs.spooled():
        if "-" not in path.name:
            path.unlink()


def _log_start(tx: Transaction, observer: Actor, epoch: int) -> None:
    found = {
        "open_steps": records.count(tx.connection, steps, steps.c.status == "frozen"),
        "requeued": records.count(tx.connection, updates, updates.c.status == "received"),
    }
    detail = {"release": anabranch.__version__, "epoch": epoch, "recovered": found}
    tx.log("server.started", actor=observer, target=Target(kind="server", id="aggregator"), detail=detail)
