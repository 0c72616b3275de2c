"""`anabranch-silo`: enrol a site, check it, approve jobs, run the agent. Everything it needs dials out."""

import logging
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from anabranch import exits
from anabranch.errors import Reason, Refused, Unavailable, wording
from anabranch.wire.bundle import parse_bundle
from silo_agent import approval, check, hub, identity, output, policy
from silo_agent.agent import Agent, Connection, connect, interpreter
from silo_agent.approval import STATUS, Decision, Decisions, Proposal
from silo_agent.config import Home, load_settings
from silo_agent.enrol import enrol as enrol_silo
from silo_agent.fetch import fetch_archive
from silo_agent.training import archive
from silo_agent.training.isolation import protect_agent
from silo_agent.trial import Tried, given, try_job

app = typer.Typer(
    help="The agent of one silo in a federation: your data stays here, your policy decides what runs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

models_app = typer.Typer(help="Base models that policy.toml names.", no_args_is_help=True)
app.add_typer(models_app, name="models")

# Absolute: training processes run in a folder of their own.
Dir = Annotated[
    Path,
    typer.Option("--dir", envvar="ANABRANCH_SILO", resolve_path=True, help="The agent's directory."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
JobRef = Annotated[
    str, typer.Argument(metavar="JOB", help="Job id, or the digest of its terms (or its beginning).")
]
HERE = Path("silo")

COLOURS = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}


def main() -> None:
    exits.run("anabranch-silo", app, output.hint)


@app.callback()
def begin() -> None:
    output.log_to_stderr("human", logging.WARNING)  # `run` says more


@app.command()
def enrol(
    bundle: Annotated[Path, typer.Argument(help="The join bundle your federation's administrator sent you.")],
    directory: Dir = HERE,
    proxy: Annotated[
        str | None, typer.Option(help="HTTP CONNECT proxy on the way out: http://host:port.")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Make new keys, for a silo that was revoked.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Join a federation: make keys here, spend the one-time token, keep a short-lived certificate."""
    data = _bundle(bundle)
    protect_agent()
    done = enrol_silo(Home(directory), data, time.time(), proxy, again)
    until = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(done.not_after))
    what = "nothing done, enrolled already" if done.already else "enrolled"
    revoked = "\nnew keys, for a silo that was revoked: the same command with --again" if done.already else ""
    output.show(
        {
            "identity": done.uri,
            "not_after": done.not_after,
            "already": done.already,
            "directory": str(directory),
        },
        f"{what}: [bold]{done.uri}[/], certificate until {until} (renewed by itself){revoked}\n"
        f"next: say in {directory / 'policy.toml'} which data jobs may use, then\n"
        f"  anabranch-silo check --dir {directory}\n  anabranch-silo run --dir {directory}",
        as_json,
    )


def _bundle(path: Path) -> bytes:
    """Raises Refused naming the file: it has come a long way, by mail or on a stick."""
    try:
        data = path.read_bytes()
        parse_bundle(data)
    except OSError as error:
        raise Refused(
            Reason.NOT_FOUND, f"{path} cannot be read: {wording(error)}; name the join bundle you were sent"
        ) from error
    except Refused as error:
        raise Refused(error.code, f"{path} is no join bundle that can be used: {error}") from error
    return data


@app.command("check")
def check_hops(directory: Dir = HERE, as_json: Json = False) -> None:
    """Walk every hop from this machine's clock to a running job and name the first that fails."""
    verdicts = check.check(Home(directory))
    broken = check.first_failure(verdicts)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("hop", "verdict", "what it means", "what to do"):
        table.add_column(column, overflow="fold")
    for verdict in verdicts:
        status = Text(verdict.status, COLOURS[verdict.status])
        table.add_row(verdict.hop, status, Text(verdict.meaning), Text(verdict.remedy))
    document = {
        "ok": broken is None,
        "failed": broken.hop if broken else None,
        "hops": [asdict(v) for v in verdicts],
    }
    if as_json:
        output.show(document, "", as_json)
    else:
        Console().print(table)
    if broken is not None:
        print(f"anabranch-silo: {broken.hop} fails: {broken.meaning}. {broken.remedy}", file=sys.stderr)
        raise typer.Exit(exits.FAILED)


@app.command()
def run(
    directory: Dir = HERE,
    as_json: Annotated[
        bool, typer.Option("--json", help="Log in JSON, and say in JSON why it could not go on.")
    ] = False,
) -> None:
    """Run the agent until it is told to stop (SIGTERM, Ctrl-C). It survives the server's restarts, and its own."""
    protect_agent()
    home = Home(directory)
    output.log_to_stderr("json" if as_json else load_settings(home).log)
    with connect(home) as connection:
        agent = Agent(connection)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: agent.stop())
        structlog.get_logger("agent").info(
            "starting", identity=connection.who.uri, server=connection.address, directory=str(directory)
        )
        agent.run()


@app.command()
def jobs(directory: Dir = HERE, as_json: Json = False) -> None:
    """Jobs the federation offers: what code, on which data, what it sends, and what this silo decided."""
    with connect(Home(directory)) as connection:
        proposals = [
            approval.examine(job, connection.log) for job in connection.client.jobs(connection.log.seen())
        ]
        here = Decisions(connection.home.decisions)
        rules = policy.load_policy(connection.home.policy)
        rows = [_job_document(p, approval.standing(p, rules, here)) for p in proposals]
        if as_json:
            output.show({"jobs": rows}, "", as_json)
        for proposal, row in zip(proposals, rows, strict=True):
            if not as_json:
                _print_terms(proposal, connection.who.silo, str(row["decision"]))
        if not proposals and not as_json:
            print("no jobs are offered")


@app.command()
def approve(job: JobRef, directory: Dir = HERE, yes: Yes = False, as_json: Json = False) -> None:
    """Allow a job to run on this site's data. The signed decision goes into the audit log."""
    _decide(job, "approve", directory, yes, as_json)


@app.command()
def deny(job: JobRef, directory: Dir = HERE, yes: Yes = False, as_json: Json = False) -> None:
    """Turn a job down."""
    _decide(job, "deny", directory, yes, as_json)


@app.command()
def withdraw(job: JobRef, directory: Dir = HERE, yes: Yes = False, as_json: Json = False) -> None:
    """Take an approval back: the job stops here at once, updates not yet merged are retired."""
    _decide(job, "withdraw", directory, yes, as_json)


@app.command("try")
def try_here(
    folder: Annotated[Path, typer.Argument(help="Folder with job.toml, or the TOML file itself.")],
    data: Annotated[Path | None, typer.Option(help="A data path instead of the policy's binding.")] = None,
    base: Annotated[
        Path | None, typer.Option(help="The base model's folder instead of the policy's binding.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps; default: the job's local_steps.")] = None,
    silo: Annotated[
        str | None, typer.Option(help="Train as this silo, at its rank; default: the one enrolled here.")
    ] = None,
    directory: Dir = HERE,
    as_json: Json = False,
) -> None:
    """Run a job's code on this site's data for a few steps, without a federation. Nothing is sent."""
    home = Home(directory)
    rules = policy.load_policy(home.policy) if home.policy.exists() else policy.Policy()
    bound = given(folder, rules, data, base, home.policy)
    if silo is None and (home.identity / identity.TLS_CHAIN).exists():
        silo = identity.load_tls(home.identity).who.name
    with Bar(
        TextColumn("steps"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    ) as bar:
        task = bar.add_task("starting", total=None)

        def progress(step: int, of: int, loss: float | None) -> None:
            bar.update(task, completed=step, total=of, description="" if loss is None else f"loss {loss:.4g}")

        tried = try_job(folder, bound, interpreter(rules), steps, progress, rules.run.processes, silo)
    output.show(asdict(tried), _tried(tried), as_json)


@models_app.command("fetch")
def fetch_models(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="[models.NAME] of policy.toml; default: all with `hub`."),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with a token of the hub; default: the login of `hf auth login`.")
    ] = None,
    directory: Dir = HERE,
    as_json: Json = False,
) -> None:
    """Bring base models from the Hugging Face hub into the agent's directory. The agent itself never does."""
    home = Home(directory)
    rules, proxy = policy.load_policy(home.policy), load_settings(home).proxy
    models = [asdict(one) for one in hub.fetch(rules, name, token_file, proxy)]
    lines = [
        f"{one['name']}: {one['hub']} at {one['revision'][:12]} is in {one['path']}: {one['files']} files, "
        f"{one['bytes'] / 2**20:.1f} MiB" + (", nothing done" if one["already"] else "")
        for one in models
    ]
    output.show({"models": models}, "\n".join(lines), as_json)


def _tried(tried: Tried) -> str:
    def numbers(values: dict[str, float] | None) -> str:
        return (
            "cannot be evaluated"
            if values is None
            else ", ".join(f"{k} {v:.4g}" for k, v in sorted(values.items()))
        )

    loss = "not reported" if tried.loss is None else f"{tried.loss:.4g}"
    return (
        f"{tried.steps} steps, loss {loss}\nbefore: {numbers(tried.before)}\nafter:  {numbers(tried.after)}\n"
        f"the update would have {tried.update_bytes} bytes, norm {tried.norm:.4g}\nisolation: {tried.isolation}"
    )


def _decide(reference: str, decision: Decision, directory: Path, yes: bool, as_json: bool) -> None:
    protect_agent()
    home = Home(directory)
    with connect(home) as connection:
        try:
            proposal = _find(connection, reference)
        except Unavailable as error:
            known = Decisions(home.decisions).known(reference)
            if decision == "approve" or known is None:
                raise
            _decide_alone(home, known, decision, error, yes, as_json)
            return
        if decision == "approve":
            _show_before_approving(connection, proposal, yes, as_json)
        elif not yes and not as_json and not typer.confirm(f"{decision} {proposal.job.id}?"):
            raise typer.Exit(exits.FAILED)
        note = _record_and_announce(connection, proposal, decision)
    output.show(
        {"job": proposal.job.id, "terms_sha256": proposal.digest, "decision": STATUS[decision], "note": note},
        f"{proposal.job.id}: {STATUS[decision]}" + (f"\n{note}" if note else ", signed and in the audit log"),
        as_json,
    )


def _decide_alone(
    home: Home, known: tuple[str, str], decision: Decision, error: Unavailable, yes: bool, as_json: bool
) -> None:
    """Without the server a job that was decided on before can still be stopped here, at once."""
    digest, job = known
    if not yes and not as_json and not typer.confirm(f"{decision} {job}?"):
        raise typer.Exit(exits.FAILED)
    decisions = Decisions(home.decisions)
    with decisions.deciding():
        decisions.record(digest, job, decision)
    note = f"the server could not be told ({error}); the running agent will tell it"
    output.show(
        {"job": job, "terms_sha256": digest, "decision": STATUS[decision], "note": note},
        f"{job}: {STATUS[decision]}\n{note}",
        as_json,
    )


def _show_before_approving(connection: Connection, proposal: Proposal, yes: bool, as_json: bool) -> None:
    """Nobody approves what cannot run here, or without having seen it. Raises Refused naming what is missing or wrong."""
    rules = policy.load_policy(connection.home.policy)
    approval.check_runnable(proposal, rules, interpreter(rules))
    archive.check(fetch_archive(connection.client, proposal.job.id, proposal.terms))
    if yes:
        return
    if as_json:
        raise Refused(Reason.POLICY, "approving with --json needs --yes: nobody can be asked")
    _print_terms(proposal, connection.who.silo, "")
    if not typer.confirm("Approve exactly this?"):
        raise typer.Exit(exits.FAILED)


def _record_and_announce(connection: Connection, proposal: Proposal, decision: Decision) -> str:
    """What the person should know besides that it is done, or ""."""
    decisions = Decisions(connection.home.decisions)
    journal = connection.home.job(proposal.job.id) / "receipts.jsonl"
    rules = policy.load_policy(connection.home.policy) if decision == "approve" else policy.Policy()
    with decisions.deciding():
        # What runs here changes with this file, whether or not the server can be told now.
        decisions.record(proposal.digest, proposal.job.id, decision)
        if approval.announced(proposal, decision, rules):
            return "the federation knows already"
        try:
            approval.announce(
                connection.client, connection.who, connection.log, proposal, decision, rules, journal
            )
        except Unavailable as error:
            return f"the server could not be told ({error}); the running agent will tell it"
    return ""


def _find(connection: Connection, reference: str) -> Proposal:
    for job in connection.client.jobs(connection.log.seen()):
        proposal = approval.examine(job, connection.log)
        if reference == job.id or (len(reference) >= 8 and proposal.digest.startswith(reference)):
            return proposal
    raise Refused(
        Reason.NOT_FOUND,
        f"no job {reference!r} is offered to {identity.load(connection.home.identity).silo}; "
        "`anabranch-silo jobs` lists those that are",
    )


def _job_document(proposal: Proposal, decision: Decision | None) -> dict[str, Any]:
    return {
        "job": proposal.job.id,
        "status": proposal.job.status,
        "head": proposal.job.head,
        "decision": STATUS[decision] if decision else "",
        "announced": proposal.job.decision,
        "terms_sha256": proposal.digest,
        "terms": proposal.terms.model_dump(mode="json"),
        "update_bytes": proposal.manifest.file_bytes if proposal.manifest else None,
    }


def _print_terms(proposal: Proposal, silo: str, decision: str) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for label, text in approval.describe(proposal, silo):
        table.add_row(label, Text(text))
    if decision:
        table.add_row("decision", Text(decision))
    Console().print(table)
    print()


if __name__ == "__main__":
    main()
