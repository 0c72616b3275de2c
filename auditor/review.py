"""The report of a whole log, or of what is new since the last one: plain data, which `page` makes readable.

Nothing is told of a log that is not verified except why.
"""

from dataclasses import dataclass
from math import fsum
from pathlib import Path
from typing import Any

from anabranch.errors import Reason, Refused, wording
from anabranch.tlog.checkpoint import Checkpoint, open_checkpoint
from anabranch.tlog.note import MAX_NOTE
from auditor import gaps
from auditor.certificate import certify, releases
from auditor.chronicle import Chronicle, Part
from auditor.export import Export
from auditor.history import History, Job
from auditor.lineage import revivals
from auditor.pin import Pin
from auditor.replay import Replay
from auditor.verify import Verified
from auditor.words import many

CHAPTERS = ("approvals", "identity", "admin", "incidents", "not_understood")


@dataclass(frozen=True)
class Since:
    """The checkpoint a reviewer kept from the last time."""

    path: Path
    checkpoint: Checkpoint


def read_since(path: Path, pin: Pin) -> Since:
    """Raises Refused unless it is a checkpoint of the pinned log."""
    try:
        with open(path, "rb") as file:
            note = file.read(4 * MAX_NOTE + 1).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(
            Reason.MALFORMED,
            f"--since {path} cannot be read as a checkpoint: {wording(error)}; name the one an earlier report kept",
        ) from error
    try:
        return Since(path, open_checkpoint(note, pin.verifier, pin.origin))
    except Refused as refusal:
        raise Refused(
            refusal.code,
            f"--since {path} is no checkpoint of the log {pin.origin}: {refusal}; keep the file `checkpoint` that each"
            " report writes",
        ) from refusal


def extends(checked: Verified, since: Since) -> None:
    """Find it in the report unless this log begins with the log the kept checkpoint was of."""
    kept, report = since.checkpoint, checked.report
    if report.reached < 5:
        return  # there is no tree to compare with
    if kept.size > checked.tree.size:
        what = f"is of {kept.size} entries, this export has {checked.tree.size}: it is older, or the log was cut short"
        report.find(2, since.path.name, what)
    elif checked.tree.roots([kept.size])[kept.size] != kept.root:
        what = f"this log's first {kept.size} entries are not the {kept.size} that were reviewed: history was rewritten"
        report.find(2, since.path.name, what)


def review(
    export: Export, checked: Verified, told: Chronicle, since: Since | None, replay: Replay | None
) -> dict[str, Any]:
    """The report as plain data."""
    report, history = checked.report, checked.history
    document: dict[str, Any] = {
        "verified": report.verified,
        "log": {
            "origin": report.origin,
            "size": report.size,
            "root": report.root,
            "first": report.first,
            "last": report.last,
        },
        "since": since
        and {"size": since.checkpoint.size, "root": since.checkpoint.root.hex(), "entries_new": told.entries},
        "attention": [],
        "verify": report.document(),
        "gaps": gaps.document(gaps.find_gaps(report, history)),
        "replay": replay and replay.document(),
    }
    if not report.verified:
        return document | {
            "attention": [f"not verified: {many(len(report.findings), 'finding')}, and nothing else is told"]
        }
    first = since.checkpoint.size if since else 0
    document |= {
        "jobs": [_job(name, job, told) for name, job in history.jobs.items()],
        "silos": [_silo(name, history) for name in sorted(history.silos)],
        "participation": _participation(history, told, first),
        "refusals": [
            {"code": code, "silo": silo, "count": count}
            for (code, silo), count in sorted(told.refusals.items())
        ],
        "turned_away": dict(sorted(told.turned_away.items())),
        **{chapter: [line.document() for line in told.chapters[chapter]] for chapter in CHAPTERS},
        "releases": [certify(export, history, one, replay) for one in releases(history, first)],
    }
    return document | {"attention": _attention(document)}


def _job(name: str, job: Job, told: Chronicle) -> dict[str, Any]:
    return {
        "job": name,
        "owner": job.owner,
        "status": job.status,
        "reason": job.reason,
        "head": job.head,
        "best": job.best,
        "terms_sha256": job.submitted.terms_sha256,
        "decisions": dict(sorted(job.decisions.items())),
        "versions_made": told.versions[name],
        "closed_full": told.closed_by[name, "full"],
        "closed_by_deadline": told.closed_by[name, "max_wait"],
        "teaching": sorted(job.teaching),
        "revivals": revivals(job, job.head) if job.revives else None,
    }


def _silo(name: str, history: History) -> dict[str, Any]:
    silo = history.silos[name]
    standing = "enrolled" if silo.active else "revoked" if silo.revoked >= 0 else "invited"
    return {"silo": name, "standing": standing, "away": silo.lost > silo.heard and silo.active}


def _participation(history: History, told: Chronicle, first: int) -> list[dict[str, Any]]:
    """One row for each silo that had to do with a job, also when it gave nothing: absence is named."""
    rows = []
    for name, job in history.jobs.items():
        if 0 <= job.ended < first:
            continue
        mine = {silo: part for (of, silo), part in told.parts.items() if of == name}
        total = fsum(part.coefficient for part in mine.values())
        everybody = mine.keys() | {silo for silo, word in job.decisions.items() if word == "approved"}
        rows += [_row(name, silo, mine.get(silo, Part()), total) for silo in sorted(everybody)]
    return rows


def _row(job: str, silo: str, part: Part, total: float) -> dict[str, Any]:
    late = part.staleness
    return {
        "job": job,
        "silo": silo,
        "leases": part.counts["lease.issued"],
        "released": part.counts["lease.released"],
        "received": part.counts["update.received"],
        "merged": part.counts["merged"],
        "retired": part.counts["update.retired"],
        "refused": part.counts["update.refused"],
        "evaluations": part.counts["model.evaluated"],
        "bytes": part.counts["bytes"],
        "share": round(part.coefficient / total, 6) if total else 0.0,
        "staleness_mean": round(sum(late) / len(late), 3) if late else None,
        "staleness_max": max(late) if late else None,
        "absent": part.absent,
    }


def _attention(document: dict[str, Any]) -> list[str]:
    """What a reviewer should read first. Nothing here is a reason to doubt the log."""
    lines = [f"silo {one['silo']} is away" for one in document["silos"] if one["away"]]
    for one in document["participation"]:
        of = f"silo {one['silo']} in {one['job']}"
        if not one["merged"]:
            lines.append(f"{of}: approved or worked, and no update of it was merged")
        elif one["absent"]:
            lines.append(f"{of}: {many(len(one['absent']), 'version')} made without it, after waiting for it")
    if document["refusals"]:
        lines.append(f"refused: {many(sum(one['count'] for one in document['refusals']), 'update')}")
    if document["incidents"]:
        lines.append(many(len(document["incidents"]), "incident"))
    replay = document["replay"]
    if replay and replay["different"]:
        lines.insert(0, f"not reproduced: {many(len(replay['different']), 'version')}")
    if replay and replay["missing"]:
        lines.insert(0, f"not there to be recomputed: {many(len(replay['missing']), 'version')}")
    if replay and replay["digest_only"]:
        count = many(len(replay["digest_only"]), "version")
        lines.append(f"on digests only, their inputs pruned as the log says: {count}")
    if document["not_understood"]:
        lines.append(f"of a type this release does not know: {len(document['not_understood'])} entries")
    return lines
