"""`anabranch-audit`: check an audit export offline."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from anabranch import exits
from anabranch.errors import Reason, Refused
from auditor import view
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
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def main() -> None:
    """Entry point: errors become a message on stderr, JSON on stdout if asked, and an exit code."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(exits.FAILED)
    except Exception as error:
        sys.exit(exits.fail("anabranch-audit", error, "--json" in sys.argv))


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
    scratch: Annotated[
        Path | None,
        typer.Option(help="Directory with room for two model versions.", exists=True, file_okay=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Verify, then recompute every model version from the signed updates. Exit code 0 only if all are exact."""
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
