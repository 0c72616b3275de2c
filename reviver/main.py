"""`anabranch-reviver`: run a reviver of a federation. It dials out, and needs nothing but its certificate."""

import importlib.util
import re
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import structlog
import typer

from anabranch import durable, exits
from anabranch.errors import Reason, Refused, Unavailable, wording
from anabranch.terms import NAME
from anabranch.tlog.note import NoteVerifier
from anabranch.wire.bundle import parse_federation
from anabranch.wire.identity import parse_chain
from reviver.client import Client
from reviver.device import Device, choose
from reviver.worker import Worker
from silo_agent import identity, output
from silo_agent.agent import alone, no_evidence
from silo_agent.config import Home
from silo_agent.identity import TlsIdentity
from silo_agent.receipts import LogView
from silo_agent.training.isolation import Isolation, available, protect_agent
from silo_agent.training.launcher import Launcher

# What `anabranch-server reviver` wrote, and what it is called in a home until it is installed.
BUNDLE = {
    "federation.json": identity.FEDERATION,
    "ca.pem": identity.CA,
    "key.pem": identity.NEXT_KEY,
    "cert.pem": identity.NEXT_CHAIN,
}

app = typer.Typer(
    help="A reviver: distils what silos' newest models agree on into the shared one.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
logger = structlog.get_logger("reviver")


def main() -> None:
    exits.run("anabranch-reviver", app)


@app.callback()
def begin() -> None:
    output.log_to_stderr("human")


@app.command()
def run(
    bundle: Annotated[
        Path,
        typer.Argument(metavar="DIR", resolve_path=True, help="What `anabranch-server reviver` wrote."),
    ],
    home: Annotated[
        Path,
        typer.Option(resolve_path=True, help="The reviver's own directory: identity, code, models at work."),
    ] = Path("reviver"),
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of a job's process.")] = 1,
    device: Annotated[
        str,
        typer.Option(
            metavar="auto|cpu|cuda[:N]",
            help="What jobs compute on; auto: a GPU that works, else the CPU, also for a job that fails on the GPU.",
        ),
    ] = "auto",
    base: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH", help="Folder of a base model that jobs name as [job] base. Repeatable."
        ),
    ] = None,
    unconfined: Annotated[
        bool, typer.Option("--unconfined", help="Run jobs' code also where it cannot be fenced off.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Log in JSON, and say in JSON why it could not go on.")
    ] = False,
) -> None:
    """Run a reviver until it is told to stop (SIGTERM, Ctrl-C). It survives the server's restarts, and its own."""
    protect_agent()
    output.log_to_stderr("json" if as_json else "human")
    place, bases = Home(home), _bases(base or [])
    _require_torch()
    move_in(bundle, place)
    who = _identified(place)
    with alone(place):
        no_evidence(place)
        isolated = _isolation(place, unconfined, bases)
        devices = choose(device, place.path, isolated)
        stopping = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopping.set())
        logger.info("starting", identity=who.who.uri, server=who.federation.server, home=str(home))
        logger.info("jobs compute on", device=str(devices[0]), threads=threads)
        _serve(place, who, threads, isolated, devices, stopping, bases)


def _serve(
    home: Home,
    who: TlsIdentity,
    threads: int,
    isolated: Isolation,
    devices: Sequence[Device],
    stopping: threading.Event,
    bases: Mapping[str, Path],
) -> None:
    client = Client(who.federation.server, who.ca, who.key, who.chain, None)
    verifier = NoteVerifier.from_vkey(who.federation.log_vkey)
    origin = who.federation.log_origin
    log = LogView(home.log_view, home.evidence, origin, verifier, client.consistency)
    try:
        gpus = () if devices[0].name == "cpu" else None
        with Launcher(home.path, threads=threads, gpus=gpus, module="reviver.runner") as launcher:
            Worker(home, client, log, launcher, isolated, devices, stopping, bases).run()
    finally:
        client.close()


def move_in(bundle: Path, home: Home) -> None:
    """Take over the identity in `bundle`, unless this home's is the same or was issued later: renewed, that is.

    Raises Refused naming what is wrong with the bundle.
    """
    try:
        files = {name: (bundle / name).read_bytes() for name in BUNDLE}
        issued = parse_chain(files["cert.pem"])[0].not_valid_before_utc
        federation = parse_federation(files["federation.json"])
    except OSError as error:
        raise Refused(
            Reason.NOT_FOUND,
            f"{bundle} is not what `anabranch-server reviver SERVER NAME` writes: {error.filename}: {wording(error)}",
        ) from error
    except Refused as error:
        raise Refused(error.code, f"{bundle}: {error}; `anabranch-server reviver` makes it anew") from error
    if (home.identity / identity.TLS_CHAIN).exists():
        mine = identity.load_tls(home.identity)
        if mine.federation.federation != federation.federation:
            raise Refused(
                Reason.POLICY, f"{home.path} belongs to {mine.who.uri}: name another directory with --home"
            )
        if mine.leaf.not_valid_before_utc >= issued:
            return
    durable.make_dir(home.path, 0o755)
    durable.make_dir(home.identity, 0o700)
    # Killed between two of these: the old pair still stands, if there was one, and the next start writes all again.
    for name, here in BUNDLE.items():
        durable.write(home.identity / here, files[name], 0o600)
    identity.install_next(home.identity)


def _identified(home: Home) -> TlsIdentity:
    """Raises Refused(BAD_CERTIFICATE) for one that opens nothing any more, or is another role's."""
    who = identity.load_tls(home.identity)
    if who.who.role != "reviver":
        raise Refused(
            Reason.BAD_CERTIFICATE,
            f"{who.who.uri} is no reviver: `anabranch-server reviver SERVER NAME` makes its certificate",
        )
    end = who.leaf.not_valid_after_utc
    if time.time() > end.timestamp():
        raise Refused(
            Reason.BAD_CERTIFICATE,
            f"the certificate of {who.who.uri} expired at {end:%F %T} UTC by this machine's clock: check the clock, or "
            f"`anabranch-server reviver SERVER {who.who.name}` makes it anew",
        )
    return who


def _bases(said: Sequence[str]) -> dict[str, Path]:
    """`["minilm=/srv/models/minilm"]`. Raises Refused(MALFORMED, NOT_FOUND)."""
    found = {}
    for text in said:
        name, equals, path = text.partition("=")
        if not equals or not re.fullmatch(NAME, name):
            raise Refused(
                Reason.MALFORMED, f"--base {text}: write NAME=PATH, for example minilm=/srv/models/minilm"
            )
        if not Path(path).exists():
            raise Refused(Reason.NOT_FOUND, f"--base {text}: {path} does not exist")
        found[name] = Path(path).resolve()
    return found


def _isolation(home: Home, unconfined: bool, bases: Mapping[str, Path]) -> Isolation:
    durable.make_dir(home.path / "jobs")
    isolated = available(home.path, [home.path / "jobs", *bases.values()])
    if not isolated.holds and not unconfined:
        raise Refused(
            Reason.POLICY,
            f"jobs' code cannot be fenced off here: {isolated.detail}. Run it as root, or on a kernel with Landlock, "
            "or say --unconfined if nothing on this machine has to be kept from it",
        )
    say = logger.info if isolated.holds else logger.warning
    say("isolation of job code", kind=isolated.kind, detail=isolated.detail)
    return isolated


def _require_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        raise Unavailable("torch is not installed here: pip install 'anabranch[reviver]', then start again")


if __name__ == "__main__":
    main()
