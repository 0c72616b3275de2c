"""What silos did in a real federation and when, as its audit export tells it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from anabranch.errors import Reason, Refused
from anabranch.tlog.details import AggregationPerformed
from anabranch.tlog.entry import Entry
from anabranch.wire.canonical import from_utc
from auditor.export import open_export
from auditor.history import History, Job
from auditor.pin import pin
from auditor.verify import verify

Kind = Literal["lease", "result", "release", "version"]
_KINDS: Mapping[str, Kind] = {
    "lease.issued": "lease",
    "update.received": "result",
    "update.refused": "result",
    "model.evaluated": "result",
    "lease.released": "release",
    "aggregation.performed": "version",
}


@dataclass(frozen=True)
class Event:
    at: float  # seconds after the job's start
    kind: Kind
    silo: str = ""
    lease: str = ""  # the log does not say of which one an evaluation is the result
    nonce: str = ""
    task: str = ""  # train | evaluate, of a lease
    version: int = 0  # that is published, or that this update went into


@dataclass(frozen=True)
class Recording:
    """One job. Its silos are those that took a lease, by name; `versions` are the digests of their parameters."""

    terms_sha256: str
    silos: tuple[str, ...]
    events: tuple[Event, ...]
    versions: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """From the job's start to the last event."""
        return self.events[-1].at


def read_recording(folder: Path, job: str) -> Recording:
    """Of the newest job called so. Raises Refused for what is no export, does not verify, or has no such job."""
    export = open_export(folder)
    entries: list[Entry] = []
    verified = verify(export, pin(export, None), see=lambda index, entry: entries.append(entry))
    if not verified.report.verified:
        raise Refused(
            Reason.MALFORMED,
            f"{folder} does not verify: `anabranch-audit verify {folder}` tells what is wrong",
        )
    name, found = _newest(verified.history, job, folder)
    events = _events(name, entries)
    if not events:
        raise Refused(Reason.NOT_FOUND, f"in {folder} no silo has taken a task of job {job} yet")
    return Recording(
        terms_sha256=found.submitted.terms_sha256,
        silos=tuple(sorted({event.silo for event in events if event.silo})),
        events=events,
        versions=tuple(version.parameters for version in found.versions),
    )


def _newest(history: History, wanted: str, folder: Path) -> tuple[str, Job]:
    for name, job in reversed(history.jobs.items()):
        if job.submitted.name == wanted:
            return name, job
    names = ", ".join(sorted({job.submitted.name for job in history.jobs.values()}))
    raise Refused(Reason.NOT_FOUND, f"{folder} has no job {wanted}; its jobs: {names or 'none'}")


def _events(job: str, entries: list[Entry]) -> tuple[Event, ...]:
    """In the order of the log, whatever its clock did."""
    entries = [entry for entry in entries if entry.job == job]
    merged = {
        one.update: entry.detail.version
        for entry in entries
        if isinstance(entry.detail, AggregationPerformed)
        for one in entry.detail.inputs
    }
    found: list[Event] = []
    start = now = 0.0
    for entry in entries:
        now = max(now, from_utc(entry.time))
        if entry.type == "job.started":
            start = start or now
        if entry.type in _KINDS and isinstance(entry.detail, BaseModel):
            found.append(_event(now - start, _KINDS[entry.type], entry.detail.model_dump(), merged))
    return tuple(found)


def _event(at: float, kind: Kind, said: Mapping[str, Any], merged: Mapping[str, int]) -> Event:
    told = {key: said[key] for key in ("silo", "lease", "nonce") if said.get(key)}
    version = merged.get(said.get("update") or "", 0) if kind == "result" else said.get("version", 0)
    return Event(at, kind, task=said.get("kind", ""), version=version, **told)
