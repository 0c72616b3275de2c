"""Callers that were turned away, counted and logged once a minute per kind: nobody can flood the log.

Counts of the current minute are lost if the process dies; the entries before are not.
"""

import threading
from collections import Counter

from anabranch.errors import Reason
from anabranch.tlog.entry import Actor, Target
from server import metrics
from server.state.writer import Transaction, Writer

EVERY = 60.0  # seconds
# Reasons that concern who the caller is, rather than what it asked.
IDENTITY = frozenset(
    {Reason.BAD_CERTIFICATE, Reason.REVOKED_IDENTITY, Reason.WRONG_ROLE, Reason.BAD_TOKEN, Reason.QUOTA}
)


class Failures:
    """Thread-safe."""

    def __init__(self, writer: Writer, observer: Actor) -> None:
        self._writer = writer
        self._observer = observer
        self._lock = threading.Lock()
        self._counts: Counter[tuple[Reason, str]] = Counter()

    def count(self, reason: Reason, method: str) -> None:
        """`method` is one we serve, as "Service/Method"."""
        if reason in IDENTITY:
            metrics.AUTH_FAILURES.labels(reason.value, method).inc()
            with self._lock:
                self._counts[reason, method] += 1

    def flush(self) -> None:
        """Log what was counted, one entry per reason and method. On an error the counts are kept for the next try."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        if not counts:
            return
        try:
            self._writer.run(lambda tx: self._log(tx, counts), "auth_failed")
        except Exception:
            with self._lock:
                self._counts.update(counts)
            raise

    def _log(self, tx: Transaction, counts: Counter[tuple[Reason, str]]) -> None:
        target = Target(kind="server", id="aggregator")
        for (reason, method), count in sorted(counts.items()):
            detail = {"code": reason.value, "count": count, "method": method}
            tx.log("auth.failed", actor=self._observer, target=target, status="denied", detail=detail)
