"""How jobs are doing, for a person at a terminal of 80 columns or more."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from anabranch.errors import OUT_OF_MEMORY_REMEDY, Reason
from anabranch.v1 import admin_pb2
from console.words import printable, rate, score, short, size, span

STATUS_STYLE = {"running": "green", "completed": "green", "paused": "yellow", "aborted": "red"}
STATE_STYLE = {
    "training": "green",
    "evaluating": "green",
    "idle": "cyan",
    "backing off": "yellow",
    "undecided": "yellow",
}  # the others are red: without this silo the job goes on as it can
COUNTED = {"refused": "refused", "released": "failed", "retired": "retired"}  # outcome → as a person says it
WORDS = {"job", "name", "status", "silo", "silos", "doing"}  # columns that are not numbers


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


def board(overview: admin_pb2.Overview, *, every_silo: bool) -> RenderableType:
    """The live view: a block per job, then the server. `every_silo`: with a table of its silos, else counted."""
    parts: list[RenderableType] = []
    for status in overview.jobs:
        parts += [*block(status, every_silo), Text()]
    if not overview.jobs:
        parts += [Text("no job goes on; `anabranch job list` has those that ended", style="dim"), Text()]
    return Group(*parts, _server(overview.server))


def block(status: admin_pb2.JobStatus, every_silo: bool) -> Iterator[RenderableType]:
    """One job: how far, what its silos do, what is the matter."""
    yield Text.assemble((status.name, "bold"), (f"  {status.job}", "dim"))
    yield from _headline(status)
    if every_silo:
        yield Text()
        yield _silos(status)
        if telling := [silo for silo in status.silos if silo.samples_per_second or silo.whole_bytes]:
            yield Text()
            yield _traffic(telling)
    else:
        yield _counted(status)
    troubles = list(alarms(status).values())
    if every_silo and troubles:
        yield Text()
    yield from (Text(text, style="yellow") for text in troubles)


def alarms(status: admin_pb2.JobStatus) -> Mapping[tuple[str, str, str], str]:
    """(job, silo, what is the matter) → a sentence: who is late, lost, failing or refused, and why."""
    found: dict[tuple[str, str, str], str] = {}
    for silo in status.silos:

        def say(what: str, text: str, silo: str = silo.silo) -> None:
            found[status.job, silo, what] = printable(f"{silo}: {text}")

        if silo.state == "lost":
            say("lost", f"lost: holds a lease, and {_unheard(silo, status.server_time)}")
        if silo.late_seconds:
            held = span(silo.leased_seconds)
            late = span(silo.late_seconds)
            say("late", f"late by {late}: lease {silo.lease[:8]} from version {silo.base}, held for {held}")
        if silo.state == "backing off":
            say(
                "backing off",
                f"{silo.failures} tasks failed in a row; next one in {span(silo.retry_seconds)}",
            )
        counts = [f"{COUNTED[t.outcome]} {t.count}× {t.reason}" for t in silo.tallies if t.outcome in COUNTED]
        if counts:
            say("counts", "; ".join(counts))
        if ":" in silo.last_reason:  # of a failed task, with the exception and the job's own line
            say("last", f"last failure: {silo.last_reason}{_remedy(silo.last_reason)}")
    return found


def _remedy(reason: str) -> str:
    """What to do about a failure that the job's code alone does not explain."""
    return f" ({OUT_OF_MEMORY_REMEDY})" if reason.startswith(f"{Reason.TASK_OUT_OF_MEMORY}:") else ""


def line(status: admin_pb2.JobStatus) -> str:
    """One line for a log file or a terminal that cannot redraw."""
    mean = _mean(status)
    scores = (
        "".join(f"  {k} {v:.3f} (version {mean.version})" for k, v in sorted(mean.metrics.items()))
        if mean
        else ""
    )
    busy = sum(silo.training for silo in status.silos)
    connected = sum(silo.connected for silo in status.silos)
    merged = sum(silo.merged for silo in status.silos)
    reason = f" ({status.reason})" if status.reason else ""
    left = f"  done in {span(status.eta_seconds)}" if status.eta_seconds else ""
    return (
        f"{status.job}: {status.status}{reason}  version {status.head}/{status.versions}  silos {connected} connected, "
        f"{busy} training  merged {merged}{scores}{left}"
    )


def _headline(status: admin_pb2.JobStatus) -> Iterator[RenderableType]:
    grid = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=max(1, status.versions), completed=status.head, width=16)
    left = f"  done in {span(status.eta_seconds)} at most" if status.eta_seconds else ""
    grid.add_row(bar, Text.assemble(_status(status), f"  version {status.head} of {status.versions}{left}"))
    yield grid
    fill = f"buffer {status.buffered}/{status.buffer}" if status.buffer else "no buffer"
    age = f" for {span(status.buffer_age_seconds)}" if status.buffered else ""
    speed = f"{rate(status.versions_per_hour)} versions, {status.updates_per_minute:.1f}/min updates"
    yield Text(f"{fill}{age}  {speed}  staleness {_staleness(status):.1f}")
    if status.HasField("share"):
        share = status.share
        yield Text(f"share of the silos {share.leases}, at work {share.active}  ({printable(share.why)})")
    mean = _mean(status)
    if mean is not None:
        scores = ", ".join(f"{name} {score(name, value)}" for name, value in sorted(mean.metrics.items()))
        yield Text.assemble((scores, "bold"), f" at version {mean.version}, mean over silos")
    if status.HasField("revival"):
        yield Text(printable(_revived(status.revival)))


def _revived(revival: admin_pb2.RevivalStatus) -> str:
    """`revival used 12, skipped 3× warmup  taught by 4 silos  agreement 61.0% → 66.0% at version 20, in 3 s`."""
    ended = [
        f"{tally.outcome} {tally.count}× {tally.reason}" if tally.reason else f"{tally.outcome} {tally.count}"
        for tally in revival.tallies
    ]
    pairs = {
        "agreement": (revival.agreement_before, revival.agreement_after),
        "public accuracy": (revival.accuracy_before, revival.accuracy_after),
    }
    gained = [
        f"{name} {score('accuracy', before)} → {score('accuracy', after)}"
        for name, (before, after) in pairs.items()
        if before or after
    ]
    measured = ", ".join(gained) or "newest"
    newest = f"  {measured} at version {revival.version}, in {span(revival.seconds)}"
    told = ", ".join(ended) or "has not begun"
    return f"revival {told}  taught by {len(revival.teachers)} silos{newest if revival.seconds else ''}"


def _silos(status: admin_pb2.JobStatus) -> RenderableType:
    table = _table("silo", "doing", "base", "sent", "merged", "refused", "failed", "stale", "data", "score")
    scores = _scores(status)
    for silo in status.silos:
        failed = sum(tally.count for tally in silo.tallies if tally.outcome == "released")
        table.add_row(
            Text(silo.silo, style="bold"),
            _doing(silo, status.server_time),
            str(silo.base) if silo.lease else "–",
            str(silo.received + silo.merged + silo.refused + silo.retired),
            str(silo.merged),
            Text(str(silo.refused), style="red" if silo.refused else ""),
            Text(str(failed), style="red" if failed else ""),
            f"{silo.mean_staleness:.1f}",
            size(silo.bytes),
            scores.get(silo.silo, Text("–", style="dim")),
        )
    return table


def _traffic(silos: Sequence[admin_pb2.SiloStatus]) -> RenderableType:
    """How fast they train now, and what `[link]` saved. 80 columns do not have room for it beside the rest."""
    table = _table("silo", "samples/s", "tokens/s", "data", "whole", "saved")
    for silo in silos:
        speeds = (silo.samples_per_second, silo.tokens_per_second)
        saved = f"{silo.whole_bytes / silo.bytes:.1f}×" if silo.bytes and silo.whole_bytes else "–"
        table.add_row(
            Text(silo.silo, style="bold"),
            *(short(speed) if speed else "–" for speed in speeds),
            size(silo.bytes),
            size(silo.whole_bytes) if silo.whole_bytes else "–",
            saved,
        )
    return table


def _doing(silo: admin_pb2.SiloStatus, now: int) -> RenderableType:
    dot = Text("● ", style=STATE_STYLE.get(silo.state, "red"))
    if silo.state == "training" and silo.steps:
        grid = Table.grid()
        bar = ProgressBar(total=silo.steps, completed=min(silo.step, silo.steps), width=6)
        late = Text(" late", style="yellow") if silo.late_seconds else ""
        grid.add_row(dot, bar, Text(f" {silo.step}/{silo.steps}", style="dim"), late)
        return grid
    if silo.state == "backing off":
        return dot.append(f"backing off {span(silo.retry_seconds)}")
    if silo.state in ("lost", "absent") and silo.last_seen:
        return dot.append(f"{silo.state} {span(now - silo.last_seen)}")
    return dot.append(f"{silo.state}, other job" if silo.state == "idle" and silo.elsewhere else silo.state)


def _counted(status: admin_pb2.JobStatus) -> RenderableType:
    """The silos of a job in one line: `3 training  1 idle`."""
    found = Counter(silo.state for silo in status.silos)
    parts = [(f"{count} {state}  ", STATE_STYLE.get(state, "red")) for state, count in found.most_common()]
    return Text.assemble(*parts) if parts else Text("no silo has joined the federation", style="dim")


def _server(status: admin_pb2.ServerStatus) -> RenderableType:
    memory = f"memory {size(status.memory_bytes)}, peak {size(status.memory_peak_bytes)}"
    disk = f"disk {size(status.disk_free_bytes)} of {size(status.disk_bytes)} free"
    traffic = f"in {size(status.received_per_second)}/s, out {size(status.sent_per_second)}/s"
    return Text(
        f"server {status.release}  {memory}  {disk}\n{traffic}  {status.sessions} agents", style="dim"
    )


def _unheard(silo: admin_pb2.SiloStatus, now: int) -> str:
    if not silo.last_seen:
        return "was not heard since the server started"
    return f"was not heard for {span(now - silo.last_seen)}"


def _mean(status: admin_pb2.JobStatus) -> admin_pb2.Evaluation | None:
    return next((e for e in status.evaluations if not e.silo), None)


def _staleness(status: admin_pb2.JobStatus) -> float:
    merged = sum(silo.merged for silo in status.silos)
    return sum(silo.mean_staleness * silo.merged for silo in status.silos) / max(merged, 1)


def _scores(status: admin_pb2.JobStatus) -> dict[str, Text]:
    # One fits the table: the first by name, so that it is always the same.
    return {e.silo: Text(score(*min(e.metrics.items()))) for e in status.evaluations if e.silo and e.metrics}


def _status(status: admin_pb2.JobStatus) -> Text:
    text = Text(status.status, style=STATUS_STYLE.get(status.status, ""))
    if status.reason:
        text.append(f" ({status.reason})", style="dim")
    return text


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    for column in columns:
        table.add_column(column, justify="left" if column in WORDS else "right", no_wrap=column != "status")
    return table
