"""What a report tells of a log, or of what is new in it: who took part, who decided, what was refused, what went wrong."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
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
    ModelEvaluated,
    ModelExported,
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
from anabranch.tlog.revivals import RevivalSkipped
from anabranch.wire import canonical
from auditor.dossier import Line
from auditor.words import say, span

BACKWARDS = 1.0  # seconds a clock may be set back before it is worth telling
FAILED = ("deadline", "failed", "unsupported")  # why a revival was skipped that somebody should look into
_CHAPTERS: dict[type, str] = {
    LogGenesis: "identity",
    SiloInvited: "identity",
    SiloEnrolled: "identity",
    SiloRevoked: "identity",
    CertIssued: "identity",
    CertRenewed: "identity",
    JobSubmitted: "admin",
    JobStarted: "admin",
    JobChanged: "admin",
    ModelExported: "admin",
    ModelBest: "admin",
    RetentionPruned: "admin",
    JobDecision: "approvals",
    SiloPresence: "incidents",
    AuthFailed: "incidents",
    LeaseReleased: "incidents",
}


@dataclass
class Part:
    """What one silo did for one job."""

    counts: Counter[str] = field(default_factory=Counter)
    staleness: list[int] = field(default_factory=list)  # of its merged updates
    coefficient: float = 0.0
    absent: list[int] = field(default_factory=list)  # versions made without it after waiting for it


@dataclass
class Chronicle:
    """Reads the log in order; what is before `since` was reported before."""

    since: int = 0
    entries: int = 0
    parts: dict[tuple[str, str], Part] = field(default_factory=lambda: defaultdict(Part))  # (job, silo)
    refusals: Counter[tuple[str, str]] = field(default_factory=Counter)  # (code, silo)
    versions: Counter[str] = field(default_factory=Counter)  # made, by job
    closed_by: Counter[tuple[str, str]] = field(default_factory=Counter)  # (job, how its buffer closed)
    chapters: dict[str, list[Line]] = field(default_factory=lambda: defaultdict(list))
    turned_away: Counter[str] = field(default_factory=Counter)  # callers, by code
    _silos: dict[str, str] = field(default_factory=dict)  # by update
    _started: bool = False
    _time: float = 0.0

    def see(self, index: int, entry: Entry) -> None:
        told = index >= self.since
        time, before = canonical.from_utc(entry.time), self._time
        self._time = time
        detail = entry.detail
        restart = isinstance(detail, ServerStarted) and self._started
        self._started |= isinstance(detail, ServerStarted)
        if isinstance(detail, UpdateReceived):
            self._silos[detail.update] = detail.silo
        if not told:
            return
        self.entries += 1
        if before - time > BACKWARDS:
            self._tell("incidents", index, entry, f"the server's clock was set back by {span(before - time)}")
        if isinstance(detail, ServerStarted):
            self._tell("incidents" if restart else "admin", index, entry, say(entry))
        elif isinstance(detail, RevivalSkipped) and detail.reason in FAILED:
            self._tell("incidents", index, entry, say(entry))
        elif type(detail) in _CHAPTERS:
            self._tell(_CHAPTERS[type(detail)], index, entry, say(entry))
        if not isinstance(detail, BaseModel):
            self._tell("not_understood", index, entry, say(entry))
        self._count(entry, detail)

    def _tell(self, chapter: str, index: int, entry: Entry, what: str) -> None:
        self.chapters[chapter].append(Line(index, entry.time, entry.type, what))

    def _count(self, entry: Entry, detail: Any) -> None:
        job = entry.job or ""
        match detail:
            case LeaseIssued() | LeaseReleased() | UpdateReceived() | UpdateRetired() | ModelEvaluated():
                self.parts[job, detail.silo].counts[entry.type] += 1
                if isinstance(detail, UpdateReceived):
                    self.parts[job, detail.silo].counts["bytes"] += detail.bytes
            case UpdateRefused():
                self.refusals[detail.code, detail.silo] += 1
                self.parts[job, detail.silo].counts[entry.type] += 1
            case AuthFailed():
                self.turned_away[detail.code] += detail.count
            case AggregationPerformed():
                self._merge(job, detail)

    def _merge(self, job: str, detail: AggregationPerformed) -> None:
        self.versions[job] += 1
        self.closed_by[job, detail.closed_by] += 1
        for one in detail.inputs:
            part = self.parts[job, one.silo]
            part.counts["merged"] += 1
            part.staleness.append(one.staleness)
            part.coefficient += canonical.from_hexfloat(one.coefficient)
        for term in detail.further or ():
            if term.update in self._silos:
                part = self.parts[job, self._silos[term.update]]
                part.coefficient += canonical.from_hexfloat(term.coefficient)
        for silo in detail.absent:
            self.parts[job, silo].absent.append(detail.version)
