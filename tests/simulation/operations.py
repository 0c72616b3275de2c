"""The closed list of what can happen in a simulated federation, and how a sequence of it is drawn from a seed.

An operation that makes no sense where it stands (a job that is not there, a silo that is not in) does nothing, so that a
sequence stays a sequence when the shrinker takes parts of it away. Silos and jobs are numbers, jobs modulo how many
there are; every field is an int, a float, a bool or a str, so `repr` is what a regression test pastes.
"""

from dataclasses import dataclass

SILOS = 8
NEWEST = -1  # the job submitted last


@dataclass(frozen=True)
class Advance:
    """Time passes, for everybody."""

    seconds: float


@dataclass(frozen=True)
class SubmitJob:
    """The owner submits a job with one of the terms of `terms.TERMS`; ended jobs make room, three may be open."""

    terms: int


@dataclass(frozen=True)
class Join:
    """A silo is invited and enrols; a revoked one comes back with new keys; `again`: the reply to its request is lost."""

    silo: int
    again: bool = False


@dataclass(frozen=True)
class Approve:
    """A person at the silo approves a job."""

    silo: int
    job: int


@dataclass(frozen=True)
class Deny:
    """A person at the silo refuses a job."""

    silo: int
    job: int


@dataclass(frozen=True)
class Withdraw:
    """A person at the silo takes an approval back."""

    silo: int
    job: int


@dataclass(frozen=True)
class Lease:
    """The silo asks for a task and dies before it works on it."""

    silo: int
    job: int


@dataclass(frozen=True)
class Turn:
    """One turn of the real worker: send what is left, lease, prove, fetch, train or evaluate, sign, submit, prove.

    `made`: what the job's code does. "good"; "still", an update of zeros; "loud", one above the job's norm; "garbage", no
    update at all; "raises".
    """

    silo: int
    job: int
    made: str = "good"


@dataclass(frozen=True)
class Train:
    """A turn whose update stays in the outbox: the network ends when it would be sent."""

    silo: int
    job: int


@dataclass(frozen=True)
class Round:
    """Every silo trains, then all send, each `at_once` in one transaction or one after another; then aggregation looks."""

    job: int
    at_once: bool


@dataclass(frozen=True)
class Deliver:
    """The silo sends what stands in its outbox."""

    silo: int


@dataclass(frozen=True)
class Duplicate:
    """An update that was answered is sent again, whole (or claimed by another silo): the same answer, or a refusal."""

    silo: int
    which: int
    claimed_by: int


@dataclass(frozen=True)
class Reevaluate:
    """An evaluation that was answered is sent again (or claimed by another silo): the same answer, or a refusal."""

    silo: int
    which: int
    claimed_by: int


@dataclass(frozen=True)
class Export:
    """The owner takes a model: "head", "best" or "ema"."""

    job: int
    selector: str


@dataclass(frozen=True)
class Forge:
    """An update whose statement is signed but false, for the silo's open lease: "nonce", "base", "digest", "size"."""

    silo: int
    job: int
    lie: str


@dataclass(frozen=True)
class LoseRequest:
    """The network loses the request of a call, after `after` calls that arrive."""

    after: int


@dataclass(frozen=True)
class LoseReply:
    """The network loses the reply of a call, after `after` calls that are answered."""

    after: int


@dataclass(frozen=True)
class BreakUpload:
    """The next upload breaks at `at` of its bytes: the "stream" ends, the "server" is killed, or loses "power"."""

    at: float
    how: str


@dataclass(frozen=True)
class StopAgent:
    """The agent's process is killed and started again on its home; `torn`: the last line of its journal was not synced."""

    silo: int
    torn: bool = False


@dataclass(frozen=True)
class Kill:
    """The server is killed the next time it comes by `gap`, after passing it `after` times.

    `tear` above 0: power was lost before the commit was synced, and only that part of what it wrote to the WAL is there.
    """

    gap: str
    after: int = 0
    tear: float = 0.0


@dataclass(frozen=True)
class Crash:
    """The server is killed while nothing happens; `power`: the machine with it."""

    power: bool = False


@dataclass(frozen=True)
class Restart:
    """The server is stopped in order and started again."""


@dataclass(frozen=True)
class Prune:
    """The server looks for what it need not keep any more, in its state and in its spool."""


@dataclass(frozen=True)
class Restore:
    """The server is started on the database as it was some time ago: it must refuse. Then on the right one again."""


@dataclass(frozen=True)
class Outage:
    """While this many operations last a server that dies stays down."""

    operations: int


@dataclass(frozen=True)
class Revoke:
    """An administrator revokes a silo."""

    silo: int


@dataclass(frozen=True)
class Pause:
    """The owner pauses a job."""

    job: int


@dataclass(frozen=True)
class Resume:
    """The owner resumes a job."""

    job: int


@dataclass(frozen=True)
class Abort:
    """The owner aborts a job."""

    job: int


@dataclass(frozen=True)
class Aggregate:
    """The aggregation looks at a job."""

    job: int


@dataclass(frozen=True)
class FullDisk:
    """The server's disk is full while the next `calls` calls last."""

    calls: int


@dataclass(frozen=True)
class Together:
    """Several at once: the writer finds their decisions in its queue and commits them in one transaction, in order."""

    operations: tuple["Operation", ...]


Operation = (
    Advance
    | SubmitJob
    | Join
    | Approve
    | Deny
    | Withdraw
    | Lease
    | Turn
    | Train
    | Round
    | Deliver
    | Duplicate
    | Reevaluate
    | Export
    | Forge
    | LoseRequest
    | LoseReply
    | BreakUpload
    | StopAgent
    | Kill
    | Crash
    | Restart
    | Prune
    | Restore
    | Outage
    | Revoke
    | Pause
    | Resume
    | Abort
    | Aggregate
    | FullDisk
    | Together
)
