"""How a job is doing, for a person and for a program, from the server's `JobStatus` messages."""

import json
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import grpc
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from anabranch.errors import Unavailable
from anabranch.v1 import admin_pb2
from anabranch.wire.status import from_rpc_error
from console.client import Admin, presentable

ENDED = ("completed", "aborted")
AWAY = "the server does not answer; what it said last stands, and it is asked again every second (Ctrl-C to leave)"
RECONNECT_SECONDS = 1.0
LATE_SECONDS = 15  # without a heartbeat a silo that should be connected is shown as late
STATUS_STYLE = {"running": "green", "completed": "green", "paused": "yellow", "aborted": "red"}


def statuses(admin: Admin, job: str, interval: float) -> Iterator[admin_pb2.JobStatus | None]:
    """A job's statuses as they come. Once there was one, a server that goes away is waited for; None says so.

    Raises grpc.RpcError for anything else: the job is unknown, or there was no server to begin with.
    """
    request = admin_pb2.WatchJobRequest(job=job, interval_seconds=interval)
    seen = False
    while True:
        try:
            for status in admin.stub.WatchJob(request, wait_for_ready=seen):
                seen = True
                yield presentable(status)
                if status.status in ENDED:
                    return
        except grpc.RpcError as error:
            if not seen or not isinstance(from_rpc_error(error), Unavailable):
                raise
        yield None
        time.sleep(RECONNECT_SECONDS)


def follow(
    statuses: Iterable[admin_pb2.JobStatus | None], *, once: bool, as_json: bool
) -> admin_pb2.JobStatus | None:
    """Show statuses as they come, until the job has ended; the last one is returned. Redraws only on a terminal."""
    if once:
        last = next((found for found in statuses if found is not None), None)
        if last is not None and as_json:
            print(json.dumps(document(last), indent=2, ensure_ascii=False))
        elif last is not None:
            Console().print(view(last))
        return last
    return _follow_live(statuses) if sys.stdout.isatty() else _follow_lines(statuses)


def _follow_live(statuses: Iterable[admin_pb2.JobStatus | None]) -> admin_pb2.JobStatus | None:
    last = None
    with Live(Text("asking the server"), refresh_per_second=4) as live:
        for found in statuses:
            if found is None:
                live.update(Group(view(last) if last else Text(), Text(AWAY, style="bold yellow")))
                continue
            last = found
            live.update(view(last))
            if last.status in ENDED:
                break
    return last


def _follow_lines(statuses: Iterable[admin_pb2.JobStatus | None]) -> admin_pb2.JobStatus | None:
    last, shown, away = None, None, False
    for found in statuses:
        if found is None:
            if not away:
                print(AWAY, flush=True)
            away = True
            continue
        last, away = found, False
        if (last.status, last.head) != shown:
            print(line(last), flush=True)
            shown = (last.status, last.head)
        if last.status in ENDED:
            break
    return last


def document(status: admin_pb2.JobStatus) -> dict[str, Any]:
    """The whole status, JSON-ready. Silos' metrics appear only as far as the server passes them on."""
    return {
        "job": status.job,
        "name": status.name,
        "status": status.status,
        "reason": status.reason,
        "head": status.head,
        "versions": status.versions,
        "best": status.best,
        "buffered": status.buffered,
        "buffer": status.buffer,
        "buffer_age_seconds": status.buffer_age_seconds,
        "server_time": status.server_time,
        "silos": [_silo_document(silo) for silo in status.silos],
        "evaluations": [
            {
                "version": e.version,
                "silo": e.silo,
                "split": e.split,
                "metrics": dict(sorted(e.metrics.items())),
            }
            for e in status.evaluations
        ],
    }


def _silo_document(silo: admin_pb2.SiloStatus) -> dict[str, Any]:
    return {
        "silo": silo.silo,
        "state": state(silo, None)[0],
        "decision": silo.decision,
        "connected": silo.connected,
        "last_seen": silo.last_seen,
        "base": silo.base,
        "training": silo.training,
        "step": silo.step,
        "steps": silo.steps,
        "received": silo.received,
        "merged": silo.merged,
        "refused": silo.refused,
        "retired": silo.retired,
        "mean_staleness": silo.mean_staleness,
        "bytes": silo.bytes,
        "last_reason": silo.last_reason,
    }


def jobs_table(statuses: list[admin_pb2.JobStatus]) -> RenderableType:
    """One row per job."""
    if not statuses:
        return Text("no jobs yet; `anabranch job submit FOLDER` adds one", style="dim")
    table = _table("job", "name", "status", "head", "best", "silos")
    for status in statuses:
        connected = sum(silo.connected for silo in status.silos)
        table.add_row(
            Text(status.job),
            Text(status.name),
            _status(status),
            f"{status.head}/{status.versions}",
            str(status.best),
            f"{connected} of {len(status.silos)} connected",
        )
    return table


def view(status: admin_pb2.JobStatus) -> RenderableType:
    """The live view: head and buffer, one row per silo, and what was last refused and why. Fits 80 columns."""
    table = _table("silo", "doing", "base", "sent", "merged", "refused", "retired", "stale", "data", "score")
    scores = _scores(status)
    for silo in status.silos:
        name, style = state(silo, status)
        table.add_row(
            Text(silo.silo, style="bold"),
            _doing(silo, name, style, status.server_time),
            str(silo.base) if silo.training else "–",
            str(silo.received + _never_received(silo)),
            str(silo.merged),
            Text(str(silo.refused), style="red" if silo.refused else ""),
            str(silo.retired),
            f"{silo.mean_staleness:.1f}",
            size(silo.bytes),
            scores.get(silo.silo, Text("–", style="dim")),
        )
    title = Text.assemble((status.name, "bold"), (f"  {status.job}", "dim"))
    parts: list[RenderableType] = [title, _headline(status), Text(), table]
    parts += [
        Text(f"{s.silo}: last refused or given up: {s.last_reason}", style="yellow")
        for s in status.silos
        if s.last_reason
    ]
    return Group(*parts)


def line(status: admin_pb2.JobStatus) -> str:
    """One line for a log file or a terminal that cannot redraw."""
    mean = next((e for e in status.evaluations if not e.silo), None)
    score = (
        ""
        if mean is None
        else "".join(f"  {k} {v:.3f} (version {mean.version})" for k, v in sorted(mean.metrics.items()))
    )
    busy = sum(silo.training for silo in status.silos)
    connected = sum(silo.connected for silo in status.silos)
    merged = sum(silo.merged for silo in status.silos)
    reason = f" ({status.reason})" if status.reason else ""
    return (
        f"{status.status}{reason}  version {status.head}/{status.versions}  silos {connected} connected, {busy} training"
        f"  merged {merged}{score}"
    )


def state(silo: admin_pb2.SiloStatus, status: admin_pb2.JobStatus | None) -> tuple[str, str]:
    """A word for what the silo is doing and the colour it is shown in."""
    now = status.server_time if status else 0
    if silo.decision != "approved":
        return (silo.decision or "undecided", "red" if silo.decision else "yellow")
    if not silo.connected:
        return ("never connected" if not silo.last_seen else "lost", "red")
    if now and silo.last_seen and now - silo.last_seen > LATE_SECONDS:
        return "late", "yellow"
    return ("training", "green") if silo.training else ("waiting", "cyan")


def size(count: float) -> str:
    """Bytes for a person: `12.3 kB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def ago(seconds: int) -> str:
    """`12 s ago` for a unix time, `never` for 0."""
    if not seconds:
        return "never"
    return f"{_span(int(time.time()) - seconds)} ago"


def _span(seconds: int) -> str:
    """The largest unit only: `3 min`."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{max(0, seconds)} s"


def _never_received(silo: admin_pb2.SiloStatus) -> int:
    """Refused updates that never entered the store still count as sent."""
    return max(0, silo.merged + silo.refused + silo.retired - silo.received)


def _headline(status: admin_pb2.JobStatus) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=max(1, status.versions), completed=status.head, width=20)
    facts = Text.assemble(
        _status(status),
        f"  version {status.head} of {status.versions}",
        f"  buffer {status.buffered}/{status.buffer}" if status.buffer else "",
        f" for {status.buffer_age_seconds:.0f} s" if status.buffered else "",
    )
    grid.add_row(bar, facts)
    mean = next((e for e in status.evaluations if not e.silo), None)
    if mean is not None:
        scores = ", ".join(f"{name} {_score(name, value)}" for name, value in sorted(mean.metrics.items()))
        told = Text.assemble((scores, "bold"), f" at version {mean.version}, mean over silos")
        grid.add_row("", told)
    return grid


def _doing(silo: admin_pb2.SiloStatus, name: str, style: str, now: int) -> RenderableType:
    dot = Text("● ", style=style)
    if name == "training" and silo.steps:
        grid = Table.grid()
        bar = ProgressBar(total=silo.steps, completed=min(silo.step, silo.steps), width=6)
        grid.add_row(dot, bar, Text(f" {silo.step}/{silo.steps}", style="dim"))
        return grid
    seen = f" {_span(now - silo.last_seen)}" if name in ("lost", "late") else ""
    return dot.append(f"{name}{seen}")


def _scores(status: admin_pb2.JobStatus) -> dict[str, Text]:
    return {
        e.silo: Text(
            _score(*min(e.metrics.items()))
        )  # one fits the table; by name, so that it is always the same
        for e in status.evaluations
        if e.silo and e.metrics
    }


def _score(name: str, value: float) -> str:
    return f"{value:.1%}" if 0 <= value <= 1 and "loss" not in name else f"{value:.4g}"


def _status(status: admin_pb2.JobStatus) -> Text:
    text = Text(status.status, style=STATUS_STYLE.get(status.status, ""))
    if status.reason:
        text.append(f" ({status.reason})", style="dim")
    return text


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    words = {"job", "name", "status", "silo", "silos", "doing"}
    for column in columns:
        table.add_column(column, justify="left" if column in words else "right", no_wrap=column != "status")
    return table
