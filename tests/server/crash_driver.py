"""Runs one version of a job with two silos, ends it, lets retention run out, and dies by SIGKILL at the first gap GAP.

python -m tests.server.crash_driver DIRECTORY GAP
"""

import os
import signal
import sys
from pathlib import Path

from tests.server.harness import ADMIN, Server

TERMS = "[aggregation]\nbuffer = 2\n[aggregation.server_optimizer]\nmomentum = 0.5\n[silos]\nmin = 2\n"


def main() -> None:
    directory, gap = Path(sys.argv[1]), sys.argv[2]
    armed = False

    def reached(name: str) -> None:
        if armed and name == gap:
            os.kill(os.getpid(), signal.SIGKILL)

    server = Server(directory, reached)
    silos = [server.enrol("a"), server.enrol("b")]
    job, terms = server.submit(TERMS)
    for silo in silos:
        server.decide(silo, job, terms)
    armed = True
    for silo, value in zip(silos, (1.0, 2.0), strict=True):
        decided = server.send(silo, job, terms, value)
        print(f"acknowledged {silo.name} {decided.receipt.index}", flush=True)
    server.core.aggregation.advance(job)
    print("published", flush=True)
    if gap.startswith("retention."):
        server.core.jobs.change(ADMIN, job, "abort", "")
        server.clock.advance(31 * 86400)
        server.core.retention.prune()
        print("pruned", flush=True)


if __name__ == "__main__":
    main()
