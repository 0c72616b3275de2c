"""Revivals: what a reviver made of the models of silos that allow it, and what became of the result.

result  performed, from a version and teachers → used by one aggregation | skipped
task    skipped, without a result
"""

from anabranch.terms import Revival as Rule
from anabranch.tlog.entry import Entry
from anabranch.tlog.revivals import RevivalPerformed, RevivalSkipped
from auditor.broken import Broken, require
from auditor.history import History, Job, Revival
from auditor.jobs import Jobs, version_of


class Reviving:
    """The rules about revivals; the methods raise Broken. `index` is that of the entry."""

    def __init__(self, history: History, jobs: Jobs) -> None:
        self._history = history
        self._jobs = jobs

    def performed(self, index: int, entry: Entry, detail: RevivalPerformed) -> None:
        job = self._jobs.running(entry)
        _new(job, detail.revival)
        job.revivals[detail.revival] = Revival(index, entry.time, detail)
        version_of(job, detail.version)
        rule = _in_time(job, detail.revival, detail.version, job.head)
        if rule is not None:
            first = max(rule.freeze, rule.warmup)
            require(
                detail.version >= first, f"revives version {detail.version}, the terms begin with {first}"
            )
        silos = [one.silo for one in detail.teachers]
        require(len(set(silos)) == len(silos), "has a silo teach twice")
        for one in detail.teachers:
            update = self._history.updates.get(one.update)
            if update is None or (update.job, update.silo, update.fate) != (entry.job, one.silo, "merged"):
                raise Broken(f"is taught by {one.update}, which is no merged update of silo {one.silo}")
        _allowed(job, detail)

    def skipped(self, index: int, entry: Entry, detail: RevivalSkipped) -> None:
        job = self._jobs.job(entry)
        known = job.revivals.get(detail.revival)
        if known is None:
            _new(job, detail.revival)
            job.skipped[detail.revival] = detail.reason
            return
        before, known.fate, known.reason = known.fate, "dropped", detail.reason
        require(before == "open", f"revival {detail.revival} was {before} before")
        require(detail.version == known.detail.version, f"says revival {detail.revival} began elsewhere")


def use(job: Job, name: str, base: int) -> None:
    """The aggregation that makes the version after `base` adds a result. Raises Broken."""
    revival = job.revivals.get(name)
    if revival is None:
        raise Broken(f"uses revival {name}, which was never performed")
    before, revival.fate, revival.used = revival.fate, "used", base + 1
    require(before == "open", f"uses revival {name}, which was {before} before; it counts once")
    _in_time(job, name, revival.detail.version, base)
    _allowed(job, revival.detail)


def _new(job: Job, name: str) -> None:
    require(name not in job.revivals and name not in job.skipped, f"revival {name} has ended before")


def _in_time(job: Job, name: str, version: int, head: int) -> Rule | None:
    """What the terms say; None: they are not there."""
    if job.terms is None:
        return None
    rule = job.terms.file.revival
    if rule is None:
        raise Broken(f"revival {name} is of a job without [revival]")
    require(
        head - version < rule.late,
        f"revival {name} is {head - version} versions late, the terms take less than {rule.late}",
    )
    return rule


def _allowed(job: Job, detail: RevivalPerformed) -> None:
    for one in detail.teachers:
        require(one.silo in job.teaching, f"silo {one.silo} does not allow its models to teach, and does")
