"""`anabranch-audit`: check an audit export offline."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from anabranch import exits
from anabranch.errors import Reason, Refused, wording
from auditor import dossier, gaps, lineage, page, review, tables, view
from auditor.chronicle import Chronicle
from auditor.export import open_export
from auditor.pin import pin
from auditor.replay import replay
from auditor.verify import verify

app = typer.Typer(
    help="Check an export of a federation's audit log, offline and without trusting its server.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ExportDir = Annotated[
    Path, typer.Argument(help="Directory written by `anabranch-server export`.", metavar="EXPORT")
]
Vkey = Annotated[
    str | None,
    typer.Option(
        help="The log's verifier key: the key itself, a file with it, or a silo's federation.json. "
        "Without it the key in the export is used, which proves less.",
        metavar="KEY|FILE",
    ),
]
Receipts = Annotated[
    list[Path] | None,
    typer.Option(help="Receipts a silo kept: a file or a directory; may be given again.", exists=True),
]
Scratch = Annotated[
    Path | None,
    typer.Option(help="Directory with room for two model versions.", exists=True, file_okay=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def main() -> None:
    exits.run("anabranch-audit", app)


@app.command("verify")
def verify_command(
    export: ExportDir, vkey: Vkey = None, receipts: Receipts = None, as_json: Json = False
) -> None:
    """Is the log intact, are its signatures good, is its story consistent? Exit code 0 only if all of it is."""
    opened = open_export(export)
    pinned = pin(opened, vkey)
    with view.progress() as advance:
        report = verify(opened, pinned, receipts or (), advance).report
    view.show(report.document(), view.verified(report), as_json)
    raise typer.Exit(exits.OK if report.verified else exits.FAILED)


@app.command("replay")
def replay_command(
    export: ExportDir,
    vkey: Vkey = None,
    job: Annotated[str | None, typer.Option(help="Only this job.")] = None,
    scratch: Scratch = None,
    as_json: Json = False,
) -> None:
    """Verify, then recompute every model version from the signed updates.

    Exit code 0 only if every version is exact, or its inputs were pruned by the terms' retention and the log says so.
    """
    opened = open_export(export)
    pinned = pin(opened, vkey)
    with view.progress() as advance:
        checked = verify(opened, pinned, (), advance)
        if checked.report.verified and job is not None and job not in checked.history.jobs:
            known = ", ".join(checked.history.jobs) or "none"
            raise Refused(Reason.NOT_FOUND, f"the log knows no job {job}; its jobs are: {known}")
        done = replay(opened, checked.history, scratch, advance, job) if checked.report.verified else None
    document = {"verify": checked.report.document(), "replay": done and done.document()}
    view.show(document, view.replayed(checked.report, done), as_json)
    raise typer.Exit(exits.OK if done is not None and done.ok else exits.FAILED)


@app.command("lineage")
def lineage_command(
    export: ExportDir,
    vkey: Vkey = None,
    job: Annotated[str | None, typer.Option(help="The job; needed when the log has several.")] = None,
    version: Annotated[
        str,
        typer.Option(
            help="Which model: head, best, a version number, or a model file, which is hashed and found in the log.",
            metavar="N|head|best|FILE",
        ),
    ] = "head",
    as_json: Json = False,
) -> None:
    """Which updates went into a model: their order, weight, staleness and silo, who approved what. Verifies first."""
    opened = open_export(export)
    pinned = pin(opened, vkey)
    with view.progress() as advance:
        checked = verify(opened, pinned, (), advance)
    report, found = checked.report, None
    if report.verified:
        found = lineage.trace(opened, checked.history, lineage.choose(checked.history, job, version))
    document = {"verify": report.document(), "lineage": found and lineage.document(found)}
    view.show(document, tables.traced(report, found) if found else tables.doubtful(report), as_json)
    raise typer.Exit(exits.OK if found else exits.FAILED)


@app.command("silo")
def silo_command(
    export: ExportDir,
    name: Annotated[str, typer.Argument(help="The silo.", metavar="NAME")],
    vkey: Vkey = None,
    as_json: Json = False,
) -> None:
    """Everything about one silo, in order: identity, approvals, work, updates and their ends, absences. Verifies first."""
    opened = open_export(export)
    pinned = pin(opened, vkey)
    written = dossier.Dossier(name)
    with view.progress() as advance:
        checked = verify(opened, pinned, (), advance, written.see)
    report, told = checked.report, None
    if report.verified:
        dossier.require_known(checked.history, name)
        told = dossier.document(written, checked.history)
    human = tables.told(report, written, told) if told else tables.doubtful(report)
    view.show({"verify": report.document(), "silo": told}, human, as_json)
    raise typer.Exit(exits.OK if told else exits.FAILED)


@app.command("gaps")
def gaps_command(export: ExportDir, vkey: Vkey = None, as_json: Json = False) -> None:
    """What is missing from the life cycle: transitions that are impossible (exit code 1), and what has not ended yet."""
    opened = open_export(export)
    pinned = pin(opened, vkey)
    with view.progress() as advance:
        checked = verify(opened, pinned, (), advance)
    report = checked.report
    found = gaps.find_gaps(report, checked.history)
    document = {"verify": report.document(), "gaps": gaps.document(found)}
    view.show(document, tables.missing(report, found), as_json)
    raise typer.Exit(exits.OK if report.verified else exits.FAILED)


@app.command("report")
def report_command(
    export: ExportDir,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="Directory for report.html, report.json and checkpoint.", metavar="DIR"
        ),
    ],
    vkey: Vkey = None,
    since: Annotated[
        Path | None,
        typer.Option(
            help="The checkpoint a former report kept: the log must continue it, and only what is newer is told.",
            metavar="CHECKPOINT_FILE",
        ),
    ] = None,
    receipts: Receipts = None,
    recompute: Annotated[
        bool, typer.Option("--replay/--no-replay", help="Recompute every model version as well.")
    ] = True,
    scratch: Scratch = None,
    as_json: Json = False,
) -> None:
    """One report to read, print and keep: verdict, participation, approvals, refusals, incidents, certificates."""
    opened = open_export(export)
    pinned = pin(opened, vkey)
    kept = None if since is None else review.read_since(since, pinned)
    if out.resolve().is_relative_to(export.resolve()):
        raise Refused(
            Reason.MALFORMED, f"--out {out} lies in the export, where nothing may be added; name another"
        )
    told = Chronicle(kept.checkpoint.size if kept else 0)
    with view.progress() as advance:
        checked = verify(opened, pinned, receipts or (), advance, told.see)
        if kept is not None:
            review.extends(checked, kept)
        verified = checked.report.verified
        done = replay(opened, checked.history, scratch, advance) if verified and recompute else None
    document = review.review(opened, checked, told, kept, done)
    where = _write(out, document, opened.checkpoint() if verified else None)
    view.show({"written": where, **document}, tables.written(checked.report, where, document), as_json)
    raise typer.Exit(exits.OK if verified and (done is None or done.ok) else exits.FAILED)


def _write(out: Path, document: dict[str, Any], checkpoint: str | None) -> dict[str, str]:
    """The report's files. The checkpoint of a log that is not verified is not worth keeping."""
    files = {"report.html": page.render(document), "report.json": json.dumps(document, indent=1) + "\n"}
    if checkpoint is not None:
        files["checkpoint"] = checkpoint
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (out / name).write_text(text, "utf-8")
    except OSError as error:
        raise Refused(
            Reason.NOT_FOUND,
            f"--out {out}: the report cannot be written there: {wording(error)}; name another directory",
        ) from error
    return {name: str(out / name) for name in files}
