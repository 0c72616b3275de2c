"""What is missing: the log against the life cycle of a federation, as a state machine.

*Impossible* is what no honest server writes: `lifecycle` found it, and a log with one is not verified.
*Open* is what began and has not ended when the log ends: nothing is wrong with it, but somebody may want to know. A
lease may be at work, an invitation on its way, a silo away; a log that is exported again later may close it.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from anabranch.wire import canonical
from auditor.history import History, Job
from auditor.report import Report
from auditor.words import span, when


@dataclass(frozen=True)
class Gap:
    kind: str  # impossible | open
    rule: str  # which expectation, in a word or two
    entry: int | None  # log index of what began it
    what: str

    def document(self) -> dict[str, Any]:
        return {"kind": self.kind, "rule": self.rule, "entry": self.entry, "what": self.what}


def find_gaps(report: Report, history: History) -> list[Gap]:
    """Impossible ones first, each kind in log order."""
    broken = [
        Gap("impossible", _rule(one.where), one.entry, f"{one.where}: {one.what}")
        for one in report.findings
        if one.step == 5
    ]
    waiting = [*_silos(history), *_leases(history), *_updates(history)]
    waiting += _unexplained(report)
    for name, job in history.jobs.items():
        waiting += [*_job(history, name, job), *_evaluations(name, job), *_revivals(name, job)]
    return broken + sorted(waiting, key=lambda gap: gap.entry or 0)


def document(gaps: list[Gap]) -> dict[str, Any]:
    """For `--json`."""
    counted = {kind: [one.document() for one in gaps if one.kind == kind] for kind in ("impossible", "open")}
    return {"impossible": counted["impossible"], "open": counted["open"]}


def _rule(where: str) -> str:
    """`entry 17 (update.received)` → `update.received`."""
    return where.partition("(")[2].rstrip(")") or where


def _silos(history: History) -> Iterator[Gap]:
    for name, silo in history.silos.items():
        for invitation in silo.invitations.values():
            if not invitation.request and silo.revoked < invitation.index:
                ran_out = invitation.expires <= history.last
                fate = "has run out" if ran_out else f"is good until {when(invitation.expires)}"
                what = f"silo {name} was invited and has not enrolled; the invitation {fate}"
                yield Gap("open", "silo never enrolled", invitation.index, what)
        if silo.lost > silo.heard and silo.active:
            since = f"silo {name} fell silent while it held work, and nothing was heard of it since"
            yield Gap("open", "silo lost", silo.lost, since)


def _leases(history: History) -> Iterator[Gap]:
    for (job, silo), held in history.held.items():
        newest = max((lease.index for lease in held.values()), default=-1)
        for name, lease in held.items():
            work = f"lease {name} of silo {silo} to {lease.issued.kind} on version {lease.issued.version} of {job}"
            late = _seconds(history.last) - _seconds(lease.issued.deadline)
            if lease.index < newest:
                fate = "has no end, though the silo was given other work since"
            elif late > 0:
                fate = f"has no end yet, {span(late)} after its deadline"
            else:
                fate = f"is at work; its deadline is {when(lease.issued.deadline)}"
            yield Gap("open", "lease without an end", lease.index, f"{work} {fate}")


def _updates(history: History) -> Iterator[Gap]:
    for name, update in history.updates.items():
        job = history.jobs.get(update.job)
        if update.fate == "open" and job is not None and job.ended < 0:
            of = f"silo {update.silo} for {update.job}"
            what = f"update {name} of {of} waits for its aggregation since {when(update.time)}"
            yield Gap("open", "update not merged yet", update.index, what)


def _revivals(name: str, job: Job) -> Iterator[Gap]:
    for revival, one in job.revivals.items():
        if one.fate == "open" and job.ended < 0:
            what = f"revival {revival} of {name} waits for its aggregation since {when(one.time)}"
            yield Gap("open", "revival not used yet", one.index, what)


def _job(history: History, name: str, job: Job) -> Iterator[Gap]:
    if job.ended >= 0:
        return
    if job.status != "waiting":
        yield Gap("open", "job not ended", job.index, f"job {name} is {job.status} at version {job.head}")
        return
    active = {silo for silo, known in history.silos.items() if known.active}
    approved = {silo for silo, word in job.decisions.items() if word == "approved"} & active
    least = f" of the {job.terms.file.silos.min} it needs" if job.terms else ""
    undecided = ", ".join(sorted(active - job.decisions.keys())) or "nobody"
    what = f"job {name} waits to start: {len(approved)}{least} have approved; {undecided} has not decided"
    yield Gap("open", "job not started", job.index, what)


def _unexplained(report: Report) -> Iterator[Gap]:
    """Content that is not in the export though no entry says it was pruned; evaluations are private and left out."""
    lost = [one for one in report.missing if one.pruned is None and one.kind != "evaluation statements"]
    for kind, count in Counter(one.kind for one in lost).items():
        some = [one.what for one in lost if one.kind == kind][:3]
        what = f"{count} {kind} are not in the export, and no entry says they were pruned: {', '.join(some)}"
        yield Gap("open", "content not in the export", None, what + (", …" if count > len(some) else ""))


def _evaluations(name: str, job: Job) -> Iterator[Gap]:
    """Versions that came due and that no silo evaluated: silos that are slow skip some, so this is no fault."""
    if job.terms is None or not job.terms.file.evaluated:
        return
    every, last = job.terms.file.evaluation.every, job.terms.file.stop.versions
    for number, version in enumerate(job.versions):
        due = number > 0 and (number % every == 0 or number == last)
        if due and not version.evaluated:
            what = f"version {number} of {name} was due for evaluation, and no silo evaluated it"
            yield Gap("open", "version never evaluated", version.index, what)


def _seconds(time: str) -> float:
    return canonical.from_utc(time)
