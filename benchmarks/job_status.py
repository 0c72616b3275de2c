"""What one job status costs after a short and after a long history: the ratio shall be 1.

python -m benchmarks.job_status [SHORT LONG]      updates; default 1000 and 100000

Two servers' state stores, made with the rows that so many updates leave; their statuses are asked for in alternation.
Reported are the ratio of the medians, and of the instructions SQLite's virtual machine runs, which no load disturbs.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median

from tests.server.harness import Server
from tests.server.test_lifecycle import start
from tests.server.test_status import fail, live_through, work

SILOS = tuple(f"silo-{number}" for number in range(10))
ROUNDS = 50
BATCH = 500  # versions in one transaction


def made(directory: Path, count: int) -> tuple[Server, str]:
    """A store in which a job of ten silos has had `count` updates."""
    server = Server(directory)
    job, _, silos = start(server, "[stop]\nversions = 1000000\n", *SILOS)
    fail(server, silos[0], job)
    left = count // len(silos)
    while left:
        now = min(left, BATCH)
        live_through(server, job, silos, now)
        left -= now
    return server, job


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("updates", nargs="*", type=int, default=[1_000, 100_000])
    counts = parser.parse_args().updates
    with tempfile.TemporaryDirectory() as scratch:
        stores = [made(Path(scratch) / str(count), count) for count in counts]
        steps = [work(server, lambda s=server, j=job: s.core.jobs.status(j)) for server, job in stores]
        seconds: list[list[float]] = [[] for _ in stores]
        for _ in range(ROUNDS):
            for taken, (server, job) in zip(seconds, stores, strict=True):
                begun = time.perf_counter()
                server.core.jobs.status(job)
                taken.append(time.perf_counter() - begun)
        for server, _ in stores:
            server.core.close()
    medians = [median(taken) for taken in seconds]
    print(
        json.dumps(
            {
                "updates": counts,
                "silos": len(SILOS),
                "sqlite_instructions": steps,
                "instructions_ratio": round(steps[-1] / steps[0], 3),
                "time_ratio": round(medians[-1] / medians[0], 3),
            }
        )
    )


if __name__ == "__main__":
    main()
