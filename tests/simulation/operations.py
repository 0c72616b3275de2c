"""The closed list of what can happen in a simulated federation, and how a sequence of it is drawn from a seed.

An operation that makes no sense where it stands (a job that is not there, a silo that is not in) does nothing, so that a
sequence stays a sequence when the shrinker takes parts of it away. Silos and jobs are numbers, jobs modulo how many
there are; every field is an int, a float, a bool or a str, so `repr` is what a regression test pastes.
"""

from dataclasses import dataclass
from random import Random

from server.gaps import Gap

SILOS = 8
NEWEST = -1  # the job submitted last


@dataclass(frozen=True)
class Advance:
    """Time passes, for everybody."""

    seconds: float


@dataclass(frozen=True)
class SubmitJob:
    """The owner submits a job with one of the terms of `world.TERMS`; ended jobs make room, three may be open."""

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

LABELS = (
    "lease",
    "decide",
    "revoke",
    "enrol",
    "pause",
    "resume",
    "abort",
    "evaluation",
    "conclude",
    "release",
    "export",
    "",
)
GAPS = tuple(gap.value for gap in Gap)
OTHER_GAPS = tuple(f"{label}.{moment}" for label in LABELS for moment in ("committed", "registered"))


def draw(seed: int, count: int, terms: int, calm: bool = False) -> list[Operation]:
    """`count` operations after those that set the stage. `calm`: the same mix without faults."""
    random = Random(seed)
    drawn: list[Operation] = [Join(silo) for silo in range(6)]
    for _ in range(2):
        drawn += _job(random, terms)
    while len(drawn) < count:
        one = _one(random, terms, calm)
        drawn += _job(random, terms) if isinstance(one, SubmitJob) else [one]
    return drawn


def _job(random: Random, terms: int) -> list[Operation]:
    """A job comes, and most silos approve it."""
    silos = random.sample(range(SILOS), random.randrange(5, SILOS + 1))
    return [SubmitJob(random.randrange(terms)), *(Approve(silo, NEWEST) for silo in silos)]


def _one(random: Random, terms: int, calm: bool) -> Operation:
    silo, job = random.randrange(SILOS), random.randrange(3)
    ordinary = [
        (44, lambda: Round(job, random.random() < 0.7)),
        (16, lambda: Turn(silo, job)),
        (5, lambda: Train(silo, job)),
        (5, lambda: Deliver(silo)),
        (4, lambda: Aggregate(job)),
        (4, lambda: Approve(silo, job)),
        (4, lambda: Join(silo)),
        (4, lambda: SubmitJob(random.randrange(terms))),
        (2, lambda: Advance(random.choice([1.0, 30.0, 599.0, 600.0, 601.0]))),
        (5, lambda: _together(random)),
        (2, lambda: Prune()),
    ]
    faults = [
        (1, lambda: Turn(silo, job, random.choice(["still", "loud", "garbage", "raises"]))),
        (1, lambda: Lease(silo, job)),
        (
            2,
            lambda: Duplicate(
                silo, random.randrange(100), random.choice([silo, silo, random.randrange(SILOS)])
            ),
        ),
        (1, lambda: Reevaluate(silo, random.randrange(100), random.choice([silo, random.randrange(SILOS)]))),
        (0.5, lambda: Export(job, random.choice(["head", "best", "ema"]))),
        (1, lambda: Forge(silo, job, random.choice(["nonce", "base", "digest", "size"]))),
        (2, lambda: LoseRequest(random.randrange(8))),
        (2, lambda: LoseReply(random.randrange(8))),
        (1, lambda: BreakUpload(random.random(), random.choice(["stream", "stream", "server", "power"]))),
        (1, lambda: StopAgent(silo, random.random() < 0.5)),
        (3, lambda: _kill(random)),
        (0.4, lambda: Crash(random.random() < 0.5)),
        (0.3, lambda: Restart()),
        (0.1, lambda: Restore()),
        (0.3, lambda: Outage(random.randrange(1, 6))),
        (0.5, lambda: Revoke(silo)),
        (0.7, lambda: Withdraw(silo, job)),
        (0.2, lambda: Deny(silo, job)),
        (0.3, lambda: Join(silo, again=True)),
        (0.5, lambda: Pause(job)),
        (4, lambda: Resume(job)),
        (0.1, lambda: Abort(job)),
        (0.2, lambda: FullDisk(random.randrange(1, 4))),
    ]
    choices = ordinary if calm else ordinary + faults
    [make] = random.choices([make for _, make in choices], [weight for weight, _ in choices])
    return make()


def _kill(random: Random) -> Kill:
    gap = random.choice(GAPS) if random.random() < 0.8 else random.choice(OTHER_GAPS)
    tear = random.random() if gap.endswith(".committed") and random.random() < 0.4 else 0.0
    return Kill(gap, random.randrange(3), tear)


def _together(random: Random) -> Together:
    """Deliveries and duplicates mostly, and now and then the decision that overtakes them."""
    silos = random.sample(range(SILOS), random.randrange(2, 4))
    job = random.randrange(3)
    parts: list[Operation] = [Deliver(silo) for silo in silos]
    other: list[Operation] = [
        Deliver(silos[0]),
        Withdraw(silos[0], job),
        Pause(job),
        Resume(job),
        Aggregate(job),
        Lease(silos[-1], job),
        Approve(silos[0], job),
        Revoke(silos[0]),
        Abort(job),
        Prune(),
    ]
    weights = [4, 1, 1, 1, 4, 2, 1, 0.3, 0.1, 1]
    parts += random.choices(other, weights, k=random.randrange(3))
    random.shuffle(parts)
    return Together(tuple(parts))
