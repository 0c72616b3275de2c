"""The server under test: the real rooms on a real directory, on a virtual clock, killed between any two durable steps.

There are no threads: whoever asks the writer for a decision has it committed at once, and calls that arrive together are
coroutines, each run up to the decision it waits for. So one seed is one history, to the last byte.

A kill raises `Killed` from the `reached` hook, wherever that is. What a dead process leaves behind is copied at that very
moment into the directory of the server's next life (database and WAL as they are, no checkpoint, no clean close); the old
one is taken apart under its old name, where nobody looks any more.
"""

import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from greenlet import getcurrent, greenlet

from anabranch.errors import Corrupt
from anabranch.tlog.note import NoteSigner
from anabranch.wire.bundle import FederationInfo
from server import setup, startup
from server.allow_list import AllowList
from server.blobs import local
from server.ca.authority import Authority
from server.config import ServerConfig
from server.enrolment import Nonces
from server.membership import Lifetimes, Membership
from server.sessions import Sessions
from server.startup import Core, World, open_core
from tests.server.harness import Absent, Clock
from tests.simulation import once
from tests.simulation.operations import Kill


class Killed(BaseException):
    """The server's process is no more. No `except Exception` of the code under test may survive it."""


class NoStreams:
    def end(self, silo: str, reason: str) -> None:
        return


class Machine:
    """`start` and `stop`; in between it may die at any time, and `dead` says so until `bury` has cleared away."""

    def __init__(
        self, root: Path, config: ServerConfig, authority: Authority, clock: Clock, random: Random
    ) -> None:
        """`root`/life-0 holds a federation that was made before."""
        self._root, self._life = root, 0
        self._config, self._authority = config, authority
        self.clock, self._random = clock, random
        self.signer: NoteSigner = setup.load_signer(self.directory, config)
        self.info: FederationInfo = setup.directions(config, authority, self.signer)
        self.dead = True
        self.up = False
        self.armed: Kill | None = None
        self.full = 0  # calls for which the disk is full
        self.died: Callable[[str], None] = lambda how: None
        self.met_full: Callable[[], None] = lambda: None
        self._hub: greenlet | None = None  # while calls that arrive together are run up to their decisions
        self._before: tuple[bytes, tuple[int, int]] | None = None
        self._backup: Path | None = None
        self.torn = 0

    @property
    def directory(self) -> Path:
        return self._root / f"life-{self._life}"

    @property
    def _next(self) -> Path:
        return self._root / f"life-{self._life + 1}"

    # --- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """What `anabranch-server serve` does, but for the ports and the aggregation's own thread. Raises Killed."""
        assert not self.up
        world = World(self.clock, self._random.randbytes, self._reached, once.open_engine)
        config = self._config
        core = open_core(self.directory, config.federation, config.log_origin, self.signer, Absent(), world)
        self.dead, self.up = False, True
        self.core = core
        self.allow_list = AllowList()
        self.allow_list.load(core.reader, self.clock())
        self.membership = self._membership(core)
        writer: Any = core.writer
        self._serve, ask, commit = writer._serve, writer.submit, writer._commit
        writer.submit = lambda decide, label="": self._ask(ask, decide, label)
        writer._commit = lambda jobs: self._commit(commit, jobs)
        writer._thread = threading.Thread()  # which has nothing to do, and ends
        writer._thread.start()
        store: Any = vars(core.blobs)
        store["adopt"], store["reserve"] = (
            self._unless_full(core.blobs.adopt),
            self._unless_full(core.blobs.reserve),
        )
        core.writer.run(lambda tx: startup._log_start(tx, core.observer, core.epoch))

    def _membership(self, core: Core) -> Membership:
        return Membership(
            writer=core.writer,
            reader=core.reader,
            authority=self._authority,
            allow_list=self.allow_list,
            sessions=Sessions(self.clock),
            streams=NoStreams(),
            directions=self.info,
            observer=core.observer,
            nonces=Nonces(self._random.randbytes(32)),
            lifetimes=Lifetimes(silo=365 * 86400.0),
            clock=self.clock,
            entropy=self._random.randbytes,
            wake=core.aggregation.wake,
        )

    def stop(self) -> None:
        """In order. Raises Killed, nothing else."""
        self.core.close()
        self.dead, self.up = True, False

    def die(self, how: str) -> None:
        """The process is gone from here on: keep what it leaves, and let nobody be answered. Raises Killed."""
        if not self.dead:
            self.dead = True
            self._leave_behind()
            self.died(how)
        raise Killed(how)

    def bury(self) -> None:
        """After `dead` became true and every call has noticed: take the old process apart, go to the next life."""
        assert self.dead
        assert self.up
        self.up = False
        self.core.reader.engine.dispose()
        self.core.writer._engine.dispose()
        os.close(self.core._lock)
        for kept in ("blobs", "keys"):
            os.rename(self.directory / kept, self._next / kept)
        shutil.rmtree(self.directory)
        self._life += 1

    def _leave_behind(self) -> None:
        old, new = self.directory / "state", self._next / "state"
        new.mkdir(parents=True)
        for name in ("state.db", "state.db-wal", "checkpoint"):
            if (old / name).exists():
                shutil.copyfile(old / name, new / name)

    def _unless_full(self, work: Callable[..., None]) -> Callable[..., None]:
        """`work` of the blob store, which meets a full disk as the store meets one."""

        def call(*given: Any) -> None:
            with local._room():
                if self.full:
                    self.met_full()
                    raise OSError(errno.ENOSPC, "No space left on device")
            work(*given)

        return call

    # --- kills ---------------------------------------------------------------------------------------------------

    def _reached(self, gap: str) -> None:
        if self.dead:
            raise Killed(gap)
        kill = self.armed
        if kill is None or kill.gap != gap:
            return
        if kill.after:
            self.armed = Kill(gap, kill.after - 1, kill.tear)
            return
        self.armed = None
        try:
            self.die(gap)
        finally:
            if kill.tear:
                self._tear(kill.tear)

    def _commit(self, commit: Callable[[Any], None], jobs: Any) -> None:
        """Before a commit that is to be torn: what the WAL is without it."""
        if self.armed is not None and self.armed.tear:
            self._before = self._wal(self.directory), self._stamp()
        commit(jobs)

    def _tear(self, part: float) -> None:
        """Power was lost before the sync of this commit returned: of what it wrote, only the first part is there.

        A commit that went on to a checkpoint had synced its WAL before: nothing of it can be missing.
        """
        assert self._before is not None
        before, stamp = self._before
        if stamp != self._stamp():
            return
        after = self._wal(self.directory)
        same = _shared(before, after)
        cut = same + int(part * (len(after) - same))
        (self._next / "state" / "state.db-wal").write_bytes(after[:cut] + before[cut:])
        self.torn += 1

    @staticmethod
    def _wal(directory: Path) -> bytes:
        path = directory / "state" / "state.db-wal"
        return path.read_bytes() if path.exists() else b""

    def _stamp(self) -> tuple[int, int]:
        found = os.stat(self.directory / "state" / "state.db")
        return found.st_size, found.st_mtime_ns

    # --- decisions -----------------------------------------------------------------------------------------------

    def _ask(self, ask: Callable[..., Any], decide: Callable[[Any], Any], label: str) -> Any:
        """The answer is there when this returns. Raises Killed when the writer died, or is not there any more."""
        if self.dead:
            raise Killed("not there any more")
        future = ask(decide, label)
        if self._hub is None:
            self._serve()
        else:
            self._hub.switch()
        return future

    def together(self, calls: list[Callable[[], None]]) -> None:
        """Each call up to the decision it waits for; then the writer commits all of them at once; then they go on."""
        self._hub = getcurrent()
        running = [greenlet(call) for call in calls]
        for call in running:
            call.switch()
        self._hub = None
        waiting = [call for call in running if not call.dead]
        try:
            if waiting:
                if self.dead:
                    raise Killed("not there any more")
                self._serve()
        except Killed as killed:
            for call in waiting:
                call.throw(killed)
        else:
            for call in waiting:
                call.switch()

    # --- an old database -----------------------------------------------------------------------------------------

    def back_up(self) -> None:
        """A copy of the database as a careless operator makes it; the register is not in it."""
        self._backup = self._root / "backup"
        shutil.rmtree(self._backup, ignore_errors=True)
        (self._backup / "state").mkdir(parents=True)
        for name in ("state.db", "state.db-wal"):
            if (self.directory / "state" / name).exists():
                shutil.copyfile(self.directory / "state" / name, self._backup / "state" / name)
        self._backup_register = (self.directory / "state" / "checkpoint").read_bytes()

    def restored_is_refused(self) -> bool:
        """Whether a server would not start on the backup beside today's register. True when nothing was logged since."""
        register = (self.directory / "state" / "checkpoint").read_bytes()
        if self._backup is None or register == self._backup_register:
            return True
        (self._backup / "state" / "checkpoint").write_bytes(register)
        world = World(self.clock, self._random.randbytes, open_engine=once.open_engine)
        try:
            config = self._config
            open_core(
                self._backup, config.federation, config.log_origin, self.signer, Absent(), world
            ).close()
        except Corrupt:
            return True
        return False


def _shared(one: bytes, other: bytes) -> int:
    """How long the beginning is that two have in common."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
