"""One line of plain words for an entry, for people who read a log rather than check it.

Everything in it is an identifier or a code of a bounded alphabet; whoever prints it escapes it all the same.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from anabranch.tlog.details import (
    AggregationPerformed,
    AuthFailed,
    CertIssued,
    CertRenewed,
    JobChanged,
    JobDecision,
    JobStarted,
    JobSubmitted,
    LeaseIssued,
    LeaseReleased,
    LogGenesis,
    ModelBest,
    ModelEncoded,
    ModelEvaluated,
    ModelExported,
    ModelPublished,
    RetentionPruned,
    ServerStarted,
    SiloEnrolled,
    SiloInvited,
    SiloPresence,
    SiloRevoked,
    UpdateReceived,
    UpdateRefused,
    UpdateRetired,
)
from anabranch.tlog.entry import Entry
from anabranch.tlog.revivals import RevivalPerformed, RevivalSkipped
from anabranch.wire import canonical

RETIRED = {
    "job_ended": "the job ended before it was merged",
    "withdrawn": "its silo left",
    "superseded": "its round was over",
}
SKIPPED = {
    "deadline": "no result came in time",
    "late": "the head had moved on too far",
    "withdrawn": "a silo no longer allows its models to teach",
    "job_ended": "the job ended",
    "warmup": "the terms let inputs be synthesised first",
    "not_worth": "the teachers agreed with the head",
    "unsupported": "the reviver cannot do this job",
    "failed": "it failed",
}
DECIDED = {"job.approved": "approves", "job.denied": "denies", "job.withdrawn": "withdraws its approval of"}
CHANGED = {
    "job.paused": "paused",
    "job.resumed": "resumed",
    "job.aborted": "aborted",
    "job.completed": "completed",
}


RULES = {"updates": "its end and last release", "snapshots": "they were superseded"}


def pruned(detail: RetentionPruned) -> str:
    """`snapshots of versions 1 to 4, 6`; `deltas of all updates`."""
    if not detail.versions:
        return "deltas of all updates"
    runs = [
        str(one.first) if one.first == one.last else f"{one.first} to {one.last}" for one in detail.versions
    ]
    rest = f" and {len(runs) - 12} more runs" if len(runs) > 12 else ""
    return f"snapshots of versions {', '.join(runs[:12])}{rest}"


def revived(told: Mapping[str, Any]) -> str:
    """Of `lineage.revivals`: `used in 12 versions (30 to 52), taught by a 12 times, c 9 times, computed with torch 2.13.0
    12 times; not used: 3 warmup`.
    """
    used, missed = told["used_in"], told["not_used"]
    where = f" ({used[0]} to {used[-1]})" if used else ""
    taught, libraries = (
        ", ".join(f"{name} {many(count, 'time')}" for name, count in told[of].items())
        for of in ("teachers", "libraries")
    )
    not_used = ", ".join(f"{count} {reason}" for reason, count in missed.items())
    return "".join(
        [
            f"used in {many(len(used), 'version')}{where}",
            f", taught by {taught}" if taught else "",
            f", computed with {libraries}" if libraries else "",
            f"; not used: {not_used}" if not_used else "",
        ]
    )


def who(identity: str) -> str:
    """`spiffe://fed/silo/rhine/agent/0` → `silo rhine, agent 0`."""
    match identity.removeprefix("spiffe://").split("/")[1:]:
        case ["silo", name, "agent", number]:
            return f"silo {name}, agent {number}"
        case ["admin", name]:
            return f"administrator {name}"
        case ["reviver", name]:
            return f"reviver {name}"
        case ["aggregator", _]:
            return "the server"
    return identity


def short(digest: str) -> str:
    return f"{digest[:12]}…"


def when(time: str) -> str:
    """`2026-11-20T21:21:40.819457Z` → `2026-11-20 21:21:40`."""
    return time[:19].replace("T", " ")


def many(count: int, what: str) -> str:
    """`1 incident`, `2 incidents`."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def tail(name: str) -> str:
    """The end of an identifier: the beginning of a time-ordered one is the same in many."""
    return name if len(name) <= 16 else f"…{name[-12:]}"


def late(versions: int) -> str:
    return f", {many(versions, 'version')} late" if versions else ""


def span(seconds: float) -> str:
    """`93.2` → `1 min 33 s`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 172_800:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole / 86_400:.3g} days"


def say(entry: Entry) -> str:
    """The entry in words; its type and its target when this release does not know the type."""
    detail = entry.detail
    if not isinstance(detail, BaseModel):
        return f"not understood: {entry.type} about {entry.target.kind} {entry.target.id}"
    return _say_silo(entry, detail) or _say_job(entry, detail) or _say_work(entry, detail) or entry.type


def _say_silo(entry: Entry, detail: Any) -> str:
    match detail:
        case LogGenesis():
            return f"log {detail.origin} begins"
        case ServerStarted():
            found = detail.recovered
            unfinished = (
                f"; found {found.open_steps} unfinished steps and {found.requeued} waiting updates"
                if found and (found.open_steps or found.requeued)
                else ""
            )
            return f"server starts, release {detail.release}, epoch {detail.epoch}{unfinished}"
        case SiloInvited():
            return f"{who(entry.actor.id)} invites silo {detail.silo} until {when(detail.expires)}"
        case SiloEnrolled():
            return f"silo {detail.silo} enrols agent {detail.agent} with {len(detail.keys)} signing keys"
        case SiloRevoked():
            return (
                f"{who(entry.actor.id)} revokes silo {detail.silo} ({detail.reason}): {len(detail.certificates)}"
                f" certificates shut out, {len(detail.updates)} updates retired"
            )
        case SiloPresence() if entry.type == "silo.lost":
            return f"silo {detail.silo} fell silent while it held work"
        case SiloPresence():
            return f"silo {detail.silo} is back"
        case CertRenewed():
            return f"certificate of {who(detail.identity)} renewed until {when(detail.not_after)}"
        case CertIssued():
            return f"certificate issued to {who(detail.identity)} until {when(detail.not_after)}"
        case AuthFailed():
            return f"{detail.count} callers of {detail.method} turned away: {detail.code}"
    return ""


def _say_job(entry: Entry, detail: Any) -> str:
    match detail:
        case JobSubmitted():
            return f"{who(entry.actor.id)} submits job {entry.job} under terms {short(detail.terms_sha256)}"
        case JobDecision():
            may = "may" if detail.revival else "may not"
            word = "" if detail.revival is None else f"; its models {may} teach"
            what = f"{DECIDED[entry.type]} job {entry.job}, terms {short(detail.terms_sha256)}"
            return f"silo {detail.silo} {what}{word}"
        case JobStarted():
            return f"job {entry.job} starts with {', '.join(detail.silos)}"
        case JobChanged():
            reason = f" ({detail.reason})" if detail.reason else ""
            return f"job {entry.job} {CHANGED[entry.type]} at version {detail.head} by {who(entry.actor.id)}{reason}"
        case ModelPublished():
            return f"version {detail.version} of {entry.job} published: {short(detail.parameters_sha256)}"
        case ModelEncoded():
            return f"version {detail.version} of {entry.job} encoded as {detail.encoding}"
        case ModelEvaluated():
            return f"silo {detail.silo} evaluates version {detail.version} of {entry.job} on its {detail.split} records"
        case ModelBest():
            value = canonical.from_hexfloat(detail.value)
            return f"version {detail.version} of {entry.job} is the best so far: {detail.metric} {value:.4f}"
        case ModelExported():
            given = f"version {detail.version} of {entry.job} ({detail.selector}) to {who(entry.actor.id)}"
            return f"model {short(detail.sha256)} handed out: {given}"
        case RetentionPruned():
            return f"{pruned(detail)} of {entry.job} not kept any more, {span(detail.seconds)} after {RULES[detail.rule]}"
    return ""


def _say_work(entry: Entry, detail: Any) -> str:
    match detail:
        case LeaseIssued():
            work = "train from" if detail.kind == "train" else "evaluate"
            return f"silo {detail.silo} gets work on {entry.job}: {work} version {detail.version}"
        case LeaseReleased():
            where = f", {detail.exception or 'error'} at {detail.code_line}" if detail.code_line else ""
            return f"silo {detail.silo} gives its work on {entry.job} back: {detail.reason}{where}"
        case UpdateReceived():
            of = f"silo {detail.silo} from version {detail.version}"
            return f"update {tail(detail.update)} of {of} received{late(detail.staleness)}"
        case UpdateRefused():
            return f"update {tail(detail.update or 'without a name')} of silo {detail.silo} refused: {detail.code}"
        case UpdateRetired():
            return f"update {tail(detail.update)} of silo {detail.silo} retired: {RETIRED[detail.reason]}"
        case AggregationPerformed():
            silos = ", ".join(sorted({one.silo for one in detail.inputs}))
            absent = f"; waited in vain for {', '.join(detail.absent)}" if detail.absent else ""
            revived = f" and revival {tail(detail.revival)}" if detail.revival else ""
            made = f"{len(detail.inputs)} updates ({silos}){revived}{absent}"
            return f"version {detail.version} of {entry.job} made of {made}"
        case RevivalPerformed():
            silos = ", ".join(one.silo for one in detail.teachers)
            return f"revival {tail(detail.revival)} of {entry.job} taught by {silos}, from version {detail.version}"
        case RevivalSkipped():
            of = f"of {entry.job} from version {detail.version}"
            return f"revival {tail(detail.revival)} {of} is not used: {SKIPPED[detail.reason]}"
    return ""
