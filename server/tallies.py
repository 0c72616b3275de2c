"""Counters beside the history they count: per job, silo, outcome and reason, moved in the same transaction."""

from sqlalchemy import insert, update

from server.state.tables import tallies
from server.state.writer import Transaction


def tally(
    tx: Transaction,
    job: str,
    silo: str,
    outcome: str,
    reason: str = "",
    *,
    bytes: int = 0,
    staleness: int = 0,
    fault: str = "",
) -> None:
    """One more update or lease ended like this."""
    c = tallies.c
    key = {"job": job, "silo": silo, "outcome": outcome, "reason": reason}
    mine = [c[name] == value for name, value in key.items()]
    grown = {
        "count": c.count + 1,
        "bytes": c.bytes + bytes,
        "staleness": c.staleness + staleness,
        "newest": tx.now,
        "fault": fault,
    }
    if tx.connection.execute(update(tallies).where(*mine).values(grown)).rowcount == 0:
        first = {"count": 1, "bytes": bytes, "staleness": staleness, "newest": tx.now, "fault": fault}
        tx.connection.execute(insert(tallies).values(key | first))
