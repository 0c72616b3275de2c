"""The two ports: one for those who have a certificate, one for those who have a token."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import grpc
import structlog

from anabranch.errors import Unavailable
from anabranch.v1 import (
    admin_pb2_grpc,
    audit_pb2_grpc,
    enrolment_pb2_grpc,
    federation_pb2_grpc,
    revival_pb2_grpc,
    update_pb2_grpc,
)
from anabranch.wire import tls
from server.ca.authority import Authority
from server.config import Limits, ServerConfig
from server.sessions import Drain
from server.transport.admin import Admin
from server.transport.audit import Audit
from server.transport.calls import Calls
from server.transport.credentials import ServerCertificate, require_tls13_only
from server.transport.enrolment import Enrolment
from server.transport.entrance import PeerEntrance, TokenEntrance
from server.transport.failures import EVERY, Failures
from server.transport.federation import Federation
from server.transport.interceptor import CONTROL, Door
from server.transport.peer import Leaves
from server.transport.revival import Revival
from server.transport.rooms import Rooms
from server.transport.updates import Updates

logger = structlog.get_logger("transport")

RENEW_EVERY = 5.0  # seconds between looks at our own certificate; the clock may be set at any moment
THREADS = 32  # rooms at work at once; further calls wait their turn
# Of one address on the enrolment port, which strangers can reach. Silos behind one proxy share it.
STRANGERS = Limits(calls_per_second=5, calls_burst=60, calls_open=16, bytes_per_hour=1 << 26)

# Milliseconds. Connections end now and again, so that none outlives its certificate or a balancer's plan by much;
# running calls get the grace, and sessions reconnect.
OPTIONS: Mapping[str, int | str] = {
    **dict(tls.SERVER_OPTIONS),
    "grpc.max_connection_age_ms": 600_000,
    "grpc.max_connection_age_grace_ms": 300_000,
    "grpc.max_concurrent_streams": 64,  # of one connection
    "grpc.max_metadata_size": 16 << 10,  # bytes
    # A connection takes a file descriptor before anybody knows whose it is.
    "grpc.server_handshake_timeout_ms": 10_000,
    "grpc.max_connection_idle_ms": 60_000,  # without a call
}


class Ports:
    """Opened and drained on one event loop."""

    def __init__(
        self,
        rooms: Rooms,
        calls: Calls,
        failures: Failures,
        authority: Authority,
        config: ServerConfig,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._rooms = rooms
        self._failures = failures
        self._clock = clock
        self._listen = config.listen
        hosts = {_host(config.advertise.server), _host(config.advertise.enrolment)}
        self._certificate = ServerCertificate(rooms.membership, authority, sorted(hosts))
        members = PeerEntrance(config.federation, Leaves(authority), rooms.allow_list, calls, clock)
        strangers = TokenEntrance(Calls(STRANGERS, monotonic))
        self._doors = Door(members, failures), Door(strangers, failures)
        self._servers: list[Any] = []
        self._chores: list[asyncio.Task[None]] = []
        self.server_port = 0
        self.enrolment_port = 0
        self.accepting = False  # for readiness: True between `open` and `drain`

    async def open(self) -> None:
        """Listen on both ports. Raises Unavailable when a port is taken, Misuse when one would accept TLS 1.2."""
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, "room"))
        await asyncio.to_thread(self._certificate.renew_if_due, self._clock())
        members, strangers = self._members(), self._strangers()
        self.server_port = _bind(
            members, self._listen.server, self._certificate.credentials(client_certificate=True)
        )
        self.enrolment_port = _bind(
            strangers, self._listen.enrolment, self._certificate.credentials(client_certificate=False)
        )
        self._servers = [members, strangers]
        try:
            for server in self._servers:
                await server.start()
            for address, port in (
                (self._listen.server, self.server_port),
                (self._listen.enrolment, self.enrolment_port),
            ):
                await asyncio.to_thread(require_tls13_only, _dialled(address), port)
        except BaseException:
            await self._stop(None)
            raise
        self._chores = [
            asyncio.create_task(_repeatedly(EVERY, self._flush)),
            asyncio.create_task(_repeatedly(RENEW_EVERY, self._renew)),
        ]
        self.accepting = True
        logger.info("serving", server_port=self.server_port, enrolment_port=self.enrolment_port)

    async def drain(self, grace: float) -> None:
        """Send agents away, take no new calls, let running ones finish for `grace` seconds, then cut them."""
        self.accepting = False
        self._rooms.sessions.broadcast(Drain())
        await self._stop(grace)
        for chore in self._chores:
            chore.cancel()
            with suppress(asyncio.CancelledError):
                await chore
        await asyncio.to_thread(self._flush)

    def _members(self) -> Any:
        return _server(
            self._doors[0],
            OPTIONS,
            [
                (federation_pb2_grpc.add_FederationServicer_to_server, Federation(self._rooms)),
                (update_pb2_grpc.add_UpdatesServicer_to_server, Updates(self._rooms)),
                (audit_pb2_grpc.add_AuditServicer_to_server, Audit(self._rooms)),
                (admin_pb2_grpc.add_AdminServicer_to_server, Admin(self._rooms)),
                (revival_pb2_grpc.add_RevivalServicer_to_server, Revival(self._rooms)),
            ],
        )

    def _strangers(self) -> Any:
        enrolment = (enrolment_pb2_grpc.add_EnrolmentServicer_to_server, Enrolment(self._rooms))
        options = {**OPTIONS, "grpc.max_receive_message_length": CONTROL}
        return _server(self._doors[1], options, [enrolment])

    async def _stop(self, grace: float | None) -> None:
        await asyncio.gather(*(server.stop(grace) for server in self._servers))

    def _renew(self) -> None:
        try:
            self._certificate.renew_if_due(self._clock())
        except Exception:
            logger.exception("the server's certificate was not renewed; trying again")

    def _flush(self) -> None:
        try:
            self._failures.flush()
        except Exception:
            logger.exception("failed authentications were not logged; trying again")


async def _repeatedly(every: float, chore: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(every)
        await asyncio.to_thread(chore)


def _server(door: Any, options: Mapping[str, int | str], services: Sequence[tuple[Any, object]]) -> Any:
    server = grpc.aio.server(interceptors=[door], options=list(options.items()))
    for add, servicer in services:
        add(servicer, server)
    return server


def _bind(server: Any, address: str, credentials: Any) -> int:
    try:
        return int(server.add_secure_port(address, credentials))
    except RuntimeError as error:
        raise Unavailable(
            f"cannot listen on {address} ([listen] in server.toml): stop what listens there, or choose another port"
        ) from error


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


def _dialled(address: str) -> str:
    """Where a port bound to `address` can be reached from this machine."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(_host(address), _host(address))  # noqa: S104 - not bound here
