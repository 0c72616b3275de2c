"""Retention: content the log says is no longer kept, and whether it was due to go.

A version's snapshot goes once it is superseded for as long as the terms say; what a replay needs goes when that time is
over since the job ended and one of its models was last handed out. The head, the best version and the base of work that
is out stay. Statements stay too: without them no signature could be checked.
"""

from collections.abc import Iterator

from anabranch import terms
from anabranch.tlog.details import RetentionPruned
from anabranch.tlog.entry import Entry
from anabranch.wire import canonical
from auditor.broken import Broken, require
from auditor.history import History, Job
from auditor.jobs import Jobs

ROUNDING = 1.0  # seconds: times in the log and the terms' seconds are rounded


class Retention:
    """The rules about what goes when; the method raises Broken. `index` is that of the entry."""

    def __init__(self, history: History, jobs: Jobs) -> None:
        self._history = history
        self._jobs = jobs

    def pruned(self, index: int, entry: Entry, detail: RetentionPruned) -> None:
        job = self._jobs.job(entry)
        if detail.kind == "deltas":
            require(job.deltas_pruned < 0, f"the deltas of job {entry.job} were pruned before")
            job.deltas_pruned = index
        numbers = list(_numbers(job, detail))
        before = [number for number in numbers if number in job.pruned]
        job.pruned |= dict.fromkeys(numbers, index)
        if before:
            raise Broken(f"version {before[0]} was pruned before")
        if job.terms is not None:
            said = terms.seconds(getattr(job.terms.file.retention, detail.rule))
            require(detail.seconds == int(said), f"prunes after {detail.seconds} s, the terms say {said:g} s")
        now = canonical.from_utc(entry.time) + ROUNDING
        if detail.rule == "updates":
            _window_is_over(entry, job, now - detail.seconds)
        else:
            require(detail.kind == "snapshots", "prunes deltas before their job has ended")
            for number in numbers:
                self._is_idle(entry, job, number, now - detail.seconds)
        for number in numbers:
            require(
                number not in (job.head, job.best), f"prunes version {number}, which is the head or the best"
            )

    def _is_idle(self, entry: Entry, job: Job, number: int, until: float) -> None:
        """A version that was superseded at `until` or before, and that nobody works on."""
        require(number > 0, "prunes version 0, from which a replay starts, while deltas are kept")
        require(
            number < job.head and canonical.from_utc(job.versions[number + 1].time) <= until,
            f"prunes version {number} before its time",
        )
        for (of, silo), held in self._history.held.items():
            if of == entry.job and any(lease.issued.version == number for lease in held.values()):
                raise Broken(f"prunes version {number}, on which silo {silo} is at work")
        if job.terms is not None:
            window = terms.seconds(job.terms.file.retention.updates)
            now = canonical.from_utc(entry.time) + ROUNDING
            newest = max(
                (canonical.from_utc(one.time) for one in job.handed_out if one.version == number), default=0
            )
            require(newest + window <= now, f"prunes version {number} too soon after it was handed out")


def _window_is_over(entry: Entry, job: Job, until: float) -> None:
    require(job.ended >= 0, f"prunes what a replay of job {entry.job} needs before the job has ended")
    released = [job.ended_at, *(one.time for one in job.handed_out)]
    require(
        max(map(canonical.from_utc, released)) <= until,
        f"prunes what a replay of job {entry.job} needs before its time",
    )


def _numbers(job: Job, detail: RetentionPruned) -> Iterator[int]:
    for span in detail.versions:
        if span.last > job.head:
            raise Broken(f"prunes version {span.last}, which was not published")
        yield from range(span.first, span.last + 1)


def not_kept(job: Job, version: int) -> list[str]:
    """Content behind the digests of a version that is not kept any more, in words."""
    gone = [f"its snapshot, says entry {job.pruned[version]}"] if version in job.pruned else []
    return gone + (
        [f"the deltas of its updates, says entry {job.deltas_pruned}"] if job.deltas_pruned >= 0 else []
    )


def pruned_objects(history: History) -> dict[str, int]:
    """Digest → entry that says it is not kept any more. What anything else names is kept."""
    gone: dict[str, int] = {}
    if not any(job.pruned or job.deltas_pruned >= 0 for job in history.jobs.values()):
        return gone
    kept: set[str] = set()
    for job in history.jobs.values():
        for number, version in enumerate(job.versions):
            packed = job.views.get(number, {}).values()
            own = (version.parameters, version.optimizer, version.ema, *packed)
            for digest in filter(None, own):
                if number in job.pruned:
                    gone[digest] = job.pruned[number]
                else:
                    kept.add(digest)
    for update in history.updates.values():
        at = history.jobs[update.job].deltas_pruned
        if at < 0 or update.fate == "open":
            kept.add(update.delta)
        else:
            gone[update.delta] = at
    for job in history.jobs.values():
        for one in job.revivals.values():
            if job.deltas_pruned < 0 or one.fate == "open":
                kept.add(one.detail.delta_sha256)
            else:
                gone[one.detail.delta_sha256] = job.deltas_pruned
    return {digest: at for digest, at in gone.items() if digest not in kept}
