"""Callers that were turned away: in the server's own log with the owner of the connection, and in the audit log where
it concerns who the caller is. Both count repetitions and are told once a minute, so nobody can flood them.

Counts of the current minute are lost if the process dies; the entries before are not.
"""

import threading
from collections import Counter
from collections.abc import Mapping

import structlog

from anabranch.errors import Reason, Refused
from anabranch.tlog.entry import Actor, Target
from server import metrics
from server.state.writer import Transaction, Writer

logger = structlog.get_logger("transport")

EVERY = 60.0  # seconds
OWNERS = 1024  # kinds of refusal told by name in one minute; beyond it they are only counted
# Reasons that concern who the caller is, rather than what it asked.
IDENTITY = frozenset(
    {
        Reason.BAD_CERTIFICATE,
        Reason.BAD_TOKEN,
        Reason.DUPLICATE_IDENTITY,
        Reason.QUOTA,
        Reason.REVOKED_IDENTITY,
        Reason.WRONG_ROLE,
    }
)
_OTHERS = (Reason.QUOTA, "unknown", "others", "unknown")  # whoever came after the first OWNERS kinds


class Failures:
    """Thread-safe."""

    def __init__(self, writer: Writer, observer: Actor) -> None:
        self._writer = writer
        self._observer = observer
        self._lock = threading.Lock()
        self._counts: Counter[tuple[Reason, str]] = Counter()
        self._told: Counter[tuple[Reason, str, str, str]] = Counter()

    def count(self, refusal: Refused, method: str, owner: Mapping[str, str]) -> None:
        """`method` is one we serve, as "Service/Method"; `owner` says who, peer and certificate."""
        reason = refusal.code
        kind = (reason, method, owner["who"], owner["certificate"])
        with self._lock:
            self._told[kind if kind in self._told or len(self._told) < OWNERS else _OTHERS] += 1
            first = self._told[kind] == 1
            if reason in IDENTITY:
                self._counts[reason, method] += 1
        if first:
            logger.warning("refused", reason=reason.value, method=method, error=str(refusal)[:300], **owner)
        if reason in IDENTITY:
            metrics.AUTH_FAILURES.labels(reason.value, method).inc()

    def flush(self) -> None:
        """Log what was counted, one entry per reason and method. On an error the counts are kept for the next try."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
            told, self._told = self._told, Counter()
        for (reason, method, who, certificate), times in told.items():
            if times > 1:
                logger.warning(
                    "refused again",
                    reason=reason.value,
                    method=method,
                    who=who,
                    certificate=certificate,
                    times=times - 1,
                )
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
