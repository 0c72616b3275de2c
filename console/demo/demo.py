"""`anabranch demo`: set up, train, verify, measure, report."""

import json
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import grpc
from rich.console import Console

from anabranch import exits
from anabranch.errors import Reason, Refused, Unavailable
from anabranch.terms import JobFile
from anabranch.v1 import admin_pb2
from anabranch.wire.status import from_rpc_error
from console import submit
from console.client import UNARY_SECONDS, Admin, connect
from console.demo import data, measure, page, pictures, report, worth
from console.demo import federation as site
from console.demo.federation import Place, Ports
from console.demo.history import read_entries, tell
from console.demo.narration import step, view
from console.demo.processes import Children, forget_proxies
from console.demo.settings import Choice, Settings, job_file, slowness
from console.demo.worth import Entrant

POLL = 0.4  # seconds between two looks at the job
MARK = "anabranch-demo"  # file that says a directory is the demo's to empty


@dataclass(frozen=True)
class Ran:
    """One job that has completed."""

    entrant: Choice
    job: str
    file: JobFile
    killed: report.Killed | None


def run(settings: Settings, as_json: bool) -> int:
    """Run the demo and return the exit code: 0 only when the log verified and every version was recomputed."""
    console = Console(stderr=as_json)
    forget_proxies()
    place = Place(settings.directory.resolve())
    _empty(place.root)
    parts = data.deal(settings.silos, settings.seed, apart=settings.revives)
    _write_data(place, parts)
    with _ends_like_ctrl_c(), Children(place.logs) as children, _job_folder() as folder:
        ran = _federate(settings, place, [part.silo for part in parts], children, folder, console)
        if not settings.keep:
            children.stop()
        document = _conclude(settings, place, parts, ran, folder, console)
        _announce(document, place, console, as_json)
        if settings.keep:
            _keep_running(children, place, console)
    verdict = document["verdict"]
    return exits.OK if verdict["log_verified"] and verdict["replayed_bit_exactly"] else exits.FAILED


def _federate(
    settings: Settings, place: Place, silos: list[str], children: Children, folder: Path, console: Console
) -> list[Ran]:
    ports = site.free_ports()
    with step(console, "a certificate authority, an empty log, a server"):
        site.make_server(children, place, ports)
        site.serve(children, place, ports)
    with step(console, f"{len(silos)} silos enrol with one-time tokens"):
        site.enrol(children, place, silos)
        for silo, slow in zip(silos, slowness(len(silos)), strict=True):
            site.write_policy(place, silo, settings.seconds_per_batch * slow, revival=settings.revives)
        site.start_agents(children, place, silos)
    if settings.revives:
        with step(console, "a reviver gets its certificate and dials in"):
            site.start_reviver(children, place)
    with connect(place.admin) as admin:
        site.wait_connected(children, admin, silos)
        return [
            _train(settings, entrant, place, ports, silos, children, admin, folder, console)
            for entrant in settings.entrants
        ]


def _train(
    settings: Settings,
    entrant: Choice,
    place: Place,
    ports: Ports,
    silos: list[str],
    children: Children,
    admin: Admin,
    folder: Path,
    console: Console,
) -> Ran:
    file = job_file(folder, settings, entrant)
    with step(console, f"{file.job.name} is packed, submitted and approved by every silo"):
        with submit.prepared(folder, file) as prepared:
            job = submit.submit(admin, prepared).job
        site.approve(children, place, silos, job)
    kill_at = settings.kill_server_at if entrant == settings.strategy else None
    killed = _follow(settings.versions, kill_at, place, ports, children, admin, job, console)
    return Ran(entrant, job, file, killed)


def _follow(
    versions: int,
    kill_at: int | None,
    place: Place,
    ports: Ports,
    children: Children,
    admin: Admin,
    job: str,
    console: Console,
) -> report.Killed | None:
    """Show the job until it has completed; kill the server on the way if asked."""
    killed: report.Killed | None = None
    with view(console, versions) as show:
        while True:
            children.check()
            status = _status(admin, job)
            if status is not None:
                show(status)
                if status.status == "completed":
                    return killed
                if status.status == "aborted":
                    raise Refused(
                        Reason.JOB_ENDED, f"the job was aborted: {status.reason or 'no reason given'}"
                    )
                if killed is None and kill_at and status.head >= kill_at:
                    killed = _kill(children, place, ports, status.head)
            time.sleep(POLL)


def _kill(children: Children, place: Place, ports: Ports, version: int) -> report.Killed:
    gone = children.kill("server")
    restarted = time.time()
    return report.Killed(version, gone, restarted, site.serve(children, place, ports))


def _status(admin: Admin, job: str) -> admin_pb2.JobStatus | None:
    """None while the server does not answer: the children's check tells a dead one from a slow one."""
    try:
        reply = admin.stub.ListJobStatus(
            admin_pb2.ListJobStatusRequest(), timeout=UNARY_SECONDS, wait_for_ready=True
        )
    except grpc.RpcError as error:
        meant = from_rpc_error(error)
        if isinstance(meant, Unavailable):
            return None
        raise meant from error
    return next((status for status in reply.jobs if status.job == job), None)


def _conclude(
    settings: Settings,
    place: Place,
    parts: list[data.SiloRecords],
    ran: list[Ran],
    folder: Path,
    console: Console,
) -> dict[str, Any]:
    """Export the log, let the auditor judge it, measure the exported models, write both reports."""
    with step(console, "the log is exported and verified offline, every version recomputed"):
        measure.export(place)
        verify, replay = (measure.audit(place, verb) for verb in ("verify", "replay"))
    log = list(read_entries(place.export))
    *beside, last = [(one, tell(log, one.job)) for one in ran]
    with step(console, "the models are compared with what each silo gets alone"):
        silos = [part.silo for part in parts]
        measured = measure.measure(place, measure.plan(place, folder, last[0].file, silos, last[1]))
        models = [
            measure.measure(place, measure.plan(place, folder, one.file, [], told)) for one, told in beside
        ]
    document = report.build(last[1], measured, _setup(settings, last[0], parts), verify, replay)
    drawn = {
        "river": pictures.river(last[1], document),
        "bars": pictures.bars(document),
        "staleness": pictures.staleness(last[1], document),
    }
    if settings.revives:
        told = [
            Entrant(one.entrant, history, found)
            for (one, history), found in zip((*beside, last), (*models, measured), strict=True)
        ]
        document["revival"] = worth.build(told)
        drawn["race"] = pictures.race(document["revival"])
    (place.root / "report.json").write_text(
        json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8"
    )
    (place.root / "report.html").write_text(page.render(document, drawn), "utf-8")
    return document


def _setup(settings: Settings, ran: Ran, parts: list[data.SiloRecords]) -> report.Setup:
    silos = tuple(
        report.SiloSetup(
            part.silo,
            len(part.train),
            len(part.held_out),
            tuple(part.counts()),
            settings.seconds_per_batch * slow,
            slow,
        )
        for part, slow in zip(parts, slowness(len(parts)), strict=True)
    )
    return report.Setup(
        ran.file.job.seed,
        ran.entrant,
        ran.file.stop.versions,
        None if settings.revives else data.CONCENTRATION,
        ran.file.training.local_steps,
        silos,
        ran.killed,
    )


def _write_data(place: Place, parts: list[data.SiloRecords]) -> None:
    for part in parts:
        data.write(part, place.data(part.silo))
    place.together.mkdir(parents=True)
    data.save(place.together / "validation.npz", data.together(parts))


def _empty(directory: Path) -> None:
    """Empty the demo's directory, and only one that is the demo's."""
    if directory.exists() and any(directory.iterdir()) and not (directory / MARK).is_file():
        raise Refused(Reason.POLICY, f"{directory} is not empty and not the demo's; name another with --dir")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    (directory / MARK).write_text(
        "Written by `anabranch demo`, which empties this directory when it starts.\n"
    )


def _announce(document: dict[str, Any], place: Place, console: Console, as_json: bool) -> None:
    verdict, model = document["verdict"], document["model"]
    words = [
        f"together {model['accuracy_all']:.1%}, best silo alone {model['best_local_accuracy_all']:.1%}",
        "log verified" if verdict["log_verified"] else "[red]log did NOT verify[/]",
        "every version recomputed" if verdict["replayed_bit_exactly"] else "[red]replay FAILED[/]",
    ]
    if (killed := document["server_killed"]) is not None and killed["seconds_until_next_update"] is not None:
        words.append(f"server killed, next update after {killed['seconds_until_next_update']:.1f} s")
    console.print("\n[bold]" + " · ".join(words) + "[/]")
    for line in worth.lines(document["revival"]) if document["revival"] else ():
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"{measure.short(place.root / 'report.html')}\n{measure.short(place.root / 'report.json')}")
    if as_json:
        print(json.dumps(document, indent=2, ensure_ascii=False))


def _keep_running(children: Children, place: Place, console: Console) -> None:
    console.print(
        f"\nthe federation keeps running; try\n  export ANABRANCH_ADMIN={measure.short(place.admin)}"
    )
    console.print("  anabranch job list\n  anabranch silo list\nCtrl-C stops it")
    try:
        while True:
            for line in children.ended():  # a revoked agent, for example
                console.print(line, markup=False)
            time.sleep(1)
    except KeyboardInterrupt:
        console.print("stopped")


@contextmanager
def _job_folder() -> Iterator[Path]:
    with as_file(files("console.demo").joinpath("job")) as folder:
        yield folder


@contextmanager
def _ends_like_ctrl_c() -> Iterator[None]:
    """SIGTERM stops the demo as Ctrl-C does: children first."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        print("anabranch: stopped; the demo's processes have ended", file=sys.stderr)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
