"""What an audit found, as plain data for a person or for `--json`."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

STEPS = {
    1: "checkpoint",
    2: "tree",
    3: "entries",
    4: "signatures",
    5: "life cycle",
    6: "objects",
    7: "receipts",
}


ROUNDING = 1e-6  # relative, of two ways to compute one ε


@dataclass(frozen=True)
class Finding:
    """One reason not to believe the export."""

    step: int  # of STEPS
    where: str  # a file, or "entry 17 (update.received)"
    what: str
    entry: int | None = None  # log index, if it is about one entry


@dataclass(frozen=True)
class Missing:
    """An object the log names and the export does not hold: what depends on it rests on its digest only."""

    digest: str
    kind: str  # in a word or two, in the plural: "deltas"
    what: str
    pruned: int | None = None  # the entry that says it is not kept any more; None: the log gives no reason


@dataclass(frozen=True)
class Derived:
    """What a silo has revealed in a job by its own claims, computed anew."""

    job: str
    silo: str
    unit: str
    cycles: int  # charged at the silo
    updates: int  # that arrived
    epsilon: float  # of all charged cycles
    delta: float
    promised: float | None  # ε of the job; None: the export does not hold its terms

    @property
    def kept(self) -> bool:
        return self.promised is None or self.epsilon <= self.promised * (1 + ROUNDING)


@dataclass
class Report:
    """Filled by `verify` as it goes; `reached` is the last step that was begun."""

    vkey: str
    reached: int = 0
    origin: str = ""
    size: int = 0
    root: str = ""  # hex
    first: str = ""  # times of the first and last entry
    last: str = ""
    types: Counter[str] = field(default_factory=Counter)
    not_understood: Counter[str] = field(default_factory=Counter)
    signatures: int = 0  # good ones
    views: int = 0  # tree heads that silos signed and that are of this log
    updates: Counter[str] = field(default_factory=Counter)  # received, merged, retired, refused, open
    open_updates: list[str] = field(default_factory=list)
    versions: dict[str, int] = field(default_factory=dict)  # job → head
    privacy: list[Derived] = field(default_factory=list)
    objects: int = 0  # that match their digests
    object_bytes: int = 0
    missing: list[Missing] = field(default_factory=list)
    opened: int = 0  # sealed facts that fit their commitment
    receipts: int = 0  # kept by silos, and in the log
    notes: list[str] = field(default_factory=list)  # to know, no reason to doubt
    findings: list[Finding] = field(default_factory=list)

    def find(self, step: int, where: str, what: str, entry: int | None = None) -> None:
        self.findings.append(Finding(step, where, what, entry))

    @property
    def verified(self) -> bool:
        """All steps were reached and none found anything."""
        return self.reached == len(STEPS) and not self.findings

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "verified": self.verified,
            "log": {
                "origin": self.origin,
                "vkey": self.vkey,
                "size": self.size,
                "root": self.root,
                "first": self.first,
                "last": self.last,
            },
            "entries": dict(sorted(self.types.items())),
            "not_understood": dict(sorted(self.not_understood.items())),
            "signatures": self.signatures,
            "views_of_silos": self.views,
            "updates": dict(self.updates),
            "open_updates": self.open_updates,
            "versions": self.versions,
            "privacy": [vars(one) for one in self.privacy],
            "objects": {
                "match": self.objects,
                "bytes": self.object_bytes,
                "digest_only": [vars(one) for one in self.missing],
            },
            "sealed_opened": self.opened,
            "receipts": self.receipts,
            "notes": self.notes,
            "findings": [
                {"step": one.step, "name": STEPS[one.step], "where": one.where, "what": one.what}
                for one in self.findings
            ],
        }
