"""What the server would keep in its tables, in memory: jobs, versions, leases and updates of one run."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from anabranch.rules.strategies import Input
from anabranch.terms import JobTerms
from anabranch.wire.manifest import Manifest
from server.core.admission import JobFacts, LeaseFacts
from server.core.buffer import Waiting
from simulator.flat import Flat


@dataclass(frozen=True)
class Lease:
    id: str
    silo: str
    job: str
    kind: str
    version: int
    nonce: str
    steps: int
    issued_at: float  # virtual seconds, as every time here


@dataclass(frozen=True)
class Update:
    """One admitted update, until it is merged."""

    id: str
    lease: Lease
    received_at: float
    delta: Flat
    examples: int | None
    order: int

    def waiting(self) -> Waiting:
        return Waiting(self.id, self.lease.silo, self.lease.version, self.received_at)

    def input(self, head: int) -> Input:
        base = self.lease.version
        return Input(self.id, self.lease.silo, base, head - base, self.examples, self.order)


@dataclass(frozen=True)
class Version:
    number: int
    parameters: Flat
    optimizer: Flat | None
    ema: Flat | None
    scalars: Mapping[str, float]  # of the server optimizer
    published_at: float


@dataclass
class Job:
    id: str
    terms: JobTerms
    digest: str
    manifest: Manifest
    participants: list[str]  # names, sorted
    versions: dict[int, Version] = field(default_factory=dict)  # the head, and what somebody may still need
    head: int = 0
    status: str = "running"
    ended_at: float | None = None
    open: dict[str, Lease] = field(default_factory=dict)  # silo → what it works on
    waiting: dict[str, Update] = field(default_factory=dict)  # in the order they came
    frozen: bool = False  # an aggregation is being computed
    look_at: float | None = None  # when the buffer closes by itself
    submitted: dict[str, int] = field(default_factory=dict)  # silo → newest base among its updates
    evaluated: dict[str, int] = field(default_factory=dict)
    leased_at: dict[str, float] = field(default_factory=dict)  # silo → newest lease
    digests: dict[int, str] = field(default_factory=dict)  # of `versions`, where somebody asked

    @property
    def newest(self) -> Version:
        return self.versions[self.head]

    def base_digest(self, version: int) -> str:
        """What a lease calls the version by: its digest once one was computed, else its number."""
        return self.digests.get(version) or f"{version:064x}"

    def facts(self, base: int) -> JobFacts:
        return JobFacts(
            id=self.id,
            status=self.status,
            terms=self.terms,
            terms_digest=self.digest,
            head=self.head,
            decision="approved",
            base_sha256=self.base_digest(base),
            file_bytes=self.manifest.file_bytes,
        )


def lease_facts(lease: Lease, status: str) -> LeaseFacts:
    return LeaseFacts(lease.silo, lease.job, lease.kind, lease.version, lease.nonce, status)
