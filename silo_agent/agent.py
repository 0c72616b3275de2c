"""The running agent: a session, a renewal, and a supervisor of jobs, each in its own thread."""

import fcntl
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from anabranch import durable
from anabranch.errors import AnabranchError, Conflict, Reason, Refused, Unavailable
from anabranch.tlog.note import NoteVerifier
from anabranch.wire.bundle import check_pins
from silo_agent import identity, policy, probe, renew
from silo_agent.client import Client
from silo_agent.config import Home, Settings, load_settings
from silo_agent.cycle import Site
from silo_agent.identity import SiloIdentity
from silo_agent.outbox import Outbox
from silo_agent.policy import Policy
from silo_agent.receipts import LogView
from silo_agent.session import Listener, Progress, Session
from silo_agent.submit import NOT_ABOUT_THE_UPDATE
from silo_agent.supervisor import Supervisor
from silo_agent.training.isolation import Isolation, available
from silo_agent.training.launcher import Launcher

LOOK = 2.0  # seconds between two looks at policy and decisions
ASK = 30.0  # seconds between two questions for jobs when nothing has happened
DIAGNOSE_AFTER = 5  # failed attempts to connect, then the way is probed and the failing hop named

logger = structlog.get_logger("agent")


@dataclass(frozen=True)
class Connection:
    """An enrolled home with a channel to its server."""

    home: Home
    settings: Settings
    who: SiloIdentity
    client: Client
    log: LogView

    @property
    def address(self) -> str:
        return self.settings.server or self.who.federation.server


@contextmanager
def connect(home: Home) -> Iterator[Connection]:
    """For every command that talks to the server. Nothing is dialled before the first call."""
    settings, who = load_settings(home), identity.load(home.identity)
    info = who.federation
    check_pins(who.ca, info.ca_pins)
    client = Client(settings.server or info.server, who.ca, who.key, who.chain, settings.proxy)
    verifier = NoteVerifier.from_vkey(info.log_vkey)
    log = LogView(home.log_view, home.evidence, info.log_origin, verifier, client.consistency)
    try:
        yield Connection(home, settings, who, client, log)
    finally:
        client.close()


def isolation(home: Home, rules: Policy) -> Isolation:
    """How far job code can be fenced off on this machine, as tried now."""
    durable.make_dir(home.path / "jobs")
    bound = [*(one.path for one in rules.data.values()), *(one.folder for one in rules.models.values())]
    reach = [home.path / "jobs", *filter(Path.exists, bound)]
    return available(home.path, reach, interpreter(rules))


def interpreter(rules: Policy) -> Path:
    """The Python that job code runs under."""
    return rules.run.interpreter or Path(sys.executable)


class Agent:
    """`run` blocks until `stop` is called or something happens that a person must look at."""

    def __init__(self, connection: Connection) -> None:
        self._c = connection
        self._stopping = threading.Event()
        self._woken = threading.Event()  # something changed: look now
        self._failure: BaseException | None = None
        self._lost = 0  # failed attempts to connect in a row

    def stop(self) -> None:
        """From a signal handler or another thread: finish in order; what is in the outbox stays there."""
        self._stopping.set()
        self._woken.set()

    def run(self) -> None:
        """Raises what made the agent stop: Refused (revoked), Untrusted, Corrupt, Misuse. Returns after `stop`."""
        c = self._c
        with alone(c.home):
            no_evidence(c.home)
            rules = policy.load_policy(c.home.policy)
            isolated = isolation(c.home, rules)
            (logger.info if isolated.holds else logger.warning)(
                "isolation of job code", kind=isolated.kind, detail=isolated.detail
            )
            progress = Progress()
            site = Site(
                home=c.home,
                who=c.who,
                client=c.client,
                log=c.log,
                outbox=Outbox(c.home.outbox),
                progress=progress,
                keep_models=c.settings.keep_models,
                pause=self._stopping.wait,
            )
            run, threads = rules.run, c.settings.threads
            with Launcher(
                c.home.path,
                interpreter(rules),
                threads,
                run.gpus,
                processes=run.processes,
                silo=c.who.silo,
            ) as launcher:
                supervisor = Supervisor(
                    site, launcher, isolated, interpreter(rules), self._spawn, self._stopping
                )
                listener = Listener(
                    connected=self._connected,
                    job_changed=self._job_changed,
                    abort=supervisor.abort,
                    revoked=self._revoked,
                    lost=self._unreachable,
                )
                self._serve(supervisor, Session(c.client, progress, listener, self._stopping))
        if self._failure is not None:
            raise self._failure

    def _serve(self, supervisor: Supervisor, session: Session) -> None:
        def keep_renewed() -> None:
            renew.keep_renewed(
                self._c.home.identity, self._c.client, self._c.log, self._stopping, session.reopen
            )

        threads = [self._spawn("session", session.run), self._spawn("renewal", keep_renewed)]
        try:
            self._supervise(supervisor)
        finally:
            self.stop()
            supervisor.leave()
            session.reopen()
            for thread in threads:
                thread.join(2)

    def _supervise(self, supervisor: Supervisor) -> None:
        asked = -ASK
        while not self._stopping.is_set():
            woken = self._woken.is_set()
            self._woken.clear()
            if supervisor.reread() or woken or time.monotonic() - asked >= ASK:
                try:
                    supervisor.look()
                    asked = time.monotonic()
                except (Unavailable, Conflict) as error:
                    logger.debug("jobs are looked at again when the server is back", error=str(error))
                except OSError as error:
                    if error.errno not in durable.UNWRITABLE:
                        raise
                    logger.error("this disk takes nothing; jobs are looked at again", error=str(error))
            self._woken.wait(LOOK)

    # --- what the session hears -------------------------------------------------------------------------------------

    def _connected(self) -> None:
        self._lost = 0
        self._woken.set()

    def _job_changed(self, job: str, status: str) -> None:
        logger.info("job changed", job=job, status=status)
        self._woken.set()

    def _revoked(self, reason: str) -> None:
        why = reason or "no reason given"
        self._fail(
            Refused(Reason.REVOKED_IDENTITY, f"{self._c.who.uri} was revoked by the federation: {why}")
        )

    def _unreachable(self, error: AnabranchError) -> None:
        """Keep trying, unless trying cannot help; after a while, find out which hop it is."""
        who = identity.load(self._c.home.identity)
        if isinstance(error, Refused) and error.code in NOT_ABOUT_THE_UPDATE:
            self._fail(error)
        elif isinstance(error, Refused) and error.code is Reason.DUPLICATE_IDENTITY:
            logger.error("somebody else works under this identity; this agent goes on", error=str(error))
        elif time.time() > who.leaf.not_valid_after_utc.timestamp():
            self._fail(
                Refused(
                    Reason.BAD_CERTIFICATE,
                    f"the certificate expired at {who.leaf.not_valid_after_utc:%F %T} UTC by this machine's clock; "
                    f"check the clock, or enrol again with a new bundle (anabranch silo invite {who.silo})",
                )
            )
        else:
            self._lost += 1
            if self._lost == 1:
                logger.warning("no connection to the server; work goes on, trying again", error=str(error))
            elif self._lost == DIAGNOSE_AFTER:
                self._diagnose()

    def _diagnose(self) -> None:
        info = self._c.who.federation
        try:
            probe.walk(self._c.address, self._c.settings.proxy, self._c.who.ca, info.federation)
        except probe.HopFailed as fault:
            logger.error(
                "the way to the server is broken", hop=fault.hop, meaning=fault.meaning, do=fault.remedy
            )

    # --- threads ----------------------------------------------------------------------------------------------------

    def _spawn(self, name: str, body: Callable[[], None]) -> threading.Thread:
        """A thread whose failure stops the agent: half an agent helps nobody."""

        def run() -> None:
            try:
                body()
            except BaseException as error:
                self._fail(error)

        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
        self.stop()


def no_evidence(home: Home) -> None:
    """A restart does not make a forked log whole: a person decides. Raises Refused(DIGEST_MISMATCH)."""
    found = sorted(home.evidence.glob("*.json"))
    if found:
        raise Refused(
            Reason.DIGEST_MISMATCH,
            f"{found[0]} says that the server could not prove its log. Show it to the other silos and to the auditor; "
            "to trust the server again, move the file away",
        )


@contextmanager
def alone(home: Home) -> Iterator[None]:
    """Two agents in one directory would train the same leases. The kernel drops the lock with the process."""
    fd = os.open(home.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Conflict(f"another agent already runs in {home.path}: stop it first") from error
        yield
    finally:
        os.close(fd)
