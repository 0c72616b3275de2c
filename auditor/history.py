"""What the log tells, entry by entry, as the state a reader ends up with. `lifecycle` builds it, `replay` uses it."""

from dataclasses import dataclass, field
from typing import Literal

from anabranch.terms import JobTerms
from anabranch.tlog.details import AggregationPerformed, JobSubmitted, LeaseIssued


@dataclass
class Silo:
    tokens: dict[str, str] = field(default_factory=dict)  # token id → digest of the request that redeemed it
    active: bool = False  # enrolled and not revoked since


@dataclass
class Lease:
    job: str
    issued: LeaseIssued
    spent: str = ""  # what ended it: an update, an evaluation, its release


@dataclass
class Update:
    index: int  # of update.received
    job: str
    silo: str
    base: int
    delta: str
    statement: str  # digest of what the silo signed
    fate: Literal["open", "merged", "retired"] = "open"


@dataclass(frozen=True)
class Version:
    parameters: str
    optimizer: str | None
    ema: str | None
    bytes: int  # of the parameters


@dataclass
class Job:
    submitted: JobSubmitted
    terms: JobTerms | None  # None: the export does not hold them
    decisions: dict[str, str] = field(default_factory=dict)  # silo → approved | denied | withdrawn
    started: bool = False
    ended: bool = False
    versions: list[Version] = field(default_factory=list)  # by number
    views: dict[int, set[str]] = field(default_factory=dict)  # version → digests of its encodings
    steps: dict[int, tuple[int, AggregationPerformed]] = field(
        default_factory=dict
    )  # version → entry, detail

    @property
    def head(self) -> int:
        """-1 before version 0."""
        return len(self.versions) - 1


@dataclass
class History:
    silos: dict[str, Silo] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)
    updates: dict[str, Update] = field(default_factory=dict)
    refused: int = 0
    jobs: dict[str, Job] = field(default_factory=dict)
