"""Counters beside the history they count: per job, silo, outcome and reason, moved in the same transaction."""

from sqlalchemy import bindparam, insert, update

from server.state.tables import tallies
from server.state.writer import Transaction

_FIRST = insert(tallies)
_ONE_MORE = (
    update(tallies)
    .where(
        tallies.c.job == bindparam("of_job"),
        tallies.c.silo == bindparam("of_silo"),
        tallies.c.outcome == bindparam("ended"),
        tallies.c.reason == bindparam("because"),
    )
    .values(
        count=tallies.c.count + 1,
        bytes=tallies.c.bytes + bindparam("more_bytes"),
        staleness=tallies.c.staleness + bindparam("more_staleness"),
    )
)


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
    now = {"newest": tx.now, "fault": fault}
    which = {"of_job": job, "of_silo": silo, "ended": outcome, "because": reason}
    more = {"more_bytes": bytes, "more_staleness": staleness}
    if tx.connection.execute(_ONE_MORE, which | more | now).rowcount == 0:
        key = {"job": job, "silo": silo, "outcome": outcome, "reason": reason}
        first = {"count": 1, "bytes": bytes, "staleness": staleness}
        tx.connection.execute(_FIRST, key | first | now)
