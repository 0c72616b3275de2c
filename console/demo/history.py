"""What happened in a job, told by the entries of an audit export alone.

Nothing here trusts the server's own counters or the demo's memory: `anabranch-audit` has verified these entries, and
every figure of the report comes from them or from an evaluation of the exported models.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from anabranch.tlog.checkpoint import open_checkpoint
from anabranch.tlog.entry import Entry, parse_entry
from anabranch.tlog.note import NoteVerifier
from anabranch.tlog.tiles import bundles, entries_path, parse_bundle
from anabranch.wire.canonical import from_hexfloat, from_utc

Fate = Literal["merged", "refused", "retired", "open"]


@dataclass(frozen=True)
class Update:
    """One update's life. Times are unix seconds; `staleness` is in versions, as it was merged."""

    id: str
    silo: str
    base: int
    leased: float | None
    received: float
    bytes: int
    fate: Fate = "open"
    version: int | None = None  # it went into
    staleness: int | None = None
    times_merged: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Refusal:
    """An update refused before it got an id the store knows."""

    silo: str
    time: float
    code: str


@dataclass(frozen=True)
class Version:
    number: int
    time: float
    parameters_sha256: str
    ema_sha256: str | None
    merged: tuple[str, ...] = ()  # silos whose updates made it, in order
    absent: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decision:
    silo: str
    index: int
    time: float
    decision: str
    terms_sha256: str


@dataclass(frozen=True)
class Start:
    """A start of the server."""

    index: int
    time: float
    recovered: bool


@dataclass(frozen=True)
class Incident:
    """A silo lost or returned, a lease released, an authentication failed."""

    time: float
    type: str
    silo: str
    detail: str


@dataclass(frozen=True)
class Revival:
    """A reviver's task. `seconds`: of a result that was made; `used`: the version it was added to, or None and why."""

    version: int  # it began from
    teachers: tuple[str, ...]  # silos
    seconds: float | None
    used: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class History:
    federation: str
    entries: int
    job: str
    name: str
    terms_sha256: str
    started: float
    ended: float
    outcome: str  # entry type that ended the job, "" while it runs
    reason: str
    silos: tuple[str, ...]  # that approved, in the order of the start entry
    decisions: tuple[Decision, ...]
    versions: tuple[Version, ...]
    updates: tuple[Update, ...]
    refusals: tuple[Refusal, ...]
    starts: tuple[Start, ...]
    incidents: tuple[Incident, ...]
    revivals: tuple[Revival, ...]
    not_understood: int

    @property
    def head(self) -> Version:
        return self.versions[-1]

    @property
    def released(self) -> str:
        """Digest of what the job delivers: the running average if its terms keep one, else the last version."""
        return self.head.ema_sha256 or self.head.parameters_sha256

    def of(self, silo: str) -> list[Update]:
        return [update for update in self.updates if update.silo == silo]

    def exactly_once(self) -> bool:
        """Every update that got a receipt was merged once, refused, or retired with a reason: none lost, none twice."""
        return all(
            update.times_merged == (1 if update.fate == "merged" else 0) and update.fate != "open"
            for update in self.updates
        )


def read_entries(export: Path) -> Iterator[Entry]:
    """The entries of an audit export, in the order of the log. Raises Refused when its checkpoint is not signed."""
    log = NoteVerifier.from_vkey((export / "keys" / "log.vkey").read_text().strip())
    size = open_checkpoint((export / "checkpoint").read_text(), log, log.name).size
    for index, width in bundles(size):
        for data in parse_bundle((export / entries_path(index, width)).read_bytes()):
            yield parse_entry(data)


def tell(entries: Iterable[Entry], job: str) -> History:
    """The story of `job`. Raises ValueError when the log never started it."""
    log = list(entries)
    of_job = [
        (i, e) for i, e in enumerate(log) if e.job == job or (e.target.kind == "job" and e.target.id == job)
    ]
    submitted = _only(of_job, "job.submitted", job)
    started = _only(of_job, "job.started", job)
    end = next((e for _, e in reversed(of_job) if e.type in ("job.completed", "job.aborted")), None)
    versions = _versions(of_job)
    return History(
        federation=log[0].fed,
        entries=len(log),
        job=job,
        name=_detail(submitted).name,
        terms_sha256=_detail(submitted).terms_sha256,
        started=from_utc(started.time),
        ended=from_utc((end or log[-1]).time),
        outcome=end.type if end else "",
        reason=_detail(end).reason if end else "",
        silos=tuple(_detail(started).silos),
        decisions=tuple(_decisions(of_job)),
        versions=versions,
        updates=tuple(_updates(of_job)),
        refusals=tuple(_refusals(of_job)),
        starts=tuple(
            Start(i, from_utc(e.time), _detail(e).recovered is not None)
            for i, e in enumerate(log)
            if e.type == "server.started"
        ),
        incidents=tuple(_incidents(log)),
        revivals=tuple(_revivals(of_job)),
        not_understood=sum(not e.understood for e in log),
    )


def _detail(entry: Entry) -> Any:
    return entry.detail


def _only(entries: Sequence[tuple[int, Entry]], type: str, job: str) -> Entry:
    for _, entry in entries:
        if entry.type == type:
            return entry
    raise ValueError(f"the log holds no {type} for job {job}")


def _decisions(entries: Sequence[tuple[int, Entry]]) -> Iterator[Decision]:
    for index, entry in entries:
        family, _, action = entry.type.partition(".")
        if family == "job" and action in ("approved", "denied", "withdrawn"):
            detail = _detail(entry)
            yield Decision(detail.silo, index, from_utc(entry.time), action, detail.terms_sha256)


def _versions(entries: Sequence[tuple[int, Entry]]) -> tuple[Version, ...]:
    made = {_detail(e).version: _detail(e) for _, e in entries if e.type == "aggregation.performed"}
    published = {}
    for _, entry in entries:
        if entry.type == "model.published":
            detail = _detail(entry)
            step = made.get(detail.version)
            published[detail.version] = Version(
                detail.version,
                from_utc(entry.time),
                detail.parameters_sha256,
                detail.ema_sha256,
                tuple(part.silo for part in step.inputs) if step else (),
                tuple(step.absent) if step else (),
            )
    return tuple(published[number] for number in sorted(published))


def _updates(entries: Sequence[tuple[int, Entry]]) -> list[Update]:
    leased = {_detail(e).lease: from_utc(e.time) for _, e in entries if e.type == "lease.issued"}
    updates: dict[str, Update] = {}
    for _, entry in entries:
        detail = _detail(entry)
        if entry.type == "update.received":
            updates[detail.update] = Update(
                detail.update,
                detail.silo,
                detail.version,
                leased.get(detail.lease),
                from_utc(entry.time),
                detail.bytes,
            )
        elif entry.type == "update.refused" and detail.update in updates:
            updates[detail.update] = replace(updates[detail.update], fate="refused", reason=detail.code)
        elif entry.type == "update.retired" and detail.update in updates:
            updates[detail.update] = replace(updates[detail.update], fate="retired", reason=detail.reason)
        elif entry.type == "aggregation.performed":
            _merge(updates, detail)
    return list(updates.values())


def _merge(updates: dict[str, Update], aggregation: Any) -> None:
    for part in aggregation.inputs:
        if part.update in updates:
            before = updates[part.update]
            updates[part.update] = replace(
                before,
                fate="merged",
                version=aggregation.version,
                staleness=part.staleness,
                times_merged=before.times_merged + 1,
            )


def _revivals(entries: Sequence[tuple[int, Entry]]) -> Iterable[Revival]:
    revivals: dict[str, Revival] = {}
    for _, entry in entries:
        detail = _detail(entry)
        if entry.type == "revival.performed":
            silos = tuple(one.silo for one in detail.teachers)
            revivals[detail.revival] = Revival(detail.version, silos, from_hexfloat(detail.seconds))
        elif entry.type == "revival.skipped":
            before = revivals.get(detail.revival, Revival(detail.version, (), None))
            why = f"{detail.reason}: {detail.why}" if detail.why else detail.reason
            revivals[detail.revival] = replace(before, reason=why)
        elif entry.type == "aggregation.performed" and detail.revival is not None:
            revivals[detail.revival] = replace(revivals[detail.revival], used=detail.version)
    return revivals.values()


def _refusals(entries: Sequence[tuple[int, Entry]]) -> Iterator[Refusal]:
    received = {_detail(e).update for _, e in entries if e.type == "update.received"}
    for _, entry in entries:
        if entry.type == "update.refused" and _detail(entry).update not in received:
            yield Refusal(_detail(entry).silo, from_utc(entry.time), _detail(entry).code)


_INCIDENTS: Mapping[str, str] = {
    "silo.lost": "",
    "silo.returned": "",
    "lease.released": "reason",
    "auth.failed": "code",
    "silo.revoked": "reason",
}


def _incidents(log: Sequence[Entry]) -> Iterator[Incident]:
    for entry in log:
        if entry.type in _INCIDENTS:
            told = _INCIDENTS[entry.type]
            detail = getattr(entry.detail, told) if told else ""
            yield Incident(from_utc(entry.time), entry.type, getattr(entry.detail, "silo", ""), detail)
