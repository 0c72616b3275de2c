"""One release on one page: which model, under which terms, made by whom, and whether it could be recomputed.

A release is a model that was handed out, or the head of a job that was completed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from auditor import lineage
from auditor.export import Export
from auditor.history import HandedOut, History, Job
from auditor.lineage import Chosen
from auditor.replay import Replay
from auditor.retention import not_kept


@dataclass(frozen=True)
class Release:
    chosen: Chosen
    handed_out: tuple[HandedOut, ...]  # of this very file; empty: the head of a completed job


def releases(history: History, since: int) -> Iterator[Release]:
    """What was released at or after entry `since`, job by job; a file that was handed out twice is one release."""
    for name, job in history.jobs.items():
        given: dict[tuple[int, str], list[HandedOut]] = {}
        for one in job.handed_out:
            if one.index >= since:
                given.setdefault((one.version, one.sha256), []).append(one)
        if job.status == "completed" and job.ended >= since:
            given.setdefault((job.head, job.versions[job.head].parameters), [])
        for (version, digest), handed_out in sorted(given.items()):
            part = "parameters" if job.versions[version].parameters == digest else "ema"
            yield Release(Chosen(name, version, part), tuple(handed_out))


def certify(export: Export, history: History, release: Release, replay: Replay | None) -> dict[str, Any]:
    """The facts of the page. The export is verified."""
    chosen = release.chosen
    found = lineage.trace(export, history, chosen)
    job = found.job
    merged = sum(len(share.coefficients) for share in found.shares)
    return {
        "job": chosen.job,
        "version": chosen.version,
        "file": {"parameters": "parameters", "ema": "running average (ema)"}[chosen.part],
        "sha256": found.digest,
        "published": {"entry": found.version.index, "time": found.version.time},
        "handed_out": [
            {"entry": one.index, "time": one.time, "to": one.actor, "as": one.selector}
            for one in release.handed_out
        ],
        "owner": job.owner,
        "terms": _terms(job),
        "silos": [
            {
                "silo": share.silo,
                "share": round(share.share, 6),
                "updates": len(share.coefficients),
                "staleness_max": max(share.staleness),
                "approved_entry": share.approval.index if share.approval else None,
                "approved_time": share.approval.time if share.approval else None,
            }
            for share in found.shares
        ],
        "approved_without_updates": _idle(found),
        "counts": {
            "versions": chosen.version,
            "updates": merged,
            "closed_by_deadline": sum(step.closed_by == "max_wait" for step in found.steps),
            "evaluated_by": sorted(found.version.evaluated),
        },
        "revivals": lineage.revivals(job, chosen.version) if job.revives else None,
        "not_kept": not_kept(job, chosen.version),
        "replay": _replayed(chosen, replay),
    }


def _terms(job: Job) -> dict[str, Any]:
    said: dict[str, Any] = {"sha256": job.submitted.terms_sha256, "code_sha256": job.submitted.archive_sha256}
    if job.terms is not None:
        rule = job.terms.file.aggregation
        said |= {
            "name": job.terms.file.job.name,
            "task": job.terms.file.job.task,
            "strategy": rule.strategy,
            "server_optimizer": rule.server_optimizer.name,
            "silos_min": job.terms.file.silos.min,
            "weighting": job.terms.file.silos.weighting,
        }
    return said


def _idle(found: lineage.Lineage) -> list[str]:
    gave = {share.silo for share in found.shares}
    newest = {one.silo: one.word for one in found.job.record if one.index < found.version.index}
    approved = {silo for silo, word in newest.items() if word == "approved"}
    return sorted(approved - gave)


def _replayed(chosen: Chosen, replay: Replay | None) -> dict[str, Any]:
    """`verdict`: exact | partly | digests (the log says why) | differs | missing (it does not) | none."""
    if replay is None:
        return {"verdict": "none", "words": "not recomputed in this report"}
    steps = [one for one in replay.steps if one.job == chosen.job and one.version <= chosen.version]
    exact, pruned = sum(one.exact for one in steps), [one for one in steps if one.pruned]
    missing = [one for one in steps if one.missing]
    counts = {
        "steps": len(steps),
        "exact": exact,
        "digest_only": [one.version for one in pruned],
        "missing": [one.version for one in missing],
    }
    different = [one for one in steps if one.differs]
    if different:
        words = f"version {different[0].version} differs: {different[0].differs}"
        return {"verdict": "differs", "words": words, **counts}
    if missing:
        words = f"version {missing[0].version} cannot be recomputed: {missing[0].missing[0]} is missing"
        return {"verdict": "missing", "words": words, **counts}
    if not pruned:
        words = f"all {exact} steps recomputed bit for bit" if steps else "as its owner submitted it, no step"
        return {"verdict": "exact", "words": words, **counts}
    versions = f"{pruned[0].version} to {pruned[-1].version}" if len(pruned) > 1 else f"{pruned[0].version}"
    rest = f"{len(pruned)} rest on digests only (version {versions}), their inputs pruned as the terms and the log say"
    words = f"{exact} of {len(steps)} steps recomputed bit for bit; {rest}"
    return {"verdict": "partly" if exact else "digests", "words": words, **counts}
