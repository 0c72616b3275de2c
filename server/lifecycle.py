"""The life of a job, as transitions inside a transaction.

    waiting → running ⇄ paused → completed | aborted

`conclude` is called after everything that can move a job on: a decision, a version, an evaluation, a deadline.
"""

import json
import re
from typing import Any

from sqlalchemy import bindparam, select, update

from anabranch.errors import Reason, Refused
from anabranch.terms import JobTerms, parse_terms, seconds
from anabranch.tlog.entry import Actor, Target
from anabranch.tlog.fields import OPERATOR_REASON
from anabranch.wire import canonical
from server.core.conclusion import awaited, judge
from server.core.turn import due_version
from server.state import records
from server.state.tables import decisions, evaluations, jobs, leases, revivals, steps, updates
from server.state.writer import Transaction
from server.tallies import tally

_UPDATE = select(updates).where(updates.c.id == bindparam("which"))
_RETIRE = update(updates).where(updates.c.id == bindparam("which")).values(status="retired")
_AT_WORK = select(leases.c.silo).where(
    leases.c.job == bindparam("job"),
    leases.c.silo.in_(bindparam("expected", expanding=True)),
    leases.c.issued_at > bindparam("since"),
)
_TRIED = select(leases.c.silo).where(
    leases.c.job == bindparam("job"),
    leases.c.kind == "evaluate",
    leases.c.version >= bindparam("due"),
    leases.c.status != "open",
)
_METRICS = select(evaluations.c.metrics).where(
    evaluations.c.job == bindparam("job"),
    evaluations.c.version == bindparam("due"),
    evaluations.c.split == bindparam("split"),
)
_END_REVIVAL = update(revivals).where(revivals.c.id == bindparam("which"))
_CHANGE = update(jobs).where(jobs.c.id == bindparam("job"))

ENDED = ("completed", "aborted")
# action → (statuses it applies to, status afterwards, entry type)
ACTIONS = {
    "pause": (("waiting", "running"), "paused", "job.paused"),
    "resume": (("paused",), "running", "job.resumed"),
    "abort": (("waiting", "running", "paused"), "aborted", "job.aborted"),
}


def change(tx: Transaction, actor: Actor, job_id: str, action: str, reason: str) -> str:
    """Pause, resume or abort; the new status. Raises Refused when the job's status does not allow it."""
    job = records.job_row(tx.connection, job_id)
    if action not in ACTIONS:
        raise Refused(Reason.MALFORMED, f"{action!r} is not one of {', '.join(ACTIONS)}")
    if not re.fullmatch(OPERATOR_REASON, reason):
        raise Refused(
            Reason.MALFORMED,
            f"reason {reason[:80]!r} goes into the log all silos read: use a few lowercase words, digits, - and _",
        )
    allowed, status, entry = ACTIONS[action]
    if job.status not in allowed:
        raise Refused(
            Reason.JOB_NOT_RUNNING,
            f"job {job.name} is {job.status}; {action} needs it {' or '.join(allowed)}",
        )
    if action == "resume" and (job.resumed_at is None or not _may_start(tx, job)):
        status = "waiting"
    _log_change(tx, actor, job, entry, reason)
    if status in ENDED:
        _end(tx, actor, job, status, reason)
    else:
        resumed = tx.now if status == "running" else job.resumed_at
        _set(tx, job_id, status=status, reason=reason, resumed_at=resumed)
    if status == "waiting":
        conclude(tx, actor, job_id)
    return str(records.job_row(tx.connection, job_id).status)


def conclude(tx: Transaction, observer: Actor, job_id: str) -> None:
    """Start the job when enough silos approved it, note its best version, complete it when nothing is left to do."""
    job = records.job_row(tx.connection, job_id)
    terms = parse_terms(job.terms)
    if job.status == "waiting" and _may_start(tx, job):
        silos = records.participants(tx.connection, job_id)
        target = Target(kind="job", id=job_id)
        tx.log("job.started", actor=observer, target=target, job=job_id, detail={"silos": silos})
        _set(tx, job_id, status="running", resumed_at=tx.now)
    elif job.status == "running":
        done = _due_evaluation_is_in(tx, job, terms)
        impatient = done and _note_best(tx, observer, job, terms)
        if (job.head >= terms.file.stop.versions and done) or impatient:
            reason = "patience" if impatient else "versions"
            _log_change(tx, observer, job, "job.completed", reason)
            _end(tx, observer, job, "completed", reason)


def retire(tx: Transaction, actor: Actor, update_id: str, reason: str) -> None:
    """An admitted update will not be merged. Its terminal state, logged."""
    row = tx.connection.execute(_UPDATE, {"which": update_id}).one()
    tx.log(
        "update.retired",
        actor=actor,
        target=Target(kind="update", id=update_id, sha256=row.delta),
        job=row.job,
        detail={"update": update_id, "silo": row.silo, "reason": reason},
    )
    tx.connection.execute(_RETIRE, {"which": update_id, "reason": reason})
    tally(tx, row.job, row.silo, "retired", reason)


def withdraw(tx: Transaction, actor: Actor, silo: str, job: str | None = None) -> list[str]:
    """A silo left one job, or (None) was revoked: its unmerged updates are retired, its leases end, what it taught goes.

    A revoked silo that comes back decides about every job afresh: its old approvals were signed with dead keys.
    A frozen update is retired as well: the step that holds it fails to publish and is frozen again without it.
    """
    mine = [updates.c.silo == silo, updates.c.status.in_(("received", "frozen"))]
    held = [leases.c.silo == silo, leases.c.status == "open"]
    if job is not None:
        mine.append(updates.c.job == job)
        held.append(leases.c.job == job)
    else:
        tx.connection.execute(
            update(decisions)
            .where(decisions.c.silo == silo, decisions.c.decision == "approved")
            .values(decision="withdrawn")
        )
    left = tx.connection.execute(select(updates.c.id).where(*mine).order_by(updates.c.entry)).scalars().all()
    for update_id in left:
        retire(tx, actor, update_id, "withdrawn")
    ended = {"status": "released", "reason": "withdrawn", "released_at": tx.now}
    tx.connection.execute(update(leases).where(*held).values(ended))
    end_revivals(tx, actor, "withdrawn", job, silo)
    return list(left)


def end_revivals(
    tx: Transaction, actor: Actor, reason: str, job: str | None, silo: str | None = None
) -> None:
    """The task in flight or the result that waits, of one job or (None) of each; of a `silo`: that it is a teacher of."""
    query = select(revivals).where(revivals.c.status.in_(("claimed", "done"))).order_by(revivals.c.job)
    for row in tx.connection.execute(query if job is None else query.where(revivals.c.job == job)).all():
        if silo is None or silo in json.loads(row.teachers):
            end_revival(tx, actor, row, reason)


def end_revival(tx: Transaction, actor: Actor, row: Any, reason: str, why: str | None = None) -> None:
    """A task ends without a result, or a result will not be used. Its terminal state, logged."""
    entry = tx.log(
        "revival.skipped",
        actor=actor,
        target=Target(kind="revival", id=row.id, sha256=row.delta),
        job=row.job,
        detail={"revival": row.id, "version": row.version, "reason": reason, "why": why},
    )
    done = row.status == "done"  # then `entry` stays that of the result, which names its file
    values = {"status": "dropped" if done else "skipped", "entry": row.entry if done else entry}
    tx.connection.execute(_END_REVIVAL, {"which": row.id, "reason": reason, **values})


def _may_start(tx: Transaction, job: Any) -> bool:
    return len(records.participants(tx.connection, job.id)) >= parse_terms(job.terms).file.silos.min


def _due_evaluation_is_in(tx: Transaction, job: Any, terms: JobTerms) -> bool:
    """Whether those waited for evaluated the newest due version, or could not."""
    due = due_version(terms, job.head)
    if due is None:
        return False
    published = records.version_row(tx.connection, job.id, due).published_at
    whom = awaited(terms, job.head, published, job.resumed_at or 0.0, tx.now)
    if whom == "nobody":
        return True
    expected = set(records.participants(tx.connection, job.id))
    if whom == "those at work":
        since = tx.now - seconds(terms.file.aggregation.max_wait)
        at_work = {"job": job.id, "expected": sorted(expected), "since": since}
        expected = set(tx.connection.execute(_AT_WORK, at_work).scalars())
    return set(tx.connection.execute(_TRIED, {"job": job.id, "due": due}).scalars()) >= expected


def _note_best(tx: Transaction, observer: Actor, job: Any, terms: JobTerms) -> bool:
    """Compare the newest evaluated version with the best so far; True when patience has run out.

    Each version is looked at once.
    """
    due = due_version(terms, job.head)
    rule = terms.file.evaluation
    found = tx.connection.execute(_METRICS, {"job": job.id, "due": due, "split": rule.split})
    metrics = [json.loads(text) for text in found.scalars()]
    judged = judge(rule, job.best_value, job.unimproved, metrics)
    if judged is None or due is None or due <= (job.judged or 0):
        return False
    _set(tx, job.id, judged=due, unimproved=judged.unimproved)
    if judged.better:
        tx.log(
            "model.best",
            actor=observer,
            target=Target(kind="model", id=f"{job.id}/{due}"),
            job=job.id,
            detail={"version": due, "metric": rule.metric, "value": canonical.hexfloat(judged.value)},
        )
        _set(tx, job.id, best=due, best_value=judged.value)
    patience = terms.file.stop.patience
    return patience is not None and judged.unimproved >= patience


def _end(tx: Transaction, actor: Actor, job: Any, status: str, reason: str) -> None:
    """No update and no revival stays without a terminal state, no lease and no step stays open."""
    tx.connection.execute(
        update(steps).where(steps.c.job == job.id, steps.c.status == "frozen").values(status="abandoned")
    )
    left = select(updates.c.id).where(updates.c.job == job.id, updates.c.status.in_(("received", "frozen")))
    for update_id in tx.connection.execute(left.order_by(updates.c.entry)).scalars().all():
        retire(tx, actor, update_id, "job_ended")
    tx.connection.execute(
        update(leases)
        .where(leases.c.job == job.id, leases.c.status == "open")
        .values(status="released", reason="job_ended", released_at=tx.now)
    )
    end_revivals(tx, actor, "job_ended", job.id)
    _set(tx, job.id, status=status, reason=reason, ended_at=tx.now)


def _log_change(tx: Transaction, actor: Actor, job: Any, entry: str, reason: str) -> None:
    target = Target(kind="job", id=job.id)
    tx.log(entry, actor=actor, target=target, job=job.id, detail={"reason": reason, "head": job.head})


def _set(tx: Transaction, job: str, **values: Any) -> None:
    tx.connection.execute(_CHANGE, {"job": job, **values})
