"""Leases: each is issued to one silo of a running job, for one version, and ends once.

A lease ends with its update or evaluation, with the refusal of its update, with its release, or when its silo leaves or
its job ends.
"""

from anabranch.tlog.details import LeaseIssued, LeaseReleased
from anabranch.tlog.entry import Entry
from auditor.broken import Broken
from auditor.history import History, Lease
from auditor.jobs import Jobs, names_of
from auditor.standing import Standing


class Leases:
    """The rules about leases; the methods raise Broken. `index` is that of the entry.

    Most entries come here, so what is wrong is put into words only when it is.
    """

    def __init__(self, history: History, standing: Standing, jobs: Jobs) -> None:
        self._history = history
        self._standing = standing
        self._jobs = jobs
        self._groups: dict[str, tuple[str | None, str | None, str]] = {}  # job, expected, deadline

    def issued(self, index: int, entry: Entry, detail: LeaseIssued) -> None:
        job = self._jobs.running(entry)
        if detail.lease in self._history.leases or detail.lease in self._history.spent:
            raise Broken(f"lease {detail.lease} was issued before")
        self._history.hold(detail.lease, Lease(index, entry.job or "", detail))
        if job.started < 0:
            raise Broken(f"job {entry.job} has not started")
        if job.status != "running":
            raise Broken(f"job {entry.job} is {job.status}, and work is handed out")
        self._standing.active(detail.silo)
        self._jobs.approved(entry, job, detail.silo)
        names = names_of(job, detail.version, detail.silo)
        if detail.version in job.pruned:
            raise Broken(f"hands out version {detail.version}, which was pruned")
        if detail.view_sha256 not in names:
            raise Broken(f"hands out {detail.view_sha256} to silo {detail.silo} as version {detail.version}")
        if detail.group is not None or detail.expected is not None:
            self._scheduled(entry, detail)

    def _scheduled(self, entry: Entry, detail: LeaseIssued) -> None:
        """Who is of one arrival group is expected, and waited for, together."""
        told = entry.job, detail.expected, detail.deadline
        if detail.group == detail.lease:
            self._groups[detail.lease] = told
        if detail.kind != "train" or self._groups.get(detail.group or "") != told:
            raise Broken(f"is of group {detail.group}, which is not expected then")

    def released(self, _: int, entry: Entry, detail: LeaseReleased) -> None:
        self.spend(entry, detail.lease, detail.silo, None, "released")

    def spend(self, entry: Entry, name: str, silo: str, kind: str | None, how: str) -> Lease:
        """A lease ends once, by what it was issued for. `kind` None: of either kind."""
        if name in self._history.spent:
            raise Broken(f"lease {name} was {self._history.spent[name]} before")
        lease = self._history.leases.get(name)
        if lease is None:
            raise Broken(f"lease {name} was never issued")
        if (lease.job, lease.issued.silo) != (entry.job, silo):
            raise Broken(f"lease {name} was issued to silo {lease.issued.silo} for job {lease.job}")
        if kind not in (None, lease.issued.kind):
            raise Broken(f"lease {name} was issued to {lease.issued.kind}")
        return self._history.end(name, how)
