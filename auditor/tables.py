"""What a person sees of lineage, silo, gaps and report; below it always the verdict on the log it was read from."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from anabranch.wire import canonical
from auditor import lineage
from auditor.dossier import Dossier
from auditor.gaps import Gap
from auditor.report import Report
from auditor.retention import not_kept
from auditor.view import plain, verified
from auditor.words import revived, tail, when, who

DOUBTFUL = "[red]not shown[/]: what a log says that is not verified proves nothing"


def doubtful(report: Report) -> RenderableType:
    """Instead of an answer."""
    return Group(verified(report), DOUBTFUL)


def traced(report: Report, found: lineage.Lineage) -> RenderableType:
    """Head, approvals, shares, then one row for each update in the order it was applied."""
    job, version, chosen = found.job, found.version, found.chosen
    facts = _facts(
        {
            "model": f"version {chosen.version} of {chosen.job}, {chosen.part} {found.digest}",
            "published": f"entry {version.index}, {version.time}",
            "submitted": f"entry {job.index}, {job.time}, by {who(job.owner)}",
            "terms": job.submitted.terms_sha256 + ("" if job.terms else " (not in the export)"),
            "code": job.submitted.archive_sha256,
            "not kept": "; ".join(not_kept(job, chosen.version)) or "nothing was pruned",
            **({"revivals": revived(lineage.revivals(job, chosen.version))} if job.revives else {}),
        }
    )
    steps = _table("version", "update", "silo", "entry", "base", "late", "weight", "coefficient", "closed by")
    for step in found.steps:
        for position, given in enumerate(step.inputs):
            one = given.one
            weight, coefficient = (canonical.from_hexfloat(text) for text in (one.weight, one.coefficient))
            steps.add_row(
                "" if position else str(step.version),
                plain(tail(one.update)),
                plain(one.silo),
                str(given.received),
                str(one.base),
                str(one.staleness) if one.staleness else "",
                f"{weight:.6g}",
                f"{coefficient:.6g}",
                "" if position else plain(_closed(step)),
            )
    rest = (
        [steps]
        if found.steps
        else ["[yellow]no update went into it[/]: it is the version its owner submitted"]
    )
    return Group(facts, "", _shares(found), "", *rest, "", _verdict(report))


def _closed(step: lineage.Step) -> str:
    absent = f", without {', '.join(step.absent)}" if step.absent else ""
    return {"full": "full", "max_wait": "deadline", "interval": "interval"}[step.closed_by] + absent


def _shares(found: lineage.Lineage) -> RenderableType:
    table = _table(
        "silo", "share", "updates", "late on average", "latest", "approved in entry", "first update in"
    )
    for one in found.shares:
        table.add_row(
            plain(one.silo),
            f"{100 * one.share:.1f} %",
            str(len(one.coefficients)),
            f"{sum(one.staleness) / len(one.staleness):.2f}",
            str(max(one.staleness)),
            str(one.approval.index) if one.approval else "[red]none[/]",
            f"entry {one.first}",
        )
    others = [
        f"{plain(one.silo)} {one.word} in entry {one.index}"
        for one in found.job.record
        if one.silo not in {share.silo for share in found.shares} or one.word != "approved"
    ]
    return Group(table, *([f"[dim]also decided: {'; '.join(others)}[/]"] if others else []))


def told(report: Report, dossier: Dossier, document: Mapping[str, Any]) -> RenderableType:
    """The life of one silo."""
    updates, leases = document["updates"], document["leases"]
    refused = ", ".join(f"{count} {code}" for code, count in updates["refused"].items()) or "none"
    facts = _facts(
        {
            "silo": f"{dossier.silo}, {document['standing']}",
            "jobs": ", ".join(f"{job} {word}" for job, word in document["decisions"].items())
            or "none decided",
            "leases": f"{leases['train']} to train, {leases['evaluate']} to evaluate; {document['leases_released']}"
            f" given back, {len(document['open_leases'])} open",
            "updates": f"{updates['received']} received, {updates['merged']} merged, {updates['retired']} retired;"
            f" refused: {refused}",
            "evaluations": str(document["evaluations"]),
            "absences": f"{document['absent_from_versions']} versions made without it; fell silent {document['lost']} times",
        }
    )
    table = _table("entry", "time", "what")
    for line in dossier.lines:
        table.add_row(str(line.index), when(line.time), plain(line.what))
    return Group(facts, "", table, "", _verdict(report))


def missing(report: Report, gaps: list[Gap]) -> RenderableType:
    """Impossible ones in red, open ones as they are."""
    table = _table("entry", "rule", "what")
    for gap in gaps:
        colour = "red" if gap.kind == "impossible" else "yellow"
        entry = "" if gap.entry is None else str(gap.entry)
        table.add_row(entry, f"[{colour}]{gap.kind}[/]: {plain(gap.rule)}", plain(gap.what))
    impossible = sum(gap.kind == "impossible" for gap in gaps)
    said = f"{impossible} impossible, {len(gaps) - impossible} open"
    counted = f"[bold {'red' if impossible else 'green'}]{said}[/]"
    rows: list[RenderableType] = [table, ""] if gaps else []
    return Group(*rows, _verdict(report), counted)


def written(report: Report, where: Mapping[str, str], document: Mapping[str, Any]) -> RenderableType:
    """Where the report lies and its first lines."""
    lines = [f"{plain(name)}: {plain(path)}" for name, path in where.items()]
    told = [f"[yellow]{plain(line)}[/]" for line in document["attention"]]
    return Group(verified(report), *told, *lines)


def _verdict(report: Report) -> RenderableType:
    """The whole report when something is wrong, one line when nothing is."""
    if not report.verified:
        return verified(report)
    own = [f"[yellow]note[/]: {plain(note)}" for note in report.notes[:1] if "--vkey" in note]
    log = f"[bold green]VERIFIED[/]: log {plain(report.origin)}, {report.size} entries, root {report.root[:16]}…"
    return Group(*own, log)


def _facts(rows: Mapping[str, str]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    for name, text in rows.items():
        table.add_row(f"[dim]{name}[/]", plain(text))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in columns:
        narrow = name in ("update", "coefficient")
        table.add_column(
            name, justify="right" if name in _NUMBERS else "left", overflow="fold", no_wrap=narrow
        )
    return table


_NUMBERS = {"entry", "share", "updates", "base", "late", "weight", "coefficient", "late on average", "latest"}
