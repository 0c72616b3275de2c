"""Making a federation, and certificates for its administrators and revivers.

Whoever can write to the server's directory holds its keys, so that directory is also how such a certificate is asked for:
a request is left in `admin/NAME/` or `reviver/NAME/`, and whoever owns the state (the running server, or this command when
none runs) answers it beside the request. The private key is born where the command runs.
"""

import os
import re
import time
from pathlib import Path
from typing import get_args

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from anabranch import durable
from anabranch.errors import Conflict, Corrupt, Reason, Refused, Unavailable, wording
from anabranch.rules.profile import NUMERIC_PROFILE
from anabranch.terms import NAME, seconds
from anabranch.tlog.entry import Target
from anabranch.tlog.note import NoteSigner
from anabranch.wire.bundle import FederationInfo
from anabranch.wire.identity import csr, load_private, new_signing_key, new_tls_key, private_pem
from server.allow_list import AllowList
from server.ca.authority import Authority, create_authority, open_authority
from server.config import FILE, ServerConfig, read_config, write_config
from server.core.allocation import Allocation
from server.enrolment import Nonces
from server.membership import IssuedHere, Lifetimes, Membership, Streams
from server.sessions import Sessions
from server.startup import Core, World, open_core
from server.state.writer import Transaction, Watcher

LOG_KEY = "log.key"
REQUEST, CERTIFICATE = "request.csr", "cert.pem"
ANSWER_SECONDS = 15.0  # a running server looks for requests every second


class NoStreams:
    """No server runs here, so there are no calls to end."""

    def end(self, silo: str, reason: str) -> None:
        return


def create_federation(directory: Path, config: ServerConfig, world: World) -> FederationInfo:
    """Keys, settings and an audit log with its first entry. Raises Refused when there is something already.

    Killed half-way, nothing serves yet: remove the directory and begin again.
    """
    if directory.exists() and any(directory.iterdir()):
        raise Refused(Reason.POLICY, f"{directory} is not empty; a federation is made in a new directory")
    durable.make_dir(directory / "keys", 0o700)
    durable.make_dir(directory / "state", 0o700)
    create_authority(directory / "keys", config.federation, world.clock())
    durable.write(directory / "keys" / LOG_KEY, private_pem(new_signing_key()), 0o600)
    durable.write(directory / FILE, write_config(config).encode())
    core, authority = open_federation(directory, config, Sessions(world.clock), world)
    core.writer.start()
    signer = load_signer(directory, config)

    def genesis(tx: Transaction) -> None:
        detail = {
            "origin": config.log_origin,
            "vkey": signer.vkey,
            "ca_pins": [authority.pin],
            "numeric_profile": NUMERIC_PROFILE,
        }
        tx.log(
            "log.genesis", actor=core.observer, target=Target(kind="log", id=config.log_origin), detail=detail
        )

    core.writer.run(genesis)
    core.close()
    return directions(config, authority, signer)


def require_state(directory: Path) -> None:
    """Without its database a federation that was made would begin another, empty log. Raises Corrupt."""
    database = directory / "state" / "state.db"
    if not database.is_file():
        raise Corrupt(
            f"{database} is missing: the log and all jobs were in it; restore it from a backup, or make a new federation"
        )


def load_signer(directory: Path, config: ServerConfig) -> NoteSigner:
    path = directory / "keys" / LOG_KEY
    try:
        key = load_private(path.read_bytes())
    except (OSError, Refused) as error:
        raise Corrupt(f"{path} cannot be read: {wording(error)}; restore it from a backup") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise Corrupt(f"{path} is not an Ed25519 key; restore it from a backup")
    return NoteSigner(config.log_origin, key)


def open_federation(
    directory: Path,
    config: ServerConfig,
    sessions: Sessions,
    world: World,
    watch: Watcher = lambda entry: None,
) -> tuple[Core, Authority]:
    """The core and the authority of `directory`, not started."""
    authority = open_authority(directory / "keys", config.federation, world.clock())
    signer = load_signer(directory, config)
    allocation = Allocation(config.allocation, config.shares)
    core = open_core(
        directory, config.federation, config.log_origin, signer, sessions, world, watch, allocation
    )
    return core, authority


def directions(config: ServerConfig, authority: Authority, signer: NoteSigner) -> FederationInfo:
    """What every join bundle tells, and what agents and administrators pin."""
    return FederationInfo(
        server=config.advertise.server,
        enrolment=config.advertise.enrolment,
        ca_pem=authority.ca_pem.decode(),
        ca_pins=(authority.pin,),
        federation=config.federation,
        log_origin=config.log_origin,
        log_vkey=signer.vkey,
    )


def open_membership(
    directory: Path,
    config: ServerConfig,
    core: Core,
    authority: Authority,
    allow_list: AllowList,
    sessions: Sessions,
    streams: Streams,
    world: World,
) -> Membership:
    given = config.certificates
    return Membership(
        writer=core.writer,
        reader=core.reader,
        authority=authority,
        allow_list=allow_list,
        sessions=sessions,
        streams=streams,
        directions=directions(config, authority, load_signer(directory, config)),
        observer=core.observer,
        nonces=Nonces(world.entropy(32)),
        lifetimes=Lifetimes(
            seconds(given.silo), seconds(given.server), seconds(given.admin), seconds(given.reviver)
        ),
        clock=world.clock,
        entropy=world.entropy,
        wake=core.aggregation.wake,
    )


def federation_info(directory: Path, config: ServerConfig) -> FederationInfo:
    """`directions` from the files of `directory`."""
    authority = open_authority(directory / "keys", config.federation, time.time())
    return directions(config, authority, load_signer(directory, config))


def issue(directory: Path, role: IssuedHere, name: str) -> Path:
    """A certificate in `ROLE/NAME/`; returns that directory. Raises Refused, Unavailable."""
    check_name(role, name)
    config, world = read_config(directory), real_world()
    require_state(directory)
    place = _request(directory / role / name, federation_info(directory, config))
    sessions = Sessions(world.clock)
    try:
        core, authority = open_federation(directory, config, sessions, world)
    except Conflict:
        _await_answer(place)  # a server is running and owns the state
        return place
    core.writer.start()
    allow_list = AllowList()
    answer_requests(
        directory,
        open_membership(directory, config, core, authority, allow_list, sessions, NoStreams(), world),
    )
    core.close()
    return place


def check_name(role: IssuedHere, name: str) -> None:
    if not re.fullmatch(NAME, name):
        raise Refused(
            Reason.MALFORMED, f"{role} {name[:80]!r}: give a name of lowercase letters, digits and dashes"
        )


def _request(place: Path, info: FederationInfo) -> Path:
    """Leave a request in `place` with a fresh key beside it; returns that directory."""
    durable.make_dir(place, 0o700)
    key = new_tls_key()
    durable.remove(place / CERTIFICATE)
    durable.write(place / "key.pem", private_pem(key), 0o600)
    durable.write(place / "ca.pem", info.ca_pem.encode())
    durable.write(place / "federation.json", info.encode())
    durable.write(place / REQUEST, csr(key))
    return place


def answer_requests(directory: Path, membership: Membership) -> None:
    """Issue what was asked for. Dies here: the request is still there, and is answered again."""
    for role in get_args(IssuedHere):
        for request in sorted((directory / role).glob(f"*/{REQUEST}")):
            chain, _ = membership.issue_here(role, request.parent.name, request.read_bytes())
            durable.write(request.parent / CERTIFICATE, chain)
            durable.remove(request)


def _await_answer(place: Path) -> None:
    """Wait for the running server. Raises Unavailable."""
    deadline = time.monotonic() + ANSWER_SECONDS
    while not (place / CERTIFICATE).exists():
        if time.monotonic() > deadline:
            raise Unavailable(f"the running server did not answer {place / REQUEST}; see its log")
        time.sleep(0.1)


def real_world() -> World:
    return World(time.time, os.urandom)
