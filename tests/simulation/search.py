"""Finding a failing sequence, making it small, and saying how to run it again."""

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.simulation import once
from tests.simulation.drawing import draw
from tests.simulation.invariants import Broken
from tests.simulation.operations import Operation
from tests.simulation.terms import TERMS
from tests.simulation.world import simulate, template

MEMORY = Path("/dev/shm")  # a sync costs nothing there
SHRINKING = 60.0  # seconds that may be spent on making one failure small


@dataclass
class Found:
    """A failure: what broke, and the smallest sequence known that breaks it."""

    seed: int
    error: str
    sequence: list[Operation]
    drawn: int

    def __str__(self) -> str:
        steps = "\n".join(f"    {operation}," for operation in self.sequence)
        return (
            f"seed {self.seed}: {self.error}\n"
            f"{len(self.sequence)} operations of {self.drawn}; as a regression (tests/simulation/test_regressions.py):\n"
            f"  seed={self.seed}, sequence=[\n{steps}\n  ]\n"
            f"again:  python -m tests.simulation.soak --replay {self.seed} --operations {self.drawn}"
        )


@dataclass
class Tally:
    """What happened in some runs."""

    runs: int = 0
    updates: int = 0
    operations: int = 0
    receipts: int = 0
    audited: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Tally") -> None:
        self.runs, self.updates = self.runs + other.runs, self.updates + other.updates
        self.operations, self.receipts = self.operations + other.operations, self.receipts + other.receipts
        self.audited += other.audited
        self.faults += other.faults
        self.done += other.done


class Simulator:
    """Runs sequences in a scratch directory of its own, which `close` removes."""

    def __init__(self, versions: int = 20) -> None:
        """Jobs stop after `versions` versions."""
        self._versions = versions
        self._scratch = tempfile.TemporaryDirectory(
            prefix="anabranch-simulation-", dir=MEMORY if MEMORY.is_dir() else None
        )
        self.scratch = Path(self._scratch.name)
        template(self.scratch / "made")

    def close(self) -> None:
        self._scratch.cleanup()

    def run(self, seed: int, sequence: Sequence[Operation], audit: bool = True) -> Tally:
        """Raises Broken."""
        once.short = not audit
        federation = simulate(sequence, seed, self.scratch / "made", self.scratch, self._versions, audit)
        return Tally(
            runs=1,
            updates=federation.books.updates,
            operations=len(sequence),
            receipts=federation.books.receipts,
            audited=audit,
            faults=federation.faults,
            done=Counter(type(operation).__name__ for operation in sequence),
        )

    def seed(self, seed: int, count: int, audit: bool = True) -> Tally | Found:
        """Draw and run one seed; a failure is made small first."""
        sequence = draw(seed, count, len(TERMS))
        error = self.failure(seed, sequence, audit)
        if isinstance(error, Tally):
            return error
        kind = error.split()[0]
        audit = audit and self._only_the_auditor_saw_it(seed, sequence)
        until = time.monotonic() + SHRINKING

        def fails(part: Sequence[Operation]) -> bool:
            if time.monotonic() > until:
                return False
            again = self.failure(seed, part, audit)
            return isinstance(again, str) and again.split()[0] == kind

        small = shrink(sequence, fails)
        last = self.failure(seed, small, audit)
        return Found(seed, error if isinstance(last, Tally) else last, small, count)

    def _only_the_auditor_saw_it(self, seed: int, sequence: Sequence[Operation]) -> bool:
        return isinstance(self.failure(seed, sequence, audit=False), Tally)

    def failure(self, seed: int, sequence: Sequence[Operation], audit: bool = True) -> str | Tally:
        """What breaks, in words; the tally when nothing does. An exception nobody expects breaks it as well."""
        try:
            return self.run(seed, sequence, audit)
        except Broken as broken:
            return f"{type(broken).__name__}: {broken}"
        except Exception as error:
            return f"unexpected {type(error).__name__}: {error}"


def shrink(sequence: Sequence[Operation], fails: Callable[[Sequence[Operation]], bool]) -> list[Operation]:
    """Delta debugging: drop ever smaller runs of operations, the last ones first, while it still fails."""
    small = list(sequence)
    size = max(len(small) // 2, 1)
    while True:
        start, dropped = len(small), False
        while start > 0:
            start = max(start - size, 0)
            part = small[:start] + small[start + size :]
            if len(part) < len(small) and fails(part):
                small, dropped = part, True
        if size == 1 and not dropped:
            return small
        size = size if dropped and size == 1 else max(size // 2, 1)
