"""Setting a federation up on one machine: the same commands people type on several.

anabranch-server init · serve · reviver      anabranch silo invite      anabranch-silo enrol · run · approve
anabranch-reviver run
"""

import json
import socket
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from anabranch.errors import Unavailable
from anabranch.v1 import admin_pb2
from anabranch.wire.tls import LONGEST_BACKOFF
from console.client import UNARY_SECONDS, Admin, connect, logged
from console.demo.processes import Children, program

READY_SECONDS = 60.0
TOKEN_SECONDS = 3600
REVIVER = "reviver"
POLL = 0.1  # seconds


@dataclass(frozen=True)
class Place:
    """The demo's directory."""

    root: Path

    @property
    def server(self) -> Path:
        return self.root / "server"

    @property
    def admin(self) -> Path:
        return self.server / "admin" / "admin"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def export(self) -> Path:
        return self.root / "export"

    @property
    def together(self) -> Path:
        return self.root / "data" / "together"

    def silo(self, name: str) -> Path:
        return self.root / "silos" / name

    def data(self, name: str) -> Path:
        return self.root / "data" / name


@dataclass(frozen=True)
class Ports:
    server: int
    enrolment: int
    health: int


def free_ports() -> Ports:
    """Three ports nobody listens on; held together while they are chosen, so that they differ."""
    with socket.socket() as a, socket.socket() as b, socket.socket() as c:
        for listener in (a, b, c):
            listener.bind(("127.0.0.1", 0))
        return Ports(*(int(listener.getsockname()[1]) for listener in (a, b, c)))


def make_server(children: Children, place: Place, ports: Ports) -> None:
    """A federation: CA, log, first admin."""
    options = {"--port": ports.server, "--enrolment-port": ports.enrolment, "--health-port": ports.health}
    flags = [part for name, port in options.items() for part in (name, str(port))]
    children.run(
        {
            "server-init": [
                program("anabranch-server"),
                "init",
                str(place.server),
                "--host",
                "localhost",
                *flags,
            ]
        }
    )


def serve(children: Children, place: Place, ports: Ports) -> float:
    """Start the server and wait until it is ready; returns the unix time at which it was."""
    children.start("server", [program("anabranch-server"), "serve", str(place.server)])
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        children.check()
        if _ready(ports.health):
            return time.time()
        time.sleep(POLL)
    raise Unavailable(f"the server is not ready after {READY_SECONDS:.0f} s; see {place.logs / 'server.log'}")


def enrol(children: Children, place: Place, silos: list[str]) -> None:
    """Invite every silo and let each enrol itself with its one-time token."""
    with connect(place.admin) as admin:
        bundles = {silo: invite(admin, place, silo) for silo in silos}
    children.run(
        {
            f"{silo}-enrol": [program("anabranch-silo"), "enrol", str(bundle), "--dir", str(place.silo(silo))]
            for silo, bundle in bundles.items()
        }
    )


def write_policy(place: Place, silo: str, seconds_per_batch: float, *, revival: bool = False) -> None:
    """What this silo allows: the demo's data under the name the job asks for, and nothing without approval."""
    data = json.dumps(str(place.data(silo).resolve()))  # JSON strings are TOML strings
    (place.silo(silo) / "policy.toml").write_text(
        f"[data.digits]\npath = {data}\nparams = {{ seconds_per_batch = {seconds_per_batch} }}\n\n"
        '[run]\nisolation = "allowed-without"  # the demo runs anywhere; `anabranch-silo check` tells what holds here\n'
        f'max_update_bytes = "16MiB"\nallow_revival = {str(revival).lower()}\n'
    )


def start_agents(children: Children, place: Place, silos: list[str]) -> None:
    for silo in silos:
        children.start(silo, [program("anabranch-silo"), "run", "--dir", str(place.silo(silo))])


def start_reviver(children: Children, place: Place) -> None:
    """Under the name `reviver`. The running server issues its certificate."""
    bundle = place.server / "reviver" / REVIVER
    children.run({"reviver-bundle": [program("anabranch-server"), "reviver", str(place.server), REVIVER]})
    command = [program("anabranch-reviver"), "run", str(bundle), "--home", str(place.root / "reviver")]
    children.start("reviver", [*command, "--unconfined"])  # the demo runs anywhere, as its silos do


def approve(children: Children, place: Place, silos: list[str], job: str) -> None:
    """Every silo signs its approval of the job's terms."""
    argv = {
        s: [program("anabranch-silo"), "approve", job, "--yes", "--dir", str(place.silo(s))] for s in silos
    }
    children.run({f"{silo}-approve": command for silo, command in argv.items()})


def wait_connected(children: Children, admin: Admin, silos: list[str]) -> None:
    """Until the server hears every agent."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        children.check()
        found = admin.stub.ListSilos(admin_pb2.ListSilosRequest(), timeout=UNARY_SECONDS).silos
        if {silo.name for silo in found if silo.connected} >= set(silos):
            return
        time.sleep(LONGEST_BACKOFF / 1000 / 4)
    raise Unavailable(
        f"not every silo has connected after {READY_SECONDS:.0f} s; see the logs in {children.logs}"
    )


def invite(admin: Admin, place: Place, silo: str) -> Path:
    """The join bundle of one silo, in a file only we can read."""
    reply = admin.stub.InviteSilo(
        admin_pb2.InviteSiloRequest(silo=silo, ttl_seconds=TOKEN_SECONDS), timeout=UNARY_SECONDS
    )
    logged(admin, reply.receipt)
    bundle = place.root / "bundles" / f"{silo}.json"
    bundle.parent.mkdir(exist_ok=True)
    bundle.touch(0o600)
    bundle.write_bytes(reply.bundle)
    return bundle


def _ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False
