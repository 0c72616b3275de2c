"""Who is connected, what their agents report, and what the server wants to tell them.

All of it is in memory and may be lost: after a restart every agent opens its session again within
seconds. Rooms call this from any thread; mailboxes live on the event loop.
"""

import asyncio
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

TWIN = (
    7.0  # seconds two sessions of one agent both talk before it is two agents: two heartbeats, and one late
)
UNREAD = 64  # messages an agent may leave unread before it has to reconnect and look afresh


@dataclass(frozen=True)
class JobChanged:
    """A job's status is another one now."""

    job: str
    status: str


@dataclass(frozen=True)
class AbortLease:
    lease: str
    reason: str


@dataclass(frozen=True)
class Revoked:
    """The last message of a session: this silo's certificates open nothing any more."""

    reason: str


@dataclass(frozen=True)
class Drain:
    """The last message of a session: the server is leaving, or has lost track; reconnect."""


Push = JobChanged | AbortLease | Revoked | Drain


@dataclass(frozen=True)
class LeaseProgress:
    """How far a lease is, as its agent says."""

    step: int = 0  # of `steps`; 0, 0: not told yet
    steps: int = 0
    samples_per_second: float = 0.0  # of training; 0.0: not known
    tokens_per_second: float = 0.0


@dataclass(frozen=True)
class Presence:
    """What is known of a silo. `last_seen` is unix seconds; 0.0: not since this server started."""

    sessions: int = 0
    last_seen: float = 0.0
    release: str = ""


@dataclass(eq=False)
class Mailbox:
    """The outgoing half of one session, on the event loop that made it."""

    silo: str
    agent: str  # its whole identity: a silo may have several agents
    opened: float  # unix seconds
    heard: float  # unix seconds
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _queue: asyncio.Queue[Push | None] = field(default_factory=lambda: asyncio.Queue(UNREAD))

    async def next(self) -> Push | None:
        """The next message; None once the agent has stopped talking."""
        return await self._queue.get()

    def hang_up(self) -> None:
        """The agent has stopped talking. On the event loop only."""
        self._put(None)

    def put(self, message: Push) -> None:
        """From any thread. A message for a session whose event loop has gone is dropped with it."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._put, message)

    def _put(self, message: Push | None) -> None:
        if self._queue.full():
            while not self._queue.empty():
                self._queue.get_nowait()
            message = Drain() if isinstance(message, JobChanged | AbortLease) else message
        self._queue.put_nowait(message)


class Sessions:
    """Thread-safe."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._presence: dict[str, Presence] = {}
        self._progress: dict[str, Mapping[str, LeaseProgress]] = {}  # silo → lease
        self._mailboxes: set[Mailbox] = set()

    def presence(self, silo: str) -> Presence:
        return self._presence.get(silo, Presence())

    def connected(self, silo: str) -> bool:
        return self.presence(silo).sessions > 0

    def last_seen(self, silo: str) -> float:
        """Unix seconds of the newest message of its session; 0.0: never."""
        return self.presence(silo).last_seen

    def progress(self, lease: str) -> LeaseProgress:
        """Of a lease, as its agent last reported it."""
        with self._lock:
            for leases in self._progress.values():
                if lease in leases:
                    return leases[lease]
        return LeaseProgress()

    def count(self) -> int:
        """Open sessions."""
        return len(self._mailboxes)

    def push(self, silo: str, message: Push) -> None:
        """Tell every connected agent of `silo`; one that is not connected learns it when it asks."""
        with self._lock:
            mailboxes = [mailbox for mailbox in self._mailboxes if mailbox.silo == silo]
        for mailbox in mailboxes:
            mailbox.put(message)

    def broadcast(self, message: Push) -> None:
        with self._lock:
            mailboxes = list(self._mailboxes)
        for mailbox in mailboxes:
            mailbox.put(message)

    def open(self, silo: str, agent: str, release: str) -> Mailbox:
        """A session began. On the event loop only; pair it with `close`."""
        now = self._clock()
        mailbox = Mailbox(silo, agent, now, now)
        with self._lock:
            self._mailboxes.add(mailbox)
            before = self._presence.get(silo, Presence())
            self._presence[silo] = Presence(before.sessions + 1, now, release)
        return mailbox

    def heard(self, mailbox: Mailbox, progress: Mapping[str, LeaseProgress]) -> bool:
        """A heartbeat with the leases of everything the agent works on; replaces the last report.

        True: a younger session of the same agent has long been talking too, so there are two. One that broke and was
        opened again is not: nothing comes out of the old stream any more.
        """
        silo, now = mailbox.silo, self._clock()
        with self._lock:
            mailbox.heard = now
            self._presence[silo] = replace(self._presence[silo], last_seen=now)
            self._progress[silo] = progress
            return any(
                other.agent == mailbox.agent
                and other.opened > mailbox.opened
                and min(now, other.heard) > other.opened + TWIN
                for other in self._mailboxes
            )

    def close(self, mailbox: Mailbox) -> None:
        with self._lock:
            self._mailboxes.discard(mailbox)
            before = self._presence[mailbox.silo]
            self._presence[mailbox.silo] = replace(before, sessions=before.sessions - 1)
