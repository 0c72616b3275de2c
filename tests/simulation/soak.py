"""The long run: `python -m tests.simulation.soak --updates 1000000 --seed 1`.

Seeds are run by as many processes as there are cores, until enough updates were decided; every minute a line says how
far that is and which seed comes next, so that a run that was stopped goes on from there with `--seed`. A failure is
shrunk, printed with how to replay it, and ends the run with exit code 1; a signal ends it with what was done so far.

After each operation the tables are held against what silos were told; at the end of each run every entry, checkpoint and
receipt is. Each `--audit-every`-th run is exported and audited as well, and reaches SQLite by SQLAlchemy's own engine.
"""

import argparse
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from itertools import count

from tests.simulation.drawing import draw
from tests.simulation.once import prepare
from tests.simulation.search import Found, Simulator, Tally
from tests.simulation.terms import TERMS

REPORT = 60.0  # seconds between two lines of progress
simulator: Simulator


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=1_000_000, help="updates to decide, at least")
    parser.add_argument("--seed", type=int, default=1, help="the first seed; each run takes the next")
    parser.add_argument("--operations", type=int, default=400, help="operations of one run")
    parser.add_argument(
        "--audit-every", type=int, default=20, help="runs between two that are exported and audited"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--replay", type=int, help="run this seed alone, and print what it does")
    given = parser.parse_args()
    prepare()
    gc.freeze()
    gc.set_threshold(100_000)
    if given.replay is not None:
        return replay(given.replay, given.operations)
    return soak(given.updates, given.seed, given.operations, given.audit_every, given.jobs)


def soak(updates: int, first: int, operations: int, audit_every: int, processes: int) -> int:
    started = time.monotonic()
    total = Tally()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _run(updates, first, operations, audit_every, processes, total, started)
    except KeyboardInterrupt:
        print(f"stopped; go on with --seed {first + total.runs}")
        return 130
    finally:
        _report(total, time.monotonic() - started)


def _run(
    updates: int, first: int, operations: int, audit_every: int, processes: int, total: Tally, started: float
) -> int:
    said, enough = started, threading.Event()
    tasks = ((seed, operations, seed % audit_every == 0) for seed in count(first))
    with multiprocessing.get_context("fork").Pool(processes, _begin, maxtasksperchild=None) as pool:
        try:
            for result in pool.imap_unordered(_one, _ahead(tasks, total, enough)):
                if isinstance(result, Found):
                    print(result, flush=True)
                    return 1
                total.add(result)
                if total.updates >= updates:
                    return 0
                if time.monotonic() - said > REPORT:
                    said = time.monotonic()
                    rate, faults = total.updates / (said - started), sum(total.faults.values())
                    far = f"{total.updates} updates, {faults} faults, {rate:.0f} updates/s"
                    print(f"{far}, next seed {first + total.runs}", flush=True)
        finally:
            enough.set()
    raise AssertionError("seeds do not end")


def _ahead(
    tasks: Iterator[tuple[int, int, bool]], total: Tally, enough: threading.Event
) -> Iterator[tuple[int, int, bool]]:
    """The pool reads its tasks ahead, in a thread of its own; this keeps it from reading them for ever."""
    for given, task in enumerate(tasks):
        while given > total.runs + 64 and not enough.is_set():
            time.sleep(0.05)
        if enough.is_set():
            return
        yield task


def _begin() -> None:
    global simulator
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    simulator = Simulator()


def _one(task: tuple[int, int, bool]) -> Tally | Found:
    seed, operations, audit = task
    return simulator.seed(seed, operations, audit)


def replay(seed: int, operations: int) -> int:
    one = Simulator()
    try:
        for operation in draw(seed, operations, len(TERMS)):
            print(operation)
        result = one.seed(seed, operations)
    finally:
        one.close()
    print(result if isinstance(result, Found) else f"seed {seed} holds: {result.updates} updates")
    return int(isinstance(result, Found))


def _report(total: Tally, seconds: float) -> None:
    print(
        f"\n{total.updates} updates decided in {total.runs} runs of {total.operations} operations, "
        f"{seconds:.0f} s: {total.updates / seconds:.1f} updates/s"
    )
    print(f"{total.receipts} receipts proven, {total.audited} runs exported, verified and replayed")
    print(f"\n{sum(total.faults.values())} faults injected")
    for kind, number in sorted(total.faults.items()):
        print(f"  {number:>9}  {kind}")
    print("\noperations")
    for name, number in sorted(total.done.items()):
        print(f"  {number:>9}  {name}")


if __name__ == "__main__":
    sys.exit(main())
