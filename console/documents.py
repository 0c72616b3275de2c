"""What the server says of its jobs and of itself, JSON-ready. Silos' metrics appear only as far as it passes them on."""

from collections.abc import Iterable
from typing import Any

from anabranch.v1 import admin_pb2


def snapshot(overview: admin_pb2.Overview) -> dict[str, Any]:
    """All of it at one moment: one line of `job watch --json`."""
    return {
        "server_time": overview.server_time,
        "server": server(overview.server),
        "jobs": [job(status) for status in overview.jobs],
    }


def server(status: admin_pb2.ServerStatus) -> dict[str, Any]:
    return {field.name: getattr(status, field.name) for field in status.DESCRIPTOR.fields}


def job(status: admin_pb2.JobStatus) -> dict[str, Any]:
    """Every field under its name in `proto/anabranch/v1/admin.proto`, in that order."""
    plain = {field.name: getattr(status, field.name) for field in status.DESCRIPTOR.fields}
    plain["silos"] = [_silo(silo) for silo in status.silos]
    plain["evaluations"] = [
        {"version": e.version, "silo": e.silo, "split": e.split, "metrics": dict(sorted(e.metrics.items()))}
        for e in status.evaluations
    ]
    plain["revival"] = _revival(status.revival) if status.HasField("revival") else None
    return plain


def _revival(revival: admin_pb2.RevivalStatus) -> dict[str, Any]:
    plain = {field.name: getattr(revival, field.name) for field in revival.DESCRIPTOR.fields}
    return plain | {"teachers": list(revival.teachers), "tallies": _tallies(revival.tallies)}


def _tallies(tallies: Iterable[admin_pb2.Tally]) -> list[dict[str, Any]]:
    return [{"outcome": t.outcome, "reason": t.reason, "count": t.count} for t in tallies]


def _silo(silo: admin_pb2.SiloStatus) -> dict[str, Any]:
    plain = {field.name: getattr(silo, field.name) for field in silo.DESCRIPTOR.fields}
    return plain | {"tallies": _tallies(silo.tallies)}
