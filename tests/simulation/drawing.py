"""Sequences of operations by seed: how often each comes."""

from random import Random

from server.gaps import Gap
from tests.simulation.operations import (
    NEWEST,
    SILOS,
    Abort,
    Advance,
    Aggregate,
    Approve,
    BreakUpload,
    Crash,
    Deliver,
    Deny,
    Duplicate,
    Export,
    Forge,
    FullDisk,
    Join,
    Kill,
    Lease,
    LoseReply,
    LoseRequest,
    Operation,
    Outage,
    Pause,
    Prune,
    Reevaluate,
    Restart,
    Restore,
    Resume,
    Revoke,
    Round,
    StopAgent,
    SubmitJob,
    Together,
    Train,
    Turn,
    Withdraw,
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
