"""`anabranch-server`: make a federation, serve it, export its audit log."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import Progress

from anabranch import exits
from server import setup
from server.audit.export import export as write_export
from server.blobs.local import BlobStore
from server.config import new_config, read_config
from server.serve import serve as run_server
from server.state.database import damage, open_reader

app = typer.Typer(
    help="The aggregator of a federation: make one, serve it, export its audit log.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Directory = Annotated[
    Path, typer.Argument(help="The server's directory: keys, settings, state and blobs.", metavar="DIR")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def main() -> None:
    exits.run("anabranch-server", app)


@app.command()
def init(
    directory: Directory,
    host: Annotated[
        str, typer.Option(help="Name or address that silos dial; it stands in the server's certificate.")
    ],
    federation: Annotated[
        str, typer.Option(help="Name of the federation, like a domain.")
    ] = "federation.local",
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port for enrolled silos and administrators (mTLS).")
    ] = 7443,
    enrolment_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port for enrolment with one-time tokens.")
    ] = 7444,
    health_port: Annotated[
        int, typer.Option(help="Plaintext port for probes and metrics, on loopback.")
    ] = 7445,
    admin: Annotated[str, typer.Option(help="Pseudonym of the first administrator.")] = "admin",
    as_json: Json = False,
) -> None:
    """Make a federation: certificate authority, empty audit log, first administrator."""
    setup.check_name("admin", admin)
    config = new_config(federation, host, port, enrolment_port, health_port)
    info = setup.create_federation(directory, config, setup.real_world())
    place = setup.issue(directory, "admin", admin)
    _show(
        {
            "federation": federation,
            "admin": str(place),
            "log_vkey": info.log_vkey,
            "ca_pins": list(info.ca_pins),
        },
        f"federation [bold]{federation}[/] made in {directory}\n"
        f"log key   {info.log_vkey}\nCA pin    {info.ca_pins[0]}\n"
        f"keep {directory}/keys/root.key offline from now on\n\n"
        f"next:  anabranch-server serve {directory}\n"
        f"       export ANABRANCH_ADMIN={place}\n"
        f"       anabranch silo invite hospital-a -o hospital-a.json",
        as_json,
    )


@app.command()
def serve(
    directory: Directory,
    log_format: Annotated[
        Literal["json", "text"], typer.Option(help="Of the log on standard error; text is for a person.")
    ] = "json",
    as_json: Annotated[bool, typer.Option("--json", help="Say in JSON why it could not go on.")] = False,
) -> None:
    """Serve until SIGTERM, then finish running calls and the aggregation in progress."""
    run_server(directory, read_config(directory), log_format)


@app.command()
def admin(
    directory: Directory,
    name: Annotated[
        str, typer.Argument(help="Pseudonym: it stands in the certificate and in the audit log.")
    ],
    as_json: Json = False,
) -> None:
    """A new certificate for an administrator, by the running server or, when none runs, at once."""
    place = setup.issue(directory, "admin", name)
    _show({"admin": str(place)}, f"export ANABRANCH_ADMIN={place}", as_json)


@app.command()
def reviver(
    directory: Directory,
    name: Annotated[str, typer.Argument(help="Its name, in the certificate and in the audit log.")],
    as_json: Json = False,
) -> None:
    """Key and certificate for a reviver, by the running server or, when none runs, at once; the one before ends.

    Move the folder to where the reviver runs: it is all it needs to know.
    """
    place = setup.issue(directory, "reviver", name)
    _show({"reviver": str(place)}, f"anabranch-reviver run {place} --home HOME", as_json)


@app.command()
def export(
    directory: Directory,
    out: Annotated[Path, typer.Option("--out", "-o", help="A new directory to write.")],
    sealed: Annotated[
        bool, typer.Option(help="Include evaluations and what opens sealed facts: private to silos.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write everything a reviewer needs to verify the log and replay its models, while the server may go on running.

    What retention has pruned is left out; the log says so. Exit code 4 if anything else is missing.
    """
    config = read_config(directory)
    setup.require_state(directory)
    info = setup.federation_info(directory, config)
    with (
        damage(directory / "state" / "state.db"),
        Progress(console=Console(stderr=True), transient=True) as bar,
    ):
        task = bar.add_task("exporting entries", total=None)
        done = write_export(
            open_reader(directory / "state" / "state.db"),
            BlobStore(directory / "blobs"),
            info.log_vkey,
            info.ca_pem.encode(),
            out,
            sealed,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    pruned = f", {done.pruned} more were pruned, as the log says" if done.pruned else ""
    _show(
        {
            "export": str(out),
            "entries": done.size,
            "objects": done.objects,
            "pruned": done.pruned,
            "missing": done.missing,
        },
        f"{done.size} entries and {done.objects} objects{pruned}\n\nanabranch-audit verify {out} --vkey '{info.log_vkey}'",
        as_json,
    )
    if done.missing:
        print(
            f"anabranch-server: {done.missing} blobs that the log names are gone, and no entry says they were pruned;"
            f" restore {directory / 'blobs'} from a backup and export again",
            file=sys.stderr,
        )
        raise typer.Exit(exits.CORRUPT)


def _show(document: dict[str, object], human: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps(document, ensure_ascii=False))
    else:
        Console(soft_wrap=True, highlight=False).print(human)
