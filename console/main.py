"""`anabranch`: jobs and silos of a federation, and the demo."""

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import typer

from anabranch import exits
from anabranch.errors import Reason, Refused
from anabranch.terms import NAME, Strategy, seconds
from anabranch.v1 import admin_pb2
from console import documents, output, silos, watch
from console.adapter import Wanted
from console.board import jobs_table
from console.client import UNARY_SECONDS, Logged, connect, logged, presentable
from console.export import export as export_model
from console.mlflow import MLflow
from console.scalars import Runs, Scalars
from console.submit import prepared, read
from console.submit import submit as submit_job
from console.tensorboard import EventFiles
from console.words import size

app = typer.Typer(
    help="Federated learning across organisations: submit jobs, follow them, manage silos.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
job_app = typer.Typer(
    help="Jobs: what is trained, by whose approval, and how far it is.", no_args_is_help=True
)
silo_app = typer.Typer(help="Silos: invite, list, revoke.", no_args_is_help=True)
app.add_typer(job_app, name="job")
app.add_typer(silo_app, name="silo")

AdminDir = Annotated[
    Path,
    typer.Option(
        "--admin", envvar="ANABRANCH_ADMIN", help="Admin directory written by `anabranch-server init`."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Base = Annotated[
    Path | None, typer.Option(help="Folder of the base model that the job file names as [job] base.")
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Job id, as `anabranch job list` shows it.")]


def main() -> None:
    exits.run("anabranch", app)


@job_app.command("submit")
def job_submit(
    path: Annotated[Path, typer.Argument(help="Folder with job.toml, or the TOML file itself.")],
    admin: AdminDir,
    initial: Annotated[
        Path | None, typer.Option(help="Start from this safetensors file instead of the task's model().")
    ] = None,
    base: Base = None,
    as_json: Json = False,
) -> None:
    """Pack a job, build version 0 and offer it to the silos for approval."""
    folder, file = read(path)
    with connect(admin) as connection, prepared(folder, file, initial, base) as job:
        done = submit_job(connection, job)
    output.show(
        {"job": done.job, "terms_sha256": done.terms_sha256, "log_index": done.entry.index},
        f"job [bold]{done.job}[/] submitted, {_entry(done.entry)}\n"
        f"its terms are {done.terms_sha256}; silos approve them with\n  anabranch-silo approve {done.job}",
        as_json,
    )


@job_app.command("try")
def job_try(
    folder: Annotated[Path, typer.Argument(help="Folder with job.toml.")],
    data: Annotated[Path, typer.Option(help="A data path as a silo's policy would bind it.")],
    base: Base = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps; default: the job's local_steps.")] = None,
    silo: Annotated[
        str | None, typer.Option(help="Train as this silo, with the rank that [adapter.ranks] gives it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a few steps of a job on local data, just as a silo would, without a federation."""
    program = str(Path(sysconfig.get_path("scripts")) / "anabranch-silo")
    argv = [program, "try", str(folder), "--data", str(data.absolute()), *(["--json"] if as_json else [])]
    argv += ["--base", str(base.absolute())] if base is not None else []
    argv += ["--steps", str(steps)] if steps else []
    argv += ["--silo", silo] if silo is not None else []
    raise typer.Exit(subprocess.run(argv, check=False).returncode)


@job_app.command("list")
def job_list(admin: AdminDir, as_json: Json = False) -> None:
    """All jobs and how far they are."""
    with connect(admin) as connection:
        reply = connection.stub.ListJobStatus(admin_pb2.ListJobStatusRequest(), timeout=UNARY_SECONDS)
    jobs = [presentable(job) for job in reply.jobs]
    document = {"jobs": [documents.job(job) for job in jobs], "server": documents.server(reply.server)}
    output.show(document, jobs_table(jobs), as_json)


@job_app.command("watch")
def job_watch(
    admin: AdminDir,
    job: Annotated[
        str,
        typer.Argument(help="Job id, as `anabranch job list` shows it; without it every job that goes on."),
    ] = "",
    interval: Annotated[float, typer.Option(min=0.2, max=60, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and exit.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document per look, each on a line of its own.")
    ] = False,
    tensorboard: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write versions, scores and speeds there too, for TensorBoard."),
    ] = None,
    mlflow: Annotated[
        str | None,
        typer.Option(
            metavar="URI", help="Write the same to MLflow: https://… of its server, or sqlite:///FILE."
        ),
    ] = None,
) -> None:
    """Follow jobs until they end: who trains, is late, lost, failing or refused and why; buffer, speed, scores, server.

    Redraws on a terminal; elsewhere one line per version and per trouble that begins. Exit code 1 if one was aborted.
    """
    with connect(admin) as connection:
        looks: watch.Looks = watch.overviews(connection, job, interval)
        kept: list[Runs] = [EventFiles(tensorboard)] if tensorboard else []
        kept += [MLflow(mlflow, connection.federation.federation)] if mlflow else []
        for runs in kept:
            looks = Scalars(runs).written(looks)
        if once:
            watch.show_once(looks, as_json, every_silo=bool(job))
            return
        form: Literal["json", "screen", "lines"] = (
            "json" if as_json else "screen" if sys.stdout.isatty() else "lines"
        )
        ended = watch.follow(looks, form, every_silo=bool(job))
    if "aborted" in ended:
        raise typer.Exit(exits.FAILED)


@job_app.command("pause")
def job_pause(job: JobId, admin: AdminDir, reason: str = "", as_json: Json = False) -> None:
    """Hand out no more work; updates under way are still taken."""
    _change(job, "pause", reason, admin, as_json)


@job_app.command("resume")
def job_resume(job: JobId, admin: AdminDir, reason: str = "", as_json: Json = False) -> None:
    """Continue a paused job."""
    _change(job, "resume", reason, admin, as_json)


@job_app.command("abort")
def job_abort(job: JobId, admin: AdminDir, reason: str = "", as_json: Json = False) -> None:
    """End a job for good; updates not yet merged are retired."""
    _change(job, "abort", reason, admin, as_json)


@job_app.command("export")
def job_export(
    job: JobId,
    admin: AdminDir,
    file: Annotated[Path, typer.Option("--output", "-o", help="Where to write the safetensors file.")],
    version: Annotated[str, typer.Option(help="head, best, ema or a number.")] = "head",
    merge: Annotated[
        bool,
        typer.Option(
            "--merge", help="Write a checkpoint of the whole model too, adapters added; needs --code."
        ),
    ] = False,
    code: Annotated[
        Path | None,
        typer.Option(help="The folder that was submitted: makes again what is not in the file."),
    ] = None,
    base: Base = None,
    as_json: Json = False,
) -> None:
    """Write a model version and its model card, and for LoRA the folder that peft loads. It is an entry of the log."""
    with connect(admin) as connection:
        done = export_model(connection, job, version, file, Wanted(code, base, merge))
    beside = {"peft adapter": done.beside.adapter, "merged checkpoint": done.beside.merged}
    output.show(
        done.document(),
        f"version {done.version}: {done.path} ({size(done.bytes)}, sha256 {done.sha256}), {_entry(done.entry)}\n"
        f"model card: {done.card}" + "".join(f"\n{what}: {path}" for what, path in beside.items() if path),
        as_json,
    )


@silo_app.command("invite")
def silo_invite(
    name: Annotated[str, typer.Argument(help="A DNS label, for example north-clinic.")],
    admin: AdminDir,
    file: Annotated[Path, typer.Option("--output", "-o", help="Where to write the join bundle.")],
    ttl: Annotated[
        str, typer.Option(help="How long the one-time token is good: 30m, 1h; at most 24h.")
    ] = "1h",
    as_json: Json = False,
) -> None:
    """Write a join bundle with a one-time token. Hand it over by a channel you trust: it is a secret until used."""
    lasting = _duration(ttl)
    if not re.fullmatch(NAME, name):
        raise Refused(Reason.MALFORMED, f"silo {name!r}: a name is lowercase letters, digits and dashes")
    with output.writing(file), connect(admin) as connection:
        # The file first: a token that nobody holds would wait at the server.
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}.") as spool:
            request = admin_pb2.InviteSiloRequest(silo=name, ttl_seconds=lasting)
            reply = connection.stub.InviteSilo(request, timeout=UNARY_SECONDS)
            entry = logged(connection, reply.receipt)
            spool.write(reply.bundle)
            spool.flush()
            file.unlink(missing_ok=True)
            os.link(spool.name, file)
    output.show(
        {"silo": name, "bundle": str(file), "ttl_seconds": lasting, "log_index": entry.index},
        f"{file} invites [bold]{name}[/] for {ttl}, {_entry(entry)}\nat the silo: anabranch-silo enrol {file}",
        as_json,
    )


@silo_app.command("list")
def silo_list(admin: AdminDir, as_json: Json = False) -> None:
    """All silos, whether they are connected, and until when their certificates are good."""
    with connect(admin) as connection:
        reply = connection.stub.ListSilos(admin_pb2.ListSilosRequest(), timeout=UNARY_SECONDS)
    found = [presentable(silo) for silo in reply.silos]
    output.show({"silos": [silos.document(silo) for silo in found]}, silos.table(found), as_json)


@silo_app.command("revoke")
def silo_revoke(
    name: Annotated[str, typer.Argument(help="The silo's name.")],
    admin: AdminDir,
    reason: Annotated[str, typer.Option(help="Goes into the audit log.")] = "",
    as_json: Json = False,
) -> None:
    """Shut a silo out at once. Its updates that wait to be merged are retired; merged ones stay."""
    with connect(admin) as connection:
        request = admin_pb2.RevokeSiloRequest(silo=name, reason=reason)
        reply = connection.stub.RevokeSilo(request, timeout=UNARY_SECONDS)
        entry = logged(connection, reply.receipt)
    output.show(
        {"silo": name, "retired_updates": reply.retired_updates, "log_index": entry.index},
        f"[bold]{name}[/] is revoked, {reply.retired_updates} of its updates retired, {_entry(entry)}",
        as_json,
    )


@app.command()
def demo(
    count: Annotated[
        int, typer.Option("--silos", min=1, max=20, help="Silo agents, each a process of its own.")
    ] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Of the data split and the initial model.")] = 0,
    strategy: Annotated[
        Literal[Strategy, "revive"],
        typer.Option(
            help="How updates become versions: docs/strategies.md. revive: fedbuff and ca2fl, then ca2fl with a reviver,"
            " on silos that have no digit in common."
        ),
    ] = "fedbuff",
    versions: Annotated[int, typer.Option(min=1, help="Model versions to train.")] = 80,
    kill_server_at: Annotated[
        int | None,
        typer.Option(min=1, help="Kill the server with SIGKILL at this version and start it again."),
    ] = None,
    directory: Annotated[Path, typer.Option("--dir", help="Emptied, then written.")] = Path("build/demo"),
    keep: Annotated[bool, typer.Option("--keep", help="Leave the federation running until Ctrl-C.")] = False,
    as_json: Json = False,
) -> None:
    """A whole federation on this machine: enrol, train, verify the log offline, report."""
    try:
        from console.demo.demo import run  # the demo alone needs scikit-learn and matplotlib
        from console.demo.settings import Settings
    except ModuleNotFoundError as error:
        raise Refused(
            Reason.NOT_FOUND, f"the demo needs {error.name}: pip install 'anabranch[demo]'"
        ) from error
    settings = Settings(count, seed, strategy, versions, kill_server_at, directory, keep)
    code = run(settings, as_json)
    if code:
        raise typer.Exit(code)


JobFolders = Annotated[
    list[Path], typer.Argument(metavar="JOB…", help="Folders with job.toml, or the TOML files themselves.")
]
Processes = Annotated[
    int | None,
    typer.Option(min=1, help="Runs made at once, each with one thread; default: one for each core."),
]
Ray = Annotated[
    str | None,
    typer.Option(
        help="Make the runs as tasks of the Ray cluster at this address; local: one of this machine."
        " Paths have to be the same on all its machines."
    ),
]


@app.command()
def simulate(
    jobs: JobFolders,
    scenario: Annotated[Path, typer.Option(help="TOML file: who the silos are and how the time goes by.")],
    directory: Annotated[
        Path, typer.Option("--output", "-o", help="Where to write index.html and a folder for each seed.")
    ],
    seeds: Annotated[str, typer.Option(help="0-4 or 0,3,7; default: the scenario's own.")] = "",
    like: Annotated[
        Path | None,
        typer.Option(
            help="An audit export: silos ask and return in its order, and the scenario's times are unused."
        ),
    ] = None,
    processes: Processes = None,
    ray: Ray = None,
    as_json: Json = False,
) -> None:
    """Play jobs in virtual time: the server's decisions and arithmetic over silos that a scenario describes.

    One run for each seed; what has ended when you interrupt it stays. docs/simulating.md explains scenarios.
    """
    commands = _simulation("simulate")
    commands.simulate(jobs, scenario, directory, seeds, like, commands.Workers(processes, ray), as_json)


@app.command()
def compare(
    path: Annotated[
        Path, typer.Argument(metavar="COMPARE", help="TOML file: job, scenario, seeds and entrants.")
    ],
    directory: Annotated[
        Path, typer.Option("--output", "-o", help="Where to write index.html, compare.json and all runs.")
    ],
    processes: Processes = None,
    ray: Ray = None,
    as_json: Json = False,
) -> None:
    """Compare strategies in virtual time: each tuned on seeds of its own, then judged on others by records no silo has.

    Interrupted, the same command goes on with the runs that are missing. docs/simulating.md explains the file.
    """
    commands = _simulation("compare")
    commands.compare(path, directory, commands.Workers(processes, ray), as_json)


def _simulation(command: str) -> ModuleType:
    try:
        from console.simulation import commands  # these two alone need pyarrow, scipy and matplotlib
    except ModuleNotFoundError as error:
        raise Refused(
            Reason.NOT_FOUND, f"{command} needs {error.name}: pip install 'anabranch[simulator]'"
        ) from error
    return commands


def _change(job: str, action: str, reason: str, admin: Path, as_json: bool) -> None:
    with connect(admin) as connection:
        request = admin_pb2.ChangeJobRequest(job=job, action=action, reason=reason)
        entry = logged(connection, connection.stub.ChangeJob(request, timeout=UNARY_SECONDS).receipt)
    output.show(
        {"job": job, "action": action, "log_index": entry.index},
        f"{job}: {entry.type}, {_entry(entry)}",
        as_json,
    )


def _entry(entry: Logged) -> str:
    return f"log entry {entry.index} (proof checked)"


def _duration(text: str) -> int:
    try:
        lasting = int(seconds(text))
    except ValueError as error:
        raise Refused(Reason.MALFORMED, f"--ttl {text}: write for example 30m or 1h; at most 24h") from error
    if lasting <= 0:
        raise Refused(Reason.MALFORMED, f"--ttl {text}: the token would expire at once")
    return lasting


if __name__ == "__main__":
    main()
