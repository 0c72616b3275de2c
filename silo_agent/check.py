"""`anabranch-silo check`: every hop between this silo and a working federation, in order, and the first that fails.

What can be judged on this machine comes first, then the way to the server, then what the server says, then what jobs
need. A hop after a failed one is skipped: its verdict would only repeat the first.
"""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from anabranch import __version__, exits
from anabranch.errors import AnabranchError, Corrupt, Reason, Refused, Unavailable
from anabranch.tlog.note import NoteVerifier
from anabranch.wire import identity as wire
from anabranch.wire.bundle import check_pins
from silo_agent import approval, identity, policy, probe
from silo_agent.agent import interpreter, isolation
from silo_agent.client import Client
from silo_agent.config import Home, Settings, load_settings
from silo_agent.identity import SiloIdentity
from silo_agent.messages import Hello, Welcome
from silo_agent.policy import Policy
from silo_agent.probe import HopFailed
from silo_agent.receipts import LogView
from silo_agent.session import CLOCK_TOLERANCE, PROTOCOL

Status = Literal["ok", "warning", "failed", "skipped"]
ROOM = 2 * 2**30  # bytes of free disk below which a warning is due


@dataclass(frozen=True)
class Verdict:
    hop: str
    status: Status
    meaning: str
    remedy: str = ""  # what to do, when something is to be done


@dataclass
class Visit:
    """What earlier hops found out, for later ones."""

    home: Home
    clock: Callable[[], float]  # this machine's, unix seconds
    settings: Settings = field(default_factory=Settings)
    policy: Policy = field(default_factory=Policy)
    who: SiloIdentity | None = None
    client: Client | None = None
    welcome: Welcome | None = None
    proposals: list[approval.Proposal] = field(default_factory=list)

    @property
    def now(self) -> float:
        return self.clock()

    @property
    def silo(self) -> SiloIdentity:
        assert self.who is not None, "the identity hop comes first"
        return self.who

    @property
    def address(self) -> str:
        return self.settings.server or self.silo.federation.server

    @property
    def proxy(self) -> probe.Proxy | None:
        return probe.proxy_for(self.address, self.settings.proxy)


# A hop returns what it found out, or a Verdict when there is more to say; it raises when it fails.
Hop = Callable[[Visit], str | Verdict]


def check(home: Home, clock: Callable[[], float] = time.time) -> list[Verdict]:
    """One verdict per hop, in order. Never raises for what it finds."""
    visit = Visit(home, clock)
    try:
        return list(_walk(visit))
    finally:
        if visit.client is not None:
            visit.client.close()


def first_failure(verdicts: list[Verdict]) -> Verdict | None:
    return next((verdict for verdict in verdicts if verdict.status == "failed"), None)


def _walk(visit: Visit) -> Iterator[Verdict]:
    failed: str | None = None
    for name, hop in HOPS:
        if failed is not None:
            yield Verdict(name, "skipped", f"not looked at: {failed} comes first")
            continue
        verdict = _visit(name, hop, visit)
        if verdict.status == "failed":
            failed = name
        yield verdict


def _visit(name: str, hop: Hop, visit: Visit) -> Verdict:
    try:
        found = hop(visit)
    except HopFailed as fault:
        return Verdict(name, "failed", fault.meaning, fault.remedy)
    except AnabranchError as error:
        return Verdict(name, "failed", str(error), _remedy(error))
    except OSError as error:  # our directory, or what a hop looks at, on a disk that does not let us
        return Verdict(name, "failed", str(exits.meant(error)), "Correct that, then run check again")
    return found if isinstance(found, Verdict) else Verdict(name, "ok", found)


def _remedy(error: AnabranchError) -> str:
    if isinstance(error, Refused) and error.code is Reason.REVOKED_IDENTITY:
        return "Ask the federation's administrator why; after a new invitation: anabranch-silo enrol BUNDLE --again"
    if isinstance(error, Corrupt):
        return "Restore the agent's directory from a backup, or: anabranch-silo enrol BUNDLE --again, with a new bundle"
    return "Correct what the message names, then run check again"


def _configuration(visit: Visit) -> str:
    if not visit.home.path.is_dir():
        raise Refused(Reason.NOT_FOUND, f"{visit.home.path} is no directory: `anabranch-silo enrol` makes it")
    visit.settings = load_settings(visit.home)
    return f"{visit.home.settings}" + (f", proxy {visit.settings.proxy}" if visit.settings.proxy else "")


def _policy(visit: Visit) -> str:
    visit.policy = policy.load_policy(visit.home.policy)
    approved = len(visit.policy.approve.terms)
    return f"{len(visit.policy.data)} data bindings, {approved} approved terms, isolation {visit.policy.run.isolation}"


def _identity(visit: Visit) -> str:
    visit.who = identity.load(visit.home.identity)
    exposed = identity.exposed(visit.home.identity)
    if exposed:
        raise HopFailed(
            "identity",
            f"other users of this machine can read {', '.join(p.name for p in exposed)}",
            f"chmod 600 {' '.join(map(str, exposed))}; if somebody may have copied them, have the silo revoked",
        )
    return visit.silo.uri


def _ca_pin(visit: Visit) -> str:
    """The trust anchor on disk is the one that was pinned; TLS below proves that the server's chain ends in it."""
    try:
        check_pins(visit.silo.ca, visit.silo.federation.ca_pins)
    except Refused as error:
        raise HopFailed(
            "CA pin",
            f"{visit.home.identity / identity.CA} is not the CA pinned at enrolment: {error}",
            "Somebody replaced the file. Restore it, or enrol again with a new bundle",
        ) from error
    return ", ".join(visit.silo.federation.ca_pins)


def _clock(visit: Visit) -> str:
    start = visit.silo.leaf.not_valid_before_utc
    if visit.now < start.timestamp():
        raise HopFailed(
            "clock",
            f"this machine's clock says {_utc(visit.now)} and is behind: the certificate was issued at {start:%F %T} UTC",
            "Set the clock (NTP); certificates, the log and leases depend on it",
        )
    return f"{_utc(visit.now)}, after the certificate was issued"


def _certificate(visit: Visit) -> str:
    leaf = visit.silo.leaf
    end = leaf.not_valid_after_utc
    if visit.now > end.timestamp():
        raise HopFailed(
            "certificate",
            f"by this machine's clock the certificate expired at {end:%F %T} UTC: the agent was off for too long, or the "
            "clock is wrong",
            f"Check the clock ({_utc(visit.now)}); if it is right, ask for a new bundle "
            f"(anabranch silo invite {visit.silo.silo}) and enrol again",
        )
    chain = wire.parse_chain(visit.silo.chain)
    wire.verify_leaf(leaf, wire.parse_chain(visit.silo.ca), chain[1:], visit.now, "silo")
    return f"valid until {end:%F %T} UTC, renewed by itself while the agent runs"


def _dns(visit: Visit) -> str:
    return probe.resolve(visit.address, visit.proxy)


def _tcp(visit: Visit) -> str:
    probe.connect(visit.address, visit.proxy).close()
    return visit.address + (f" through proxy {visit.proxy}" if visit.proxy else "")


def _tls(visit: Visit) -> str:
    leaf = probe.handshake(visit.address, visit.proxy, visit.silo.ca, visit.silo.federation.federation)
    return f"the server's certificate is of the pinned CA, valid until {leaf.not_valid_after_utc:%F %T} UTC"


def _enrolment(visit: Visit) -> str:
    """Mutual TLS and the server's allow-list: the first call that shows who we are."""
    silo = visit.silo
    visit.client = Client(visit.address, silo.ca, silo.key, silo.chain, visit.settings.proxy)
    info = silo.federation
    log = LogView(
        visit.home.log_view,
        visit.home.evidence,
        info.log_origin,
        NoteVerifier.from_vkey(info.log_vkey),
        visit.client.consistency,
    )
    try:
        jobs = visit.client.jobs(log.seen())
    except Unavailable as error:
        raise HopFailed(
            "enrolment",
            f"the server shows the right certificate, but takes no call made with this silo's ({error})",
            "If it is not just restarting, its CA no longer knows this certificate: ask for a new bundle and enrol again",
        ) from error
    visit.proposals = [approval.examine(job, log) for job in jobs]
    return f"the server knows this silo and offers {len(jobs)} jobs, each proven in the log"


def _protocol(visit: Visit) -> str:
    assert visit.client is not None
    for message in visit.client.session(iter([Hello(PROTOCOL, __version__)])):
        if isinstance(message, Welcome):
            visit.welcome = message
            break
    visit.client.hang_up()
    if visit.welcome is None:
        raise Unavailable("the server ended the session before it said welcome: it may be shutting down")
    if visit.welcome.protocol != PROTOCOL:
        raise HopFailed(
            "protocol",
            f"the server speaks protocol {visit.welcome.protocol}, this agent {PROTOCOL}",
            f"Upgrade the agent (this is {__version__}, the server {visit.welcome.release})",
        )
    return f"protocol {PROTOCOL}; agent {__version__}, server {visit.welcome.release}"


def _server_clock(visit: Visit) -> str:
    assert visit.welcome is not None
    off = visit.now - visit.welcome.server_time
    if abs(off) > CLOCK_TOLERANCE:
        raise HopFailed(
            "server clock",
            f"this machine's clock is {_duration(abs(off))} {'ahead of' if off > 0 else 'behind'} the server's",
            "Set the clock (NTP) on whichever machine is wrong; certificates are renewed too late or refused otherwise",
        )
    return f"within {CLOCK_TOLERANCE:.0f} s of the server's"


def _data(visit: Visit) -> str | Verdict:
    for name, binding in sorted(visit.policy.data.items()):
        if not binding.path.exists():
            raise HopFailed(
                "data",
                f"policy.toml [data.{name}]: {binding.path} does not exist here",
                "Correct the path, or mount it",
            )
    for name, model in sorted(visit.policy.models.items()):
        if lacking := model.lacks(name):
            raise HopFailed("data", *lacking)
    for proposal in _wanted(visit):
        policy.admit(
            visit.policy, proposal.terms, proposal.manifest.file_bytes if proposal.manifest else None
        )
    if not visit.policy.data:
        return Verdict(
            "data",
            "warning",
            "no data is bound: no job can run",
            "Add [data.NAME] with a path to policy.toml",
        )
    models = [f"model {name} = {model.folder}" for name, model in sorted(visit.policy.models.items())]
    return ", ".join(
        [*(f"{name} = {binding.path}" for name, binding in sorted(visit.policy.data.items())), *models]
    )


def _requires(visit: Visit) -> str:
    for proposal in _wanted(visit):
        approval.check_runnable(proposal, visit.policy, interpreter(visit.policy))
    return f"what approved and waiting jobs need is installed under {interpreter(visit.policy)}"


def _wanted(visit: Visit) -> list[approval.Proposal]:
    """Jobs this silo may still run: everything it has not turned down."""
    decisions = approval.Decisions(visit.home.decisions)
    return [
        proposal
        for proposal in visit.proposals
        if approval.standing(proposal, visit.policy, decisions) not in ("deny", "withdraw")
    ]


def _isolation(visit: Visit) -> str | Verdict:
    found = isolation(visit.home, visit.policy)
    if found.holds:
        return f"{found.kind}: {found.detail}"
    policy.admit_isolation(visit.policy, found.holds, found.detail)
    return Verdict(
        "isolation", "warning", found.detail, 'policy.toml allows it: [run] isolation = "allowed-without"'
    )


def _gpu(visit: Visit) -> str | Verdict:
    program = shutil.which("nvidia-smi")
    if program is None:
        if visit.policy.run.gpus:
            raise HopFailed(
                "GPU", "policy.toml [run] gpus names GPUs, but nvidia-smi is not here", "Install the driver"
            )
        return "none: jobs train on the CPU"
    query = [program, "--query-gpu=index,name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HopFailed("GPU", f"nvidia-smi does not answer ({error})", "Repair the driver") from error
    if done.returncode != 0:
        said = done.stdout.strip()[:200] or "nvidia-smi fails"
        return Verdict("GPU", "warning", said, "Repair the driver, or train on the CPU")
    found = [line.split(",")[0].strip() for line in done.stdout.splitlines()]
    missing = [str(index) for index in visit.policy.run.gpus or () if str(index) not in found]
    if missing:
        raise HopFailed(
            "GPU",
            f"policy.toml [run] gpus: no GPU {', '.join(missing)} here",
            f"There are {', '.join(found)}",
        )
    return "; ".join(done.stdout.split("\n")).strip("; ")


def _disk(visit: Visit) -> str | Verdict:
    free = shutil.disk_usage(visit.home.path).free
    largest = max((p.manifest.file_bytes for p in _wanted(visit) if p.manifest), default=0)
    # Models kept, the one arriving, the update being written, its private copy.
    need = largest * (visit.settings.keep_models + 4)
    if free < need:
        raise HopFailed(
            "disk",
            f"{free / 2**30:.1f} GiB free, the largest job needs {need / 2**30:.1f}",
            "Free some space",
        )
    if free < ROOM:
        return Verdict(
            "disk", "warning", f"{free / 2**30:.1f} GiB free", "Free some space before larger models come"
        )
    return f"{free / 2**30:.1f} GiB free"


def _utc(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%F %T} UTC"


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


HOPS: tuple[tuple[str, Hop], ...] = (
    ("configuration", _configuration),
    ("policy", _policy),
    ("identity", _identity),
    ("CA pin", _ca_pin),
    ("clock", _clock),
    ("certificate", _certificate),
    ("DNS", _dns),
    ("TCP", _tcp),
    ("TLS", _tls),
    ("enrolment", _enrolment),
    ("protocol", _protocol),
    ("server clock", _server_clock),
    ("data", _data),
    ("requires", _requires),
    ("isolation", _isolation),
    ("GPU", _gpu),
    ("disk", _disk),
)
