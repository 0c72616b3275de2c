"""Silos that fall silent while they hold a lease, noticed within seconds and named in the log.

What is known to be lost lives in memory: after a restart a silo that is still away is noticed, and logged, again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import select

from anabranch.tlog.entry import Actor, Target
from server.core.doing import SILENCE
from server.state.database import Reader
from server.state.tables import leases
from server.state.writer import Writer
from server.status import Presence


@dataclass
class Attendance:
    writer: Writer
    reader: Reader
    presence: Presence
    observer: Actor
    clock: Callable[[], float]  # unix seconds
    started_at: float  # silence is counted from here for silos this process has not heard yet
    _lost: set[str] = field(default_factory=set)

    def look(self) -> None:
        """Compare who should be here with who is; log each change once."""
        with self.reader.connect() as connection:
            working = set(
                connection.execute(select(leases.c.silo).where(leases.c.status == "open")).scalars()
            )
        silent = {silo for silo in working if self._silent(silo)}
        back = {silo for silo in self._lost if not self._silent(silo)}
        for silo in sorted(silent - self._lost):
            self._log("silo.lost", silo)
        for silo in sorted(back):
            self._log("silo.returned", silo)
        self._lost = (self._lost | silent) - back

    def _silent(self, silo: str) -> bool:
        heard = max(self.presence.last_seen(silo), self.started_at)
        return self.clock() - heard > SILENCE

    def _log(self, type: str, silo: str) -> None:
        target, detail = Target(kind="silo", id=silo), {"silo": silo}
        self.writer.run(
            lambda tx: tx.log(type, actor=self.observer, target=target, detail=detail), "attendance"
        )
