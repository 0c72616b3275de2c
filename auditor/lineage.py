"""Where a model comes from: every update that went into it, in order, with its weight, staleness and silo.

A version is its parent plus `lr · Σ coefficient · delta` of its step (for Adam: fed through the optimizer), so a silo's
*share* is the sum of its updates' coefficients over that of all updates, from version 1 on, with those an update has as
a silo's cached one (ca2fl). It says how much of the way a silo's updates made, not how much better they made the model.
"""

import hashlib
import os
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import fsum
from pathlib import Path
from typing import Any

from anabranch.errors import Reason, Refused
from anabranch.tlog.details import AggregationInput, FurtherTerm
from anabranch.wire import canonical, limits
from anabranch.wire.statements import parse_update
from auditor.export import PIECE, Export
from auditor.history import Decision, History, Job, Version

PARTS = ("parameters", "ema", "optimizer")


@dataclass(frozen=True)
class Chosen:
    """A version of a job, and what of it was asked for."""

    job: str
    version: int
    part: str = "parameters"  # one of PARTS: which of the version's files


@dataclass(frozen=True)
class Input:
    """One update that was merged."""

    one: AggregationInput
    received: int  # log index
    examples: int | None  # records it counted for; None: the terms do not ask, or the statement is not there


@dataclass(frozen=True)
class Step:
    version: int
    index: int  # of aggregation.performed
    time: str  # of model.published
    strategy: str
    closed_by: str
    absent: tuple[str, ...]
    inputs: tuple[Input, ...]
    further: tuple[FurtherTerm, ...]
    revival: str | None


@dataclass
class Share:
    """What one silo gave."""

    silo: str
    coefficients: list[float] = field(default_factory=list)
    cached: list[float] = field(
        default_factory=list
    )  # coefficients, of versions that its cached delta entered
    staleness: list[int] = field(default_factory=list)
    first: int = -1  # log index of its first update that counted
    share: float = 0.0
    approval: Decision | None = None  # in force when that update was received


@dataclass(frozen=True)
class Lineage:
    chosen: Chosen
    job: Job
    version: Version
    steps: list[Step]
    shares: list[Share]

    @property
    def digest(self) -> str:
        return str(getattr(self.version, self.chosen.part))


def choose(history: History, job: str | None, version: str) -> Chosen:
    """`version`: a number, head, best, or a file, which is hashed. Raises Refused saying what there is."""
    if job is not None and job not in history.jobs:
        raise Refused(Reason.NOT_FOUND, f"the log knows no job {job}; its jobs are: {_names(history)}")
    if not re.fullmatch(r"head|best|[0-9]{1,16}", version):
        return _of_file(history, job, Path(version))
    if job is None and len(history.jobs) != 1:
        known = _names(history)
        raise Refused(Reason.NOT_FOUND, f"name a job with --job; the log's jobs are: {known}")
    name = job or next(iter(history.jobs))
    found = history.jobs[name]
    if version == "best" and found.best is None:
        raise Refused(Reason.NOT_FOUND, f"job {name} has no version called best; take --version head")
    named = {"head": found.head, "best": found.best}.get(version)
    number = int(version) if named is None else named
    if not 0 <= number <= found.head:
        raise Refused(Reason.NOT_FOUND, f"job {name} has no version {version}; its head is {found.head}")
    return Chosen(name, number)


def trace(export: Export, history: History, chosen: Chosen) -> Lineage:
    """Of a verified export. Raises Refused if a statement in it cannot be read."""
    job = history.jobs[chosen.job]
    steps = [_step(export, history, job, number) for number in range(1, chosen.version + 1)]
    shares: dict[str, Share] = {}
    for step in steps:
        for given in step.inputs:
            silo = given.one.silo
            share = shares.setdefault(silo, Share(silo, first=given.received))
            share.coefficients.append(canonical.from_hexfloat(given.one.coefficient))
            share.staleness.append(given.one.staleness)
            share.first = min(share.first, given.received)
        for term in step.further:
            if term.update is not None:
                silo = history.updates[term.update].silo
                shares[silo].cached.append(canonical.from_hexfloat(term.coefficient))
    total = fsum(value for share in shares.values() for value in (*share.coefficients, *share.cached))
    decisions = defaultdict(list)
    for decision in job.record:
        decisions[decision.silo].append(decision)
    for share in shares.values():
        share.share = fsum((*share.coefficients, *share.cached)) / total if total else 0.0
        before = [decision for decision in decisions[share.silo] if decision.index < share.first]
        share.approval = before[-1] if before else None
    ordered = sorted(shares.values(), key=lambda share: (-share.share, share.silo))
    return Lineage(chosen, job, job.versions[chosen.version], steps, ordered)


def document(found: Lineage) -> dict[str, Any]:
    """For `--json`. Weights and coefficients in the log's own spelling."""
    job, version = found.job, found.version
    return {
        "job": found.chosen.job,
        "version": found.chosen.version,
        "asked_for": {"part": found.chosen.part, "sha256": found.digest},
        "published": {"entry": version.index, "time": version.time},
        "files": {part: getattr(version, part) for part in PARTS},
        "submitted": {"entry": job.index, "time": job.time, "by": job.owner},
        "terms": {"sha256": job.submitted.terms_sha256, "in_export": job.terms is not None},
        "code_sha256": job.submitted.archive_sha256,
        "pruned": {
            "snapshot_entry": job.pruned.get(found.chosen.version),
            "deltas_entry": job.deltas_pruned if job.deltas_pruned >= 0 else None,
        },
        "approvals": [
            {
                "silo": one.silo,
                "decision": one.word,
                "entry": one.index,
                "time": one.time,
                "keyid": one.keyid,
                "terms_sha256": job.submitted.terms_sha256,
            }
            for one in job.record
        ],
        "silos": [_share(one) for one in found.shares],
        "steps": [_document(step) for step in found.steps],
        "revivals": revivals(job, found.chosen.version) if job.revives else None,
    }


def revivals(job: Job, version: int) -> dict[str, Any]:
    """What was distilled into versions up to `version`, who taught it, and what was not used of all there was."""
    used = [one for one in job.revivals.values() if 0 <= one.used <= version]
    taught = Counter(teacher.silo for one in used for teacher in one.detail.teachers)
    libraries = Counter(" ".join(one) for done in used for one in done.detail.libraries.items())
    dropped = [one.reason for one in job.revivals.values() if one.fate == "dropped"]
    return {
        "used_in": sorted(one.used for one in used),
        "teachers": dict(sorted(taught.items())),
        "libraries": dict(sorted(libraries.items())),  # a replay computes none of it again
        "performed": len(job.revivals),
        "not_used": dict(sorted(Counter([*dropped, *job.skipped.values()]).items())),
    }


def _share(one: Share) -> dict[str, Any]:
    return {
        "silo": one.silo,
        "share": round(one.share, 6),
        "updates": len(one.coefficients),
        "staleness_mean": round(sum(one.staleness) / len(one.staleness), 3),
        "staleness_max": max(one.staleness),
        "first_update_entry": one.first,
        "approved_entry": one.approval.index if one.approval else None,
    }


def _document(step: Step) -> dict[str, Any]:
    return {
        "version": step.version,
        "entry": step.index,
        "time": step.time,
        "strategy": step.strategy,
        "closed_by": step.closed_by,
        "absent": list(step.absent),
        "inputs": [
            {
                **given.one.model_dump(exclude_none=True),
                "received_entry": given.received,
                "examples": given.examples,
            }
            for given in step.inputs
        ],
        "further": [term.model_dump(exclude_none=True) for term in step.further],
        "revival": step.revival,
    }


def _step(export: Export, history: History, job: Job, number: int) -> Step:
    index, detail = job.steps[number]
    counts = job.terms is not None and job.terms.file.silos.weighting == "examples"
    inputs = []
    for one in detail.inputs:
        update = history.updates[one.update]
        payload = export.object(update.statement, limits.ENVELOPE) if counts else None
        examples = parse_update(payload).num_examples if payload is not None else None
        inputs.append(Input(one, update.index, examples))
    time = job.versions[number].time
    return Step(
        number,
        index,
        time,
        detail.strategy,
        detail.closed_by,
        detail.absent,
        tuple(inputs),
        detail.further or (),
        detail.revival,
    )


def _of_file(history: History, job: str | None, path: Path) -> Chosen:
    digest = _hash(path)
    found = list(_holders(history, job, digest))
    if not found:
        where = f"job {job}" if job else f"any of {_names(history)}"
        raise Refused(
            Reason.NOT_FOUND,
            f"{path} has the digest {digest}: no version of {where} is that file, as parameters, average (ema) or"
            " optimizer state. It is from another log, newer than this export, or was changed.",
        )
    jobs = {one.job for one in found}
    if len(jobs) > 1:
        raise Refused(
            Reason.NOT_FOUND, f"{path} is a version of {', '.join(sorted(jobs))}; name one with --job"
        )
    return found[-1]


def _holders(history: History, only: str | None, digest: str) -> Iterator[Chosen]:
    for name, job in history.jobs.items():
        for number, version in enumerate(job.versions) if only in (None, name) else ():
            for part in PARTS:
                if getattr(version, part) == digest:
                    yield Chosen(name, number, part)


def _hash(path: Path) -> str:
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Refused(Reason.NOT_FOUND, f"{path} is not a file")
            found = hashlib.sha256()
            while piece := file.read(PIECE):
                found.update(piece)
            return found.hexdigest()
    except OSError as error:
        raise Refused(
            Reason.NOT_FOUND,
            f"--version {path}: not head, best or a number, and no file that can be read ({error.strerror})",
        ) from error


def _names(history: History) -> str:
    return ", ".join(history.jobs) or "none"
