"""The one writer: every decision of the server passes through here.

A decision is a function of a `Transaction`. The writer thread drains a bounded queue and runs the decisions it found
in ONE database transaction, each in its own savepoint, so that one fsync serves many callers and a refused decision
leaves no trace. In that same transaction it assigns dense log indices, inserts the entries, extends the tree and
stores the signed checkpoint. Then, in this order: commit, advance the checkpoint register, answer everybody.

Nobody is answered before both are durable. If the process dies after the commit, the register is brought forward at
the next start; the callers were not answered and ask again.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import structlog
from sqlalchemy import Connection, Engine, insert, select
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from anabranch.errors import AnabranchError, Conflict, Corrupt, Misuse, Unavailable
from anabranch.tlog import merkle
from anabranch.tlog.entry import Actor, Outcome, Sealed, Target
from anabranch.tlog.receipt import Receipt
from anabranch.wire import dsse
from server.audit.log import Nodes, entry_signature
from server.audit.objects import named
from server.audit.register import CheckpointRegister
from server.audit.sequencer import EntryWriter, Sequencer
from server.gaps import Reached, nothing
from server.state import tables
from server.state.tables import epoch

T = TypeVar("T")
logger = structlog.get_logger("writer")

QUEUE = 1024  # decisions that may wait; beyond it callers wait, memory does not grow
BATCH = 128  # decisions of one transaction

_EPOCH = select(epoch.c.epoch)
_NAME = insert(tables.named)


@dataclass(frozen=True)
class Committed(Generic[T]):
    """A decision that survives any crash, with the proof of each entry it logged, in order."""

    value: T
    receipts: tuple[Receipt, ...]


@dataclass(frozen=True)
class Logged:
    """An entry as the decision said it, and its bytes."""

    type: str
    job: str | None
    detail: dict[str, Any]
    data: bytes
    signed: bytes | None  # the payload its signature covers


Watcher = Callable[[Logged], None]  # told of each entry after it is durable; must neither block nor raise


@dataclass(frozen=True)
class Transaction:
    """What a decision may touch. Valid only inside the decision."""

    connection: Connection
    now: float  # unix seconds, read once per decision
    _entries: list[Logged]
    _first: int  # log index of the first entry of the batch
    _encode: EntryWriter
    _holds: Callable[[str], bool]  # whether the blob of a digest is stored

    def log(
        self,
        type: str,
        *,
        actor: Actor,
        target: Target,
        detail: dict[str, Any],
        status: Literal["success", "failure", "denied", "pending"] = "success",
        reason: str | None = None,
        job: str | None = None,
        sealed: Sealed | None = None,
        signed: dsse.Envelope | None = None,
    ) -> int:
        """Append one entry in this transaction; return its log index.

        Raises Misuse outside the closed schema, Unavailable when content it names was removed since it was stored.
        """
        outcome = Outcome(status=status, reason=reason)
        data = self._encode(
            type,
            self.now,
            actor=actor,
            target=target,
            detail=detail,
            outcome=outcome,
            job=job,
            sealed=sealed,
            sigs=() if signed is None else [entry_signature(signed)],
        )
        index = self._first + len(self._entries)
        for digest in named(type, detail):
            if not self._holds(digest):
                raise Unavailable(
                    f"{digest[:12]}… was removed as pruned content while it arrived; send it again"
                )
            self.connection.execute(_NAME, {"digest": digest, "entry": index})
        self._entries.append(Logged(type, job, detail, data, signed.payload if signed else None))
        return index


@dataclass
class _Pending:
    decide: Callable[[Transaction], Any]
    label: str
    future: "Future[Committed[Any]]" = field(default_factory=Future)
    value: Any = None
    indices: range = range(0)
    error: Exception | None = None  # told after the commit: it may rest on an earlier decision of the batch


class Writer:
    """Owns the write connection and the checkpoint register. Start it once; `stop` answers what is queued."""

    def __init__(
        self,
        engine: Engine,
        sequencer: Sequencer,
        register: CheckpointRegister,
        my_epoch: int,
        holds: Callable[[str], bool],
        clock: Callable[[], float],
        reached: Reached = nothing,
        watch: Watcher = lambda entry: None,
    ) -> None:
        self._engine = engine
        self._sequencer = sequencer
        self._register = register
        self._registered = register.read()
        self._nodes = Nodes()
        self._epoch = my_epoch
        self._holds = holds
        self._clock = clock
        self._reached = reached
        self._watch = watch
        self._queue: queue.Queue[_Pending | None] = queue.Queue(QUEUE)
        self._gate = threading.Lock()  # nothing is queued behind the end
        self._stopped = False
        self._inline = False
        self._failure: AnabranchError | None = None
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def start_inline(self) -> None:
        """Instead of `start`, where one thread asks for every decision: it commits them itself, one by one."""
        self._inline = True

    def stop(self) -> None:
        with self._gate:
            self._stopped = True
            self._queue.put(None)
        if not self._inline:
            self._thread.join()
        self._engine.dispose()

    @property
    def failure(self) -> AnabranchError | None:
        """Why the writer stopped for good, if it did; the server then must not report ready."""
        return self._failure

    def submit(self, decide: Callable[[Transaction], T], label: str = "") -> "Future[Committed[T]]":
        """Queue a decision. `label` names the gaps a fault test can hit around its commit."""
        job = _Pending(decide, label)
        with self._gate:
            if self._failure is not None:
                job.future.set_exception(self._failure)
            elif self._stopped:
                job.future.set_exception(Unavailable("the server has stopped; ask again when it is back"))
            elif not self._inline:
                self._queue.put(job)
        if self._inline and not job.future.done():
            self._settle([job])
        return job.future

    def run(self, decide: Callable[[Transaction], T], label: str = "") -> Committed[T]:
        """Decide and wait until it is durable. Raises what `decide` raises, or Unavailable when the store failed."""
        return self.submit(decide, label).result()

    def _run(self) -> None:
        while self._serve():
            pass

    def _serve(self) -> bool:
        """Wait for decisions, and commit all that are queued. False at the end of the queue."""
        batch = [self._queue.get()]
        with suppress(queue.Empty):
            while len(batch) < BATCH:
                batch.append(self._queue.get_nowait())
        self._settle([job for job in batch if job is not None])
        return None not in batch

    def _settle(self, jobs: list[_Pending]) -> None:
        """Commit them and answer, or tell all of them what failed."""
        try:
            self._commit(jobs)
        except AnabranchError as error:
            self._fail(jobs, error)
        except DBAPIError as error:
            logger.error("state store failed", error=str(error.orig))
            self._fail(jobs, Unavailable(f"the state store could not commit: {error.orig}"))
        except OSError as error:
            logger.error("checkpoint register failed", error=str(error))
            self._fail(jobs, Unavailable(f"the checkpoint register could not be written: {error}"))
        except Exception as error:
            logger.exception("writer failed")
            self._fail(jobs, Misuse(f"the writer met a bug: {type(error).__name__}"))

    def _fail(self, jobs: list[_Pending], error: AnabranchError) -> None:
        """Nothing of this batch was acknowledged. Corrupt and Conflict end the writer: another process owns the state."""
        if isinstance(error, Corrupt | Conflict):
            self._failure = error
        for job in jobs:
            if not job.future.done():
                job.future.set_exception(error)

    def _commit(self, jobs: list[_Pending]) -> None:
        """One transaction, one fsync, one register move, then the answers."""
        if self._failure is not None:
            raise self._failure
        with self._engine.begin() as connection:
            self._check_epoch(connection)
            growth = self._sequencer.begin(connection, self._nodes)
            fresh: list[Logged] = []
            for job in jobs:
                self._decide(job, connection, growth.size, fresh)
            note = growth.append([(entry.data, entry.signed) for entry in fresh]) if fresh else ""
            node, first = self._nodes.reader(connection), growth.size - len(fresh)
            receipts = [
                Receipt(entry.data, index, tuple(merkle.inclusion_proof(index, growth.size, node)), note)
                for index, entry in enumerate(fresh, first)
            ]
        decided = [job for job in jobs if job.error is None]
        for job in decided:
            self._reached(f"{job.label}.committed")
        if note:
            # Dies here: the database is ahead of the register; the next start advances it.
            try:
                self._register.advance(self._registered, note)
            except (OSError, Unavailable):
                self._registered = self._register.read()
                raise
            self._registered = note
        for job in decided:
            self._reached(f"{job.label}.registered")
        for entry in fresh:
            self._tell(entry)
        for job in jobs:
            if job.error is not None:
                job.future.set_exception(job.error)
            else:
                job.future.set_result(Committed(job.value, tuple(receipts[i - first] for i in job.indices)))

    def _tell(self, entry: Logged) -> None:
        try:
            self._watch(entry)
        except Exception:
            logger.exception("a watcher failed", entry=entry.type)

    def _decide(self, job: _Pending, connection: Connection, first: int, fresh: list[Logged]) -> None:
        mark = len(fresh)
        savepoint = connection.begin_nested()
        try:
            transaction = Transaction(
                connection, self._clock(), fresh, first, self._sequencer.encode, self._holds
            )
            job.value = job.decide(transaction)
        except (IntegrityError, DataError) as error:
            logger.exception("a decision broke a constraint", label=job.label)
            savepoint.rollback()
            del fresh[mark:]
            job.error = Misuse(f"a decision broke a constraint: {error.orig}")
        except DBAPIError:
            raise  # the store itself failed: the whole batch is retried by its callers
        except Exception as error:
            savepoint.rollback()
            del fresh[mark:]
            job.error = error
        else:
            savepoint.commit()
            job.indices = range(first + mark, first + len(fresh))

    def _check_epoch(self, connection: Connection) -> None:
        found = connection.execute(_EPOCH).scalar()
        if found != self._epoch:
            raise Conflict(
                f"another server took over (epoch {found}, ours {self._epoch}); this one writes nothing"
            )


def raise_epoch(engine: Engine) -> int:
    """Take over: everybody who still serves under an older epoch is fenced off."""
    with engine.begin() as connection:
        found = connection.execute(select(epoch.c.epoch)).scalar()
        if found is None:
            connection.execute(insert(epoch).values(id=1, epoch=1))
            return 1
        connection.execute(epoch.update().values(epoch=found + 1))
        return int(found) + 1
