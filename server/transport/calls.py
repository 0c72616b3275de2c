"""The calls in flight: how much each identity may do at once, and how to end what a silo has open.

Everything but `Calls.end` belongs to the event loop; that is what makes "admitted" and "counted" one step.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import TimeoutError as NotInTime
from contextlib import suppress
from dataclasses import dataclass, field

from anabranch.errors import Reason, Refused
from server import metrics
from server.config import Limits
from server.transport.peer import Peer

IDENTITIES = 4096  # whose allowance is remembered; beyond it the one idle for longest starts afresh
FAREWELL = 0.2  # seconds a session has to say why it ends, before it is cut
LAST_WAIT = 1.0  # seconds a revocation waits for calls to end


@dataclass
class Bucket:
    """A token bucket: `rate` per second, at most `capacity` saved up."""

    rate: float
    capacity: float
    level: float
    filled_at: float  # monotonic seconds

    def take(self, amount: float, now: float) -> bool:
        self.level = min(self.capacity, self.level + (now - self.filled_at) * self.rate)
        self.filled_at = now
        if amount > self.level:
            return False
        self.level -= amount
        return True


@dataclass
class Allowance:
    """What one identity may still do."""

    who: str
    calls: Bucket
    bytes: Bucket
    most_open: int
    open: int = 0

    def start(self, now: float) -> None:
        """One more call. Raises Refused(QUOTA)."""
        if self.open >= self.most_open:
            raise Refused(Reason.QUOTA, f"{self.who} has {self.open} calls open; let one end first")
        self.small_message(now)

    def small_message(self, now: float) -> None:
        """A call, or a message too small to be bulk data. Raises Refused(QUOTA)."""
        if not self.calls.take(1, now):
            raise Refused(
                Reason.QUOTA, f"{self.who} makes more than {self.calls.rate:g} calls a second; slow down"
            )

    def receive(self, size: int, now: float) -> None:
        """Raises Refused(QUOTA)."""
        if not self.bytes.take(size, now):
            raise Refused(Reason.QUOTA, f"{self.who} sends more than its bytes per hour; wait")


@dataclass(eq=False)
class Call:
    """One call that was let in."""

    peer: Peer | None  # None on the enrolment port
    allowance: Allowance
    says_farewell: bool
    task: "asyncio.Task[object]"
    ended: str = ""  # why we end it
    left: asyncio.Event = field(default_factory=asyncio.Event)

    def cut(self) -> None:
        if not self.left.is_set():
            self.task.cancel()


class Calls:
    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        """`clock` is monotonic, in seconds."""
        self._limits = limits
        self._clock = clock
        self._allowances: OrderedDict[str, Allowance] = OrderedDict()
        self._open: set[Call] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def enter(self, who: str, peer: Peer | None, says_farewell: bool) -> Call:
        """Count the current task as a call of `who`; pair it with `leave`. Raises Refused(QUOTA)."""
        task = asyncio.current_task()
        assert task is not None  # a call runs in a task of gRPC's
        self._loop = task.get_loop()
        allowance = self._allowance(who)
        allowance.start(self._clock())
        allowance.open += 1
        call = Call(peer, allowance, says_farewell, task)
        self._open.add(call)
        metrics.CALLS_OPEN.set(len(self._open))
        return call

    def leave(self, call: Call) -> None:
        call.allowance.open -= 1
        call.left.set()
        self._open.discard(call)
        metrics.CALLS_OPEN.set(len(self._open))

    def received(self, call: Call, size: int, small: bool) -> None:
        """Account for one message, before it is parsed. Raises Refused(QUOTA)."""
        now = self._clock()
        call.allowance.receive(size, now)
        if small:
            call.allowance.small_message(now)

    def end(self, silo: str, reason: str) -> None:
        """End every call of `silo`, with REVOKED_IDENTITY and `reason`. From any thread but the event loop's.

        Who is let in is counted in the same step, so a call that the allow-list admitted before it changed is
        among them. Returns when they have ended, or after LAST_WAIT.
        """
        if self._loop is None or self._loop.is_closed():
            return
        ending = asyncio.run_coroutine_threadsafe(self._end(silo, reason), self._loop)
        with suppress(NotInTime):
            ending.result(LAST_WAIT)

    async def _end(self, silo: str, reason: str) -> None:
        mine = [call for call in self._open if call.peer is not None and _is_silo(call.peer, silo)]
        for call in mine:
            call.ended = reason
            if call.says_farewell:
                asyncio.get_running_loop().call_later(FAREWELL, call.cut)
            else:
                call.cut()
        for call in mine:
            await call.left.wait()

    def _allowance(self, who: str) -> Allowance:
        known = self._allowances.get(who)
        if known is None:
            known = self._allowances[who] = self._fresh(who)
            if len(self._allowances) > IDENTITIES:
                self._forget_one()
        self._allowances.move_to_end(who)
        return known

    def _fresh(self, who: str) -> Allowance:
        limits, now = self._limits, self._clock()
        calls = Bucket(limits.calls_per_second, limits.calls_burst, limits.calls_burst, now)
        volume = Bucket(limits.bytes_per_hour / 3600, limits.bytes_per_hour, limits.bytes_per_hour, now)
        return Allowance(who, calls, volume, limits.calls_open)

    def _forget_one(self) -> None:
        for who, allowance in self._allowances.items():
            if allowance.open == 0:
                del self._allowances[who]
                return


def _is_silo(peer: Peer, silo: str) -> bool:
    return peer.identity.role == "silo" and peer.identity.name == silo
