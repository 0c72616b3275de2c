"""The rough run: `python -m tests.chaos.run --updates 10000 --seed 1`.

Real server, real agents, real kills, and a network that breaks. When enough updates were decided the faults stop, every
job must complete, and the history is held against what the silos were told and what the auditor makes of it.
"""

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random

import grpc

import server  # noqa: F401 - before gRPC: it switches TLS 1.2 off for this process
from anabranch.errors import AnabranchError
from server import setup
from server.blobs.local import BlobStore
from server.config import read_config
from server.state.database import open_reader
from tests.chaos.federation import Federation
from tests.chaos.leavers import Leavers
from tests.simulation.history import (
    Broken,
    check_ends,
    check_export,
    check_log,
    check_receipts,
    check_story,
    read_history,
    whole_lines,
)

MEMORY = Path("/dev/shm")  # a kill loses nothing that was written, so a sync shows nothing here
REPORT = 30.0  # seconds between two lines of progress
OPEN_JOBS = 2
STUCK = 300.0  # seconds without an update, a version or an end, with no faults any more


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=10_000, help="updates to decide, at least")
    parser.add_argument(
        "--seconds", type=float, default=3000.0, help="faults stop after this time in any case"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the faults and their moments")
    parser.add_argument("--silos", type=int, default=4)
    parser.add_argument("--versions", type=int, default=100, help="of one job")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two faults, in the mean")
    given = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="anabranch-chaos-", dir=MEMORY if MEMORY.is_dir() else None))
    root.chmod(0o755)  # a training process is another user
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # no process stays behind
    run = Run(root, given.seed, given.silos, given.versions, given.every)
    try:
        run.go(given.updates, given.seconds)
    except Broken as broken:
        print(f"broken: {broken}\n\nwhat is left of it: {root}", flush=True)
        return 1
    except KeyboardInterrupt:
        print(f"stopped; what is left of it: {root}", flush=True)
        return 130
    finally:
        run.federation.close()
        run.report()
    shutil.rmtree(root)
    return 0


class Run:
    def __init__(self, root: Path, seed: int, silos: int, versions: int, every: float) -> None:
        self.federation = Federation(root, seed, silos)
        self._root, self._versions, self._every = root, versions, every
        self._random = Random(f"moments {seed}")
        self._started = self._said = time.monotonic()
        self._calm_after = 0.0
        self._told: Counter[str] = Counter()
        self.updates = self.acknowledged = self.receipts = self.merged = self.jobs = 0

    def go(self, updates: int, seconds: float) -> None:
        """Raises Broken."""
        self.federation.create()
        self._started = self._said = time.monotonic()
        self._storm(updates, seconds)
        self._calm_after = time.monotonic() - self._started
        self._settle()
        self._leave()
        self._check()

    def _storm(self, updates: int, seconds: float) -> None:
        federation, asked = self.federation, 0.0
        next_fault = time.monotonic() + 10.0
        while self.updates < updates and time.monotonic() - self._started < seconds:
            time.sleep(0.1)
            federation.tick()
            if time.monotonic() > next_fault:
                federation.fault()
                next_fault = time.monotonic() + self._random.expovariate(1 / self._every)
            if time.monotonic() > asked + 3.0:
                asked = time.monotonic()
                self._look(submitting=True)

    def _look(self, submitting: bool) -> list[tuple[object, ...]] | None:
        """Count, report, keep jobs coming. What the jobs say of themselves, to be compared; None: no answer."""
        jobs = self.federation.status()
        if jobs is None:
            return None
        self.jobs = len(jobs)
        self.updates = sum(s.received + s.merged + s.refused + s.retired for job in jobs for s in job.silos)
        if time.monotonic() - self._said > REPORT:
            self._said = time.monotonic()
            faults, lasted = sum(self.federation.faults.values()), self._said - self._started
            print(f"{self.updates} updates, {faults} faults, {lasted:.0f} s", flush=True)
        running = [job for job in jobs if job.status not in ("completed", "aborted")]
        if submitting and len(running) < OPEN_JOBS:
            with suppress(grpc.RpcError, AnabranchError):
                self.federation.submit(self._versions)
        return [(job.job, job.head, self.updates) for job in running]

    def _settle(self) -> None:
        """Without faults every job completes, and every silo gets rid of what it holds."""
        self.federation.heal()
        before, moved = None, time.monotonic()
        while (now := self._look(submitting=False)) != [] or self._left():
            self.federation.tick()
            state = now, self._left()
            if state != before:
                before, moved = state, time.monotonic()
            if time.monotonic() - moved > STUCK:
                raise Broken(
                    f"faults have stopped, and nothing moves any more: jobs {now}, outboxes {self._left()}"
                )
            time.sleep(0.5)

    def _left(self) -> list[str]:
        """Updates whose silo waits for an answer, and silos that still have to hear that they are revoked."""
        boxes = [self._root / name / "outbox" for name in self.federation.present()]
        waiting = [path.name for box in boxes for path in box.glob("*") if not path.name.startswith(".")]
        return sorted(waiting) + self.federation.leaving()

    def _leave(self) -> None:
        """Agents first, in order; a process that does not end well is a fault of ours."""
        for name in [*self.federation.present(), "server"]:
            process = self.federation.real.processes.pop(name)
            process.terminate()
            if process.wait(120) != 0:
                raise Broken(f"{name} did not stop in order: exit code {process.returncode}")

    def _check(self) -> None:
        directory = self.federation.real.server_dir
        info = setup.federation_info(directory, read_config(directory))
        reader = open_reader(directory / "state" / "state.db")
        journals = whole_lines(sorted(self._root.glob("silo-*/jobs/*/receipts.jsonl")))
        history = read_history(reader, info)
        check_ends(history)
        roots = check_log(history)
        check_story(history)
        self._told = Leavers().read(history)
        told = check_receipts(history, roots, journals)
        self.receipts = sum(map(len, told.values()))
        told.pop("", None)
        self.updates, self.acknowledged = len(history.updates), len(told)
        self.merged = sum(row.status == "merged" for row in history.updates.values())
        for name, indices in told.items():
            row = history.updates.get(name)
            if row is None or {row.entry} != set(indices):
                raise Broken(f"update {name} was acknowledged as entries {indices}, the table says {row}")
        heard = {name for name, row in history.updates.items() if row.silo not in self.federation.revoked}
        if unheard := heard - told.keys():
            raise Broken(f"silos hold no receipt for {len(unheard)} decided updates: {sorted(unheard)[:5]}")
        for path in self._root.glob("silo-*/evidence/*"):
            raise Broken(f"a silo does not believe its server: {path}")
        heads = check_export(reader, BlobStore(directory / "blobs"), info, self._root / "export", journals)
        with reader.connect() as connection:
            found = connection.exec_driver_sql("select id, head, status from jobs").all()
        if {row.id: row.head for row in found} != heads:
            raise Broken(f"replay ends at {heads}, the table says {found}")
        for row in found:
            if row.status != "completed" and not (
                row.status == "aborted" and row.id in self.federation.aborted
            ):
                raise Broken(f"job {row.id} is {row.status}")

    def report(self) -> None:
        lasted = time.monotonic() - self._started
        print(
            f"\n{self.updates} updates decided for {self.jobs} jobs in {lasted:.0f} s ({self._calm_after:.0f} s of it "
            f"under faults), {self.merged} merged, {self.acknowledged} acknowledged; {self.receipts} receipts proven"
        )
        print(f"{self.federation.wire.bytes} bytes over the wire\n")
        print(f"{sum(self.federation.faults.values())} faults injected")
        for kind, number in sorted(self.federation.faults.items()):
            print(f"  {number:>9}  {kind}")
        print("\nthe log tells")
        for kind, number in sorted(self._told.items()):
            print(f"  {number:>9}  {kind}")


if __name__ == "__main__":
    sys.exit(main())
