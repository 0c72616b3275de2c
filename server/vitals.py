"""How the server process itself is: memory, disk, traffic."""

import os
import resource
import shutil
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import anabranch
from server import metrics
from server.blobs.local import HEADROOM
from server.sessions import Sessions

WINDOW = 60  # seconds traffic is averaged over; `note` is called once in each


@dataclass(frozen=True)
class ServerStatus:
    release: str
    memory_bytes: int  # resident now
    memory_peak_bytes: int
    disk_free_bytes: int  # beyond what the server keeps free for its own log
    disk_bytes: int
    received_per_second: float  # message bytes
    sent_per_second: float
    sessions: int


@dataclass
class Vitals:
    directory: Path
    sessions: Sessions
    _noted: "deque[tuple[float, float, float]]" = field(default_factory=lambda: deque(maxlen=WINDOW))

    def note(self, now: float) -> None:
        """Remember how much has been received and sent by now (monotonic seconds)."""
        self._noted.append((now, metrics.total(metrics.BYTES_IN), metrics.total(metrics.BYTES_OUT)))

    def look(self) -> ServerStatus:
        disk = shutil.disk_usage(self.directory)
        received, sent = self._traffic()
        memory = resident()
        return ServerStatus(
            release=anabranch.__version__,
            memory_bytes=memory,
            memory_peak_bytes=max(memory, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024),
            disk_free_bytes=max(0, disk.free - HEADROOM),
            disk_bytes=disk.total,
            received_per_second=received,
            sent_per_second=sent,
            sessions=self.sessions.count(),
        )

    def _traffic(self) -> tuple[float, float]:
        noted = list(self._noted)
        if len(noted) < 2:
            return 0.0, 0.0
        (began, *before), (ended, *after) = noted[0], noted[-1]
        span = max(ended - began, 1e-3)
        return (after[0] - before[0]) / span, (after[1] - before[1]) / span


def resident() -> int:
    """Bytes of memory this process holds now, as the kernel counts them."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
