"""The server process: open the state, open the ports, wait for SIGTERM, drain.

Start and end are the only places that know all rooms.
"""

import asyncio
import ctypes
import logging
import resource
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import structlog
from prometheus_client import REGISTRY
from sqlalchemy import select

import anabranch
from anabranch.terms import seconds
from anabranch.tlog.entry import parse_entry
from anabranch.wire import canonical
from server import metrics, setup
from server.allow_list import AllowList
from server.attendance import Attendance
from server.audit.log import newest_checkpoint
from server.config import ServerConfig
from server.gauges import Gauges
from server.health import Health
from server.membership import Membership
from server.sessions import JobChanged, Sessions
from server.startup import Core
from server.state import records
from server.state.database import Reader
from server.state.tables import entries, jobs, updates
from server.state.writer import Logged
from server.transport.calls import Calls
from server.transport.failures import Failures
from server.transport.rooms import Rooms
from server.transport.serve import Ports
from server.vitals import Vitals

logger = structlog.get_logger("server")
CLOCK_TOLERANCE = 60.0  # seconds; certificates are backdated by as much
WATCH_EVERY = 1.0  # seconds between looks at the writer, at who is here, and for administrators' requests


def take_many_files() -> None:
    """A connection takes a file descriptor before anybody knows whose it is; the state store must never be short of one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # a system with a limit of its own: what there is must do
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def share_heaps() -> None:
    """glibc lets every thread keep what it has freed; dozens that hand megabytes on keep far more than is used."""
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(-8, 2)  # M_ARENA_MAX


def serve(directory: Path, config: ServerConfig, log_format: str) -> None:
    """Serve until SIGTERM or SIGINT. Raises Conflict, Corrupt, Unavailable or Misuse when it must not serve."""
    setup.require_state(directory)
    configure_logs(log_format)
    take_many_files()
    share_heaps()
    world = setup.real_world()
    sessions = Sessions(world.clock)

    def watch(entry: Logged) -> None:
        metrics.observe(entry.type, entry.job, entry.detail)
        if entry.type.startswith("job.") and entry.job is not None:
            sessions.broadcast(JobChanged(entry.job, entry.type.removeprefix("job.")))

    core, authority = setup.open_federation(directory, config, sessions, world, watch)
    calls = Calls(config.limits, time.monotonic)
    allow_list = AllowList()
    allow_list.load(core.reader, world.clock())
    membership = setup.open_membership(directory, config, core, authority, allow_list, sessions, calls, world)
    vitals = Vitals(directory, sessions)
    rooms = Rooms(
        core.intake,
        core.scheduling,
        core.jobs,
        core.reviving,
        membership,
        core.log,
        sessions,
        allow_list,
        vitals,
    )
    judge_clock(core.reader, world.clock())
    core.start()
    restore_metrics(core)
    REGISTRY.register(Gauges(lambda: core.jobs.going_on(()), vitals.look, config.metrics.name_silos))
    ports = Ports(
        rooms, calls, Failures(core.writer, core.observer), authority, config, world.clock, time.monotonic
    )
    try:
        asyncio.run(_run(directory, config, core, membership, vitals, ports))
    finally:
        core.stop()
    logger.info("stopped")


async def _run(
    directory: Path, config: ServerConfig, core: Core, membership: Membership, vitals: Vitals, ports: Ports
) -> None:
    stopping = asyncio.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sign, stopping.set)

    def ailing() -> str:
        return str(core.writer.failure or "")

    def unready() -> str:
        return ailing() or ("" if ports.accepting else "not accepting calls: starting, or draining")

    health = Health(config.listen.health, ailing, unready)
    health.start()
    await ports.open()
    attendance = Attendance(
        core.writer, core.reader, membership.sessions, core.observer, membership.clock, membership.clock()
    )
    chores = [
        asyncio.create_task(_repeatedly(partial(setup.answer_requests, directory, membership))),
        asyncio.create_task(_repeatedly(attendance.look)),
        asyncio.create_task(_repeatedly(core.retention.look)),
        asyncio.create_task(_repeatedly(core.reviving.give_up)),
        asyncio.create_task(_repeatedly(lambda: vitals.note(time.monotonic()))),
    ]
    try:
        while not stopping.is_set() and core.writer.failure is None:
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), WATCH_EVERY)
        logger.info("draining", failure=ailing())
    finally:
        for chore in chores:
            chore.cancel()
        await ports.drain(seconds(config.drain))
        health.stop()
    if core.writer.failure is not None:
        raise core.writer.failure


async def _repeatedly(chore: Callable[[], None]) -> None:
    """A small synchronous duty, in a thread, every second; a failure is logged and tried again."""
    while True:
        try:
            await asyncio.to_thread(chore)
        except Exception:
            logger.exception("a chore failed; trying again", chore=str(chore))
        await asyncio.sleep(WATCH_EVERY)


def judge_clock(reader: Reader, now: float) -> None:
    """The log is dated by this machine, so an entry from the future says that its clock has gone back since. Served all the
    same: nothing rests on it but certificates, which TLS judges by the same clock and may turn away.
    """
    with reader.connect() as connection:
        newest = connection.execute(select(entries.c.data).order_by(entries.c.index.desc()).limit(1)).scalar()
    behind = canonical.from_utc(parse_entry(bytes(newest)).time) - now if newest else 0.0
    if behind > CLOCK_TOLERANCE:
        logger.error(
            "this machine's clock is behind its own log; silos' certificates may be not valid yet by it: set the clock",
            seconds=round(behind),
        )


def restore_metrics(core: Core) -> None:
    """Gauges that a restart would otherwise forget."""
    metrics.RELEASE.info({"release": anabranch.__version__})
    with core.reader.connect() as connection:
        size, _ = newest_checkpoint(connection)
        known = [
            (
                row.id,
                row.head,
                records.count(connection, updates, updates.c.job == row.id, updates.c.status == "received"),
            )
            for row in connection.execute(select(jobs.c.id, jobs.c.head).where(jobs.c.status == "running"))
        ]
    metrics.restore(size, known)


def configure_logs(log_format: str) -> None:
    """One line per event on stderr: JSON for machines, or text for a person."""
    render = structlog.processors.JSONRenderer() if log_format == "json" else structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
