"""What the log tells, as the state a reader ends up with. `lifecycle` and `standing` build it; every other question is
asked of it: `replay`, `lineage`, `gaps`, `review`.
"""

from dataclasses import dataclass, field
from typing import Literal

from anabranch.terms import JobTerms
from anabranch.tlog.details import AggregationPerformed, JobSubmitted, LeaseIssued, ServerStarted
from anabranch.tlog.revivals import RevivalPerformed

JobStatus = Literal["waiting", "running", "paused", "completed", "aborted"]


@dataclass
class Invitation:
    index: int
    expires: str
    request: str = ""  # digest of the request that redeemed it


@dataclass
class Silo:
    invitations: dict[str, Invitation] = field(default_factory=dict)  # by token id
    active: bool = False  # enrolled and not revoked since
    enrolled: int = -1  # newest entry of each kind; -1: none
    revoked: int = -1
    lost: int = -1  # -1 also once it is back
    heard: int = -1  # newest entry that this silo caused


@dataclass(frozen=True)
class Decision:
    index: int
    time: str
    silo: str
    word: str  # approved | denied | withdrawn
    keyid: str


@dataclass(slots=True)  # a log has very many
class Lease:
    index: int
    job: str
    issued: LeaseIssued


@dataclass(slots=True)  # a log has very many
class Update:
    index: int  # of update.received
    time: str
    job: str
    silo: str
    base: int
    delta: str
    statement: str  # digest of what the silo signed
    fate: Literal["open", "merged", "retired"] = "open"


@dataclass(frozen=True, slots=True)
class Version:
    index: int  # of model.published
    time: str
    parameters: str
    optimizer: str | None
    ema: str | None
    bytes: int  # of the parameters
    evaluated: set[str] = field(default_factory=set)  # by these silos


@dataclass
class Revival:
    """A reviver's result."""

    index: int  # of revival.performed
    time: str
    detail: RevivalPerformed
    fate: Literal["open", "used", "dropped"] = "open"
    used: int = -1  # the version it became part of
    reason: str = ""  # why it was dropped


@dataclass(frozen=True)
class HandedOut:
    """A model that left the federation's server: model.exported."""

    index: int
    time: str
    actor: str
    version: int
    sha256: str
    selector: str


@dataclass
class Job:
    index: int  # of job.submitted
    time: str
    owner: str
    submitted: JobSubmitted
    terms: JobTerms | None  # None: the export does not hold them
    status: JobStatus = "waiting"
    resumed: bool = False  # it may wait for approvals again
    started: int = -1  # newest job.started
    ended: int = -1  # job.completed or job.aborted
    ended_at: str = ""  # its time
    reason: str = ""  # of the newest change
    decisions: dict[str, str] = field(default_factory=dict)  # silo → approved | denied | withdrawn
    teaching: set[str] = field(default_factory=set)  # silos that approve, and allow their models to teach
    record: list[Decision] = field(default_factory=list)
    versions: list[Version] = field(default_factory=list)  # by number
    views: dict[int, dict[str, str]] = field(default_factory=dict)  # version → tier → digest of its view
    steps: dict[int, tuple[int, AggregationPerformed]] = field(
        default_factory=dict
    )  # version → entry, detail
    revivals: dict[str, Revival] = field(default_factory=dict)  # results, by name
    skipped: dict[str, str] = field(default_factory=dict)  # revivals without a result → why
    best: int | None = None  # newest model.best
    handed_out: list[HandedOut] = field(default_factory=list)
    pruned: dict[int, int] = field(default_factory=dict)  # version → entry that says its snapshot is gone
    deltas_pruned: int = -1  # entry that says the same of the deltas of all its updates

    @property
    def revives(self) -> bool:
        return bool(self.revivals or self.skipped) or (
            self.terms is not None and self.terms.file.revival is not None
        )

    @property
    def head(self) -> int:
        """-1 before version 0."""
        return len(self.versions) - 1


@dataclass(frozen=True)
class Start:
    """Of the server: server.started."""

    index: int
    time: str
    detail: ServerStarted


@dataclass
class History:
    silos: dict[str, Silo] = field(default_factory=dict)
    certificates: dict[str, tuple[str, int]] = field(default_factory=dict)  # digest → identity, entry
    starts: list[Start] = field(default_factory=list)
    leases: dict[str, Lease] = field(default_factory=dict)  # that have not ended
    spent: dict[str, str] = field(default_factory=dict)  # lease → what ended it; all that is kept of it
    held: dict[tuple[str, str], dict[str, Lease]] = field(default_factory=dict)  # (job, silo) → its leases
    updates: dict[str, Update] = field(default_factory=dict)
    refused: int = 0
    jobs: dict[str, Job] = field(default_factory=dict)
    first: str = ""  # times of the first and the newest entry
    last: str = ""
    size: int = 0  # entries that were understood

    def hold(self, name: str, lease: Lease) -> None:
        self.leases[name] = lease
        self.held.setdefault((lease.job, lease.issued.silo), {})[name] = lease

    def end(self, name: str, how: str) -> Lease:
        """A lease that has not ended ends now."""
        lease = self.leases.pop(name)
        del self.held[lease.job, lease.issued.silo][name]
        self.spent[name] = how
        return lease

    def end_all(self, silo: str, job: str | None, how: str) -> None:
        """All leases of a silo, for one job or (None) for any."""
        for (of, holder), leases in self.held.items():
            if holder == silo and job in (None, of):
                for name in list(leases):
                    self.end(name, how)
