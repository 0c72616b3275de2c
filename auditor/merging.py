"""What a version is made of: each update counts once, and what a strategy counts is what the log tells.

participants  the silos that approve the job at this entry
windows       versions made since a silo's newest approval; arrived: those among them that took an update of the silo
further       versions and merged updates of the same job
revival       a result of the same job that waits and is in time; each counts once
"""

from bisect import bisect_left
from collections import defaultdict

from anabranch.rules.strategies import COUNTING
from anabranch.tlog.details import AggregationInput, AggregationPerformed
from anabranch.tlog.entry import Entry
from auditor.broken import Broken, require
from auditor.history import History, Job, Update
from auditor.jobs import Jobs
from auditor.reviving import use


class Merging:
    """The rules about aggregation.performed; `performed` raises Broken. `index` is that of the entry."""

    def __init__(self, history: History, jobs: Jobs) -> None:
        self._history = history
        self._jobs = jobs
        self._arrivals: dict[tuple[str | None, str], list[int]] = defaultdict(list)  # versions of (job, silo)

    def performed(self, index: int, entry: Entry, detail: AggregationPerformed) -> None:
        job = self._jobs.running(entry)
        require(
            (detail.base, detail.version) == (job.head, job.head + 1),
            f"makes version {detail.version} from {detail.base}, but the head is {job.head}",
        )
        require(detail.version not in job.steps, f"version {detail.version} was made before")
        for term in detail.further or ():
            earlier = self._history.updates.get(term.update or "")
            merged = earlier is not None and (earlier.job, earlier.fate) == (entry.job, "merged")
            require(
                merged or (term.version is not None and term.version <= job.head),
                f"rests on {term.update or term.version}, which is no version and no merged update of its job",
            )
        job.steps[detail.version] = index, detail
        if detail.revival is not None:
            use(job, detail.revival, detail.base)
        for one in detail.inputs:
            self._merge(entry, detail, one)
        for silo in {one.silo for one in detail.inputs}:
            self._arrivals[entry.job, silo].append(detail.version)
        self._count(entry, job, detail)

    def _merge(self, entry: Entry, detail: AggregationPerformed, one: AggregationInput) -> None:
        update = open_update(self._history, one.update)
        update.fate = "merged"
        found = update.job, update.silo, update.delta, update.base
        require(
            found == (entry.job, one.silo, one.delta_sha256, one.base),
            f"uses update {one.update} as another one than was received",
        )
        self._jobs.approved(entry, self._jobs.job(entry), one.silo)
        late = detail.base - update.base
        require(
            one.staleness == late, f"says update {one.update} is {one.staleness} versions late, it is {late}"
        )

    def _count(self, entry: Entry, job: Job, detail: AggregationPerformed) -> None:
        approving = tuple(sorted(silo for silo, word in job.decisions.items() if word == "approved"))
        expected = approving if detail.strategy in COUNTING else None
        require(
            detail.participants == expected,
            f"counts the silos {detail.participants}, but those that approve are {expected}",
        )
        for one in detail.inputs if detail.strategy == "fedfix" else ():
            approved = max(did.index for did in job.record if (did.silo, did.word) == (one.silo, "approved"))
            first = bisect_left(job.versions, approved, key=lambda version: version.index)
            arrivals = self._arrivals[entry.job, one.silo]
            found = len(arrivals) - bisect_left(arrivals, first), detail.version - first + 1
            require(
                (one.arrived, one.windows) == found,
                f"says silo {one.silo} arrived in {one.arrived} of {one.windows} windows, it is {found}",
            )


def open_update(history: History, name: str) -> Update:
    """An update without a fate. Raises Broken."""
    update = history.updates.get(name)
    if update is None:
        raise Broken(f"update {name} was never received")
    require(update.fate == "open", f"update {name} was {update.fate} before; it counts once")
    return update
