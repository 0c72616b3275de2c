"""What a person sees. Progress goes to stderr and leaves no trace; `--json` prints the plain data instead."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.filesize import decimal
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

from auditor.replay import Replay
from auditor.report import STEPS, Report

SHOWN = 20  # findings and missing objects on a terminal; --json has them all


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar per kind of work, on stderr, gone when the work is done."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        yield advance


def verified(report: Report) -> RenderableType:
    """The report as a table of the steps, then what was found."""
    table = Table.grid(padding=(0, 2))
    for step, said in _steps(report).items():
        table.add_row(_mark(report, step), STEPS[step], said)
    verdict = "[bold green]VERIFIED[/]" if report.verified else "[bold red]NOT VERIFIED[/]"
    title = f"audit log {plain(report.origin) or 'unknown'}"
    return Group(Panel(table, title=title, title_align="left"), *_remarks(report), verdict)


def replayed(report: Report, done: Replay | None) -> RenderableType:
    """The same with the verdict of the replay."""
    if done is None:
        return Group(
            verified(report), "[red]not replayed[/]: a log that is not verified proves nothing about models"
        )
    lines = [
        f"[red]version {one.version} of {plain(one.job)} differs[/]: {plain(one.differs)}"
        for one in done.different[:SHOWN]
    ]
    lines += [
        f"[red]version {one.version} of {plain(one.job)} cannot be recomputed[/]: {plain(', '.join(one.missing))}:"
        " not there, and the log does not say it was pruned"
        for one in done.missing[:SHOWN]
    ]
    lines += [
        f"[yellow]version {one.version} of {plain(one.job)} rests on digests only[/]: {plain(', '.join(one.pruned))}:"
        " pruned, says the log"
        for one in done.digest_only[:SHOWN]
    ]
    count = len(done.steps) - len(done.digest_only)  # those that are missing count: they should be exact
    colour = "green" if done.ok else "red"
    rest = f"; {len(done.digest_only)} more rest on digests only" if done.digest_only else ""
    said = (
        f"{done.exact}/{count} steps exact" if count or not rest else "no step could be recomputed any more"
    )
    return Group(verified(report), *lines, f"[bold {colour}]replayed: {said}[/]{rest}")


def show(document: Any, human: RenderableType, as_json: bool) -> None:
    """Print `document` as JSON or `human` for a person."""
    if as_json:
        print(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        Console().print(human)


def _mark(report: Report, step: int) -> str:
    if any(finding.step == step for finding in report.findings):
        return "[red]✗[/]"
    idle = step > report.reached or (step == 7 and not report.receipts)
    return "·" if idle else "[green]✓[/]"


def _steps(report: Report) -> dict[int, str]:
    updates = report.updates
    pruned = sum(one.pruned is not None for one in report.missing)
    unknown = sum(report.not_understood.values())
    versions = ", ".join(f"{plain(job)} at version {head}" for job, head in report.versions.items())
    said = {
        1: f"signed by {plain(report.vkey.rpartition('+')[0])}",
        2: f"{report.size} entries, root {report.root[:16]}…",
        3: f"{sum(report.types.values())} understood, not understood: {unknown}; {report.first} to {report.last}",
        4: f"{report.signatures} by silos; {report.views} views of the log signed with them agree",
        5: f"{updates['received']} updates received: {updates['merged']} merged, {updates['retired']} retired, "
        f"{updates['open']} open; {updates['refused']} refused; {versions or 'no jobs'}",
        6: f"{report.objects} match their digests ({decimal(report.object_bytes)}); on their digests only: "
        f"{pruned} pruned, as the log says, {len(report.missing) - pruned} not in the export",
        7: f"{report.receipts} kept by silos are in the log" if report.receipts else "none given",
    }
    return {step: said[step] if step <= report.reached else "not begun" for step in STEPS}


def _remarks(report: Report) -> Iterator[str]:
    for finding in report.findings[:SHOWN]:
        yield f"[red]{STEPS[finding.step]}[/] {plain(finding.where)}: {plain(finding.what)}"
    if len(report.findings) > SHOWN:
        yield f"[red]… and {len(report.findings) - SHOWN} more; --json lists them[/]"
    for (kind, pruned), count in Counter(
        (one.kind, one.pruned is not None) for one in report.missing
    ).items():
        alike = [one.what for one in report.missing if (one.kind, one.pruned is not None) == (kind, pruned)]
        some = f"{plain(', '.join(alike[:3]))}{', …' if count > 3 else ''}"
        why = "pruned, as the log says" if pruned else "not in the export"
        yield f"[yellow]rests on digests only[/]: {count} {kind}, {why} ({some})"
    for kind, count in report.not_understood.items():
        yield f"[yellow]not understood[/]: {count} entries of type {plain(kind)}; a newer release may know it"
    for one in report.privacy:
        promised = "" if one.promised is None else f" of {one.promised:g}"
        yield (
            f"[green]privacy[/]: silo {plain(one.silo)} in {plain(one.job)}: epsilon {one.epsilon:.3g}{promised} at delta "
            f"{one.delta:g} for each {one.unit}, {one.cycles} cycles"
        )
    for note in report.notes:
        yield f"[yellow]note[/]: {plain(note)}"


def plain(text: str) -> str:
    """Text from an export may paint no terminal: no markup, no control characters."""
    return escape("".join(one if one.isprintable() or one == "\n" else "\ufffd" for one in text))
