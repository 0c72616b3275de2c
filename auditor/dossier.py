"""Everything the log says about one silo, in order: who it is, what it approved, was given, sent, and was told.

What happens to it without naming it (a lease that ends with its job) is in the entry that causes it.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from anabranch.errors import Reason, Refused
from anabranch.tlog.details import (
    AggregationPerformed,
    CertIssued,
    CertRenewed,
    JobChanged,
    JobStarted,
    LeaseIssued,
    UpdateReceived,
    UpdateRefused,
)
from anabranch.tlog.entry import Entry
from anabranch.tlog.revivals import RevivalPerformed
from auditor.history import History
from auditor.words import late, say, tail

ENDED = ("job.completed", "job.aborted")


@dataclass(frozen=True)
class Line:
    index: int
    time: str
    type: str
    what: str

    def document(self) -> dict[str, Any]:
        return {"entry": self.index, "time": self.time, "type": self.type, "what": self.what}


@dataclass
class Dossier:
    """Reads the log in order."""

    silo: str
    lines: list[Line] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    _jobs: set[str] = field(default_factory=set)  # it had something to do with

    def see(self, index: int, entry: Entry) -> None:
        for what in self._about(entry):
            self.lines.append(Line(index, entry.time, entry.type, what))

    def _about(self, entry: Entry) -> list[str]:
        detail = entry.detail
        match detail:
            case CertIssued() | CertRenewed():
                mine = f"/silo/{self.silo}/" in detail.identity
                return [say(entry)] if mine else []
            case JobStarted():
                return [say(entry)] if self.silo in detail.silos else []
            case AggregationPerformed():
                return self._merged(entry, detail)
            case RevivalPerformed():
                return self._taught(entry, detail)
            case JobChanged():
                return [say(entry)] if entry.job in self._jobs else []
        if isinstance(detail, BaseModel):
            mine = getattr(detail, "silo", None) == self.silo
        else:  # not understood: what it did itself can still be told
            mine = f"/silo/{self.silo}/" in entry.actor.id
        if not mine:
            return []
        self._count(entry)
        return [say(entry)]

    def _count(self, entry: Entry) -> None:
        self.counts[entry.type] += 1
        if entry.job is not None:
            self._jobs.add(entry.job)
        match entry.detail:
            case UpdateRefused(code=code):
                self.refusals[code] += 1
            case LeaseIssued(kind=kind):
                self.counts[f"leases to {kind}"] += 1
            case UpdateReceived(bytes=size):
                self.counts["bytes"] += size

    def _merged(self, entry: Entry, detail: AggregationPerformed) -> list[str]:
        told = []
        for one in detail.inputs:
            if one.silo == self.silo:
                self.counts["merged"] += 1
                into = f"version {detail.version} of {entry.job}"
                told.append(f"update {tail(one.update)} merged into {into}{late(one.staleness)}")
        if self.silo in detail.absent:
            self.counts["absent"] += 1
            told.append(f"absent: version {detail.version} of {entry.job} was made without it")
        return told

    def _taught(self, entry: Entry, detail: RevivalPerformed) -> list[str]:
        if self.silo not in {one.silo for one in detail.teachers}:
            return []
        self.counts["taught"] += 1
        return [f"its newest model taught version {detail.version} of {entry.job}"]


def document(dossier: Dossier, history: History) -> dict[str, Any]:
    """For `--json`."""
    silo, counts = history.silos[dossier.silo], dossier.counts
    invited = max((one.index for one in silo.invitations.values()), default=-1)
    standing = "enrolled" if silo.active else "revoked" if silo.revoked > invited else "invited"
    return {
        "silo": dossier.silo,
        "standing": standing,
        "away_since_entry": silo.lost if silo.lost > silo.heard else None,
        "decisions": {
            name: job.decisions[dossier.silo]
            for name, job in history.jobs.items()
            if dossier.silo in job.decisions
        },
        "leases": {"train": counts["leases to train"], "evaluate": counts["leases to evaluate"]},
        "leases_released": counts["lease.released"],
        "open_leases": [
            name for (_, holder), held in history.held.items() if holder == dossier.silo for name in held
        ],
        "updates": {
            "received": counts["update.received"],
            "merged": counts["merged"],
            "retired": counts["update.retired"],
            "refused": dict(dossier.refusals),
            "bytes": counts["bytes"],
        },
        "evaluations": counts["model.evaluated"],
        "revivals_taught": counts["taught"],
        "absent_from_versions": counts["absent"],
        "lost": counts["silo.lost"],
        "events": [line.document() for line in dossier.lines],
    }


def require_known(history: History, name: str) -> None:
    """Raises Refused naming the silos there are."""
    if name not in history.silos:
        known = ", ".join(sorted(history.silos)) or "none"
        raise Refused(Reason.NOT_FOUND, f"the log knows no silo {name[:80]}; its silos are: {known}")
