"""The one long-lived stream to the server: says that we are here and how far we are, hears what it wants of us.

Losing it loses nothing: work goes on, and the stream is opened again, forever, at most two seconds apart.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import structlog

from anabranch import __version__
from anabranch.errors import AnabranchError, Conflict, Reason, Refused, Unavailable
from silo_agent.messages import (
    AbortLease,
    Drain,
    Heartbeat,
    Hello,
    JobChanged,
    LeaseProgress,
    Revoked,
    ServerMessage,
    Welcome,
)

PROTOCOL = 1
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 2.0  # seconds between two attempts to connect
CLOCK_TOLERANCE = 60.0  # seconds; certificates are backdated by as much

logger = structlog.get_logger("session")


class Progress:
    """How far each open lease is. Written by cycle threads, read by the heartbeat."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told: dict[str, LeaseProgress] = {}

    def note(self, lease: str, progress: LeaseProgress) -> None:
        with self._lock:
            self._told[lease] = progress

    def forget(self, lease: str) -> None:
        with self._lock:
            self._told.pop(lease, None)

    def snapshot(self) -> dict[str, LeaseProgress]:
        """By lease."""
        with self._lock:
            return dict(self._told)


@dataclass(frozen=True)
class Listener:
    """What happens when the server speaks; called from the session's thread."""

    connected: Callable[[], None]
    job_changed: Callable[[str, str], None]  # job, status
    abort: Callable[[str, str], None]  # lease, reason
    revoked: Callable[[str], None]  # reason
    lost: Callable[[AnabranchError], None]  # after each failed attempt; may decide to stop


class Link(Protocol):
    """The stream; `silo_agent.client.Client` has it."""

    def session(self, outgoing: Iterator[Hello | Heartbeat]) -> Iterator[ServerMessage]: ...
    def hang_up(self) -> None: ...


@dataclass
class Session:
    link: Link
    progress: Progress
    listener: Listener
    stop: threading.Event
    _beat: float = 3.0  # seconds, as the server's Welcome says
    _hung_up: bool = False  # by us: nothing was lost

    def run(self) -> None:
        """Until `stop` is set. Raises only what is our bug."""
        pauses = backoff()
        while not self.stop.is_set():
            try:
                if self._converse():
                    pauses = backoff()
            except (Unavailable, Conflict, Refused) as error:
                if not self._hung_up:
                    self.listener.lost(error)
            self.stop.wait(next(pauses))

    def reopen(self) -> None:
        """End the current stream; `run` opens the next one, on the client's newest channel, unless it is to stop."""
        self._hung_up = True
        self.link.hang_up()

    def _converse(self) -> bool:
        """One connection, from hello to its end. Whether the server welcomed us."""
        welcomed, ended, self._hung_up = False, threading.Event(), False
        try:
            for message in self.link.session(self._outgoing(ended)):
                if isinstance(message, Welcome):
                    self._welcome(message)
                    welcomed = True
                elif isinstance(message, Drain):
                    logger.info("the server is leaving; reconnecting")
                    break
                else:
                    self._hear(message)
        finally:
            ended.set()
            self.link.hang_up()
        return welcomed

    def _outgoing(self, ended: threading.Event) -> Iterator[Hello | Heartbeat]:
        """Hello, then a heartbeat every few seconds; gRPC consumes it in a thread of its own."""
        yield Hello(PROTOCOL, __version__)
        sequence = 0
        while not ended.wait(self._beat):
            sequence += 1
            yield Heartbeat(sequence, self.progress.snapshot())

    def _welcome(self, welcome: Welcome) -> None:
        if welcome.protocol != PROTOCOL:
            raise Refused(
                Reason.MALFORMED,
                f"the server speaks protocol {welcome.protocol}, this agent {PROTOCOL}: upgrade",
            )
        self._beat = min(max(welcome.heartbeat_seconds, 0.1), 60.0)
        off = time.time() - welcome.server_time
        if abs(off) > CLOCK_TOLERANCE:
            logger.warning("this clock and the server's differ; set this machine's clock", seconds=round(off))
        logger.info("connected", server_release=welcome.release)
        self.listener.connected()

    def _hear(self, message: JobChanged | AbortLease | Revoked) -> None:
        match message:
            case JobChanged(job, status):
                self.listener.job_changed(job, status)
            case AbortLease(lease, reason):
                self.listener.abort(lease, reason)
            case Revoked(reason):
                self.listener.revoked(reason)


def backoff() -> Iterator[float]:
    """Seconds to wait before each next attempt: doubling, spread so that silos do not return all at once, capped."""
    pause = FIRST_PAUSE
    while True:
        yield pause * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing
        pause = min(2 * pause, LONGEST_PAUSE)
