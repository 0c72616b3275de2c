"""One silo of a measurement: the agent's own client, outbox and cycle, told what to do line by line.

    python -m benchmarks.silo HOME JOB SIZE SEED

Only training is replaced: the "trainer" of a cycle writes numbers that depend on the silo's seed and on the cycle.
"""

import os
import shutil
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from anabranch.errors import Conflict, Unavailable
from benchmarks.federation import layout, numbers
from benchmarks.gauge import obey, peak_memory
from silo_agent import approval
from silo_agent.agent import Connection, connect
from silo_agent.budget.ledger import open_ledger
from silo_agent.config import Home
from silo_agent.cycle import Cycle, Site
from silo_agent.messages import Lease
from silo_agent.outbox import Outbox, Pending
from silo_agent.session import Listener, Progress, Session
from silo_agent.trainer import Watch
from silo_agent.training.channel import Train, Trained

POLL = 0.01  # seconds


@dataclass
class Numbers:
    """A trainer without a model."""

    size: int
    seed: int

    def train(self, request: Train, _watch: Watch) -> Trained:
        out = Path(request["out"])
        out.parent.mkdir(parents=True, exist_ok=True)
        numbers(out, layout(self.size), self.seed + 1000 * request["version"])
        return {"is": "trained", "cycle": request["cycle"], "num_examples": 1, "steps": 1, "metrics": {}}


class Silo:
    """Each public method is one command. Its answer is when it began and ended, and what it returns."""

    def __init__(self, connection: Connection, job: str, size: int, seed: int) -> None:
        self._c, self._job = connection, job
        self._trainer: Any = Numbers(size, seed)
        self._stop = threading.Event()
        self._site = Site(
            home=connection.home,
            who=connection.who,
            client=connection.client,
            log=connection.log,
            outbox=Outbox(connection.home.outbox),
            progress=Progress(),
            keep_models=1,
            pause=self._stop.wait,
            ledger=open_ledger(connection.home),
        )
        offered = next(one for one in connection.client.jobs(connection.log.seen()) if one.id == job)
        self._proposal = approval.examine(offered, connection.log)
        self._cycle: Cycle | None = None
        self._base = Path()
        self._pending: Pending | None = None

    def lease(self) -> None:
        """Ask until there is a task; the lease's proof is checked."""
        while not isinstance(task := self._c.client.next_task(self._job, self._c.log.seen()), Lease):
            time.sleep(POLL)
        self._cycle = Cycle(self._site, self._proposal, task, lambda: None, lambda: None)
        self._cycle._prove_lease()

    def fetch(self) -> None:
        """The leased version: hashed, proven in the log, synced to this silo's disk."""
        shutil.rmtree(self._c.home.job(self._job) / "models", ignore_errors=True)
        assert self._cycle is not None
        self._base = self._cycle._fetch()

    def make(self) -> None:
        """The local half of a cycle: check, copy, hash and sign the delta, all durable."""
        assert self._cycle is not None
        self._pending = self._cycle._train(self._trainer, self._base)

    def send(self) -> None:
        """Upload; return with the server's receipt proven."""
        assert self._pending is not None
        reason = self._site.sender.deliver(self._pending, resume=False)
        assert not reason, reason

    def small(self) -> dict[str, float]:
        """Two hundred whole cycles; how long each upload took, from its first byte to its proven receipt."""
        took = []
        for _ in range(200):
            self.lease()
            self.fetch()
            self.make()
            began = time.monotonic()
            self.send()
            took.append(time.monotonic() - began)
        took.sort()
        return {"p50": took[100], "p99": took[197]}

    def flood(self) -> None:
        """Uploads, one after the other, until this process is killed."""
        while True:
            for step in (self.lease, self.fetch, self.make, self.send):
                step()

    def outlast(self) -> dict[str, list[float]]:
        """Cycles for twenty seconds, whatever happens to the server; when each was accepted, on the monotonic clock."""
        until, accepted = time.monotonic() + 20, []
        while time.monotonic() < until:
            try:
                self.lease()
                self.fetch()
                self.make()
                self.send()
                accepted.append(time.monotonic())
            except (Unavailable, Conflict):
                time.sleep(POLL)
        return {"accepted": accepted}

    def attend(self) -> None:
        """Open the session, as a running agent does, and take a lease."""
        listener = Listener(
            lambda: None, lambda job, status: None, lambda lease, why: None, lambda why: None, lambda e: None
        )
        session = Session(self._c.client, self._site.progress, listener, self._stop)
        threading.Thread(target=session.run, daemon=True).start()
        self.lease()
        time.sleep(1.0)  # the server has heard of us

    def peak(self) -> dict[str, float]:
        """Of this process: the agent's client, outbox and cycle, without training."""
        return {"bytes": peak_memory(os.getpid())}


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    home, job, size, seed = sys.argv[1:]
    with connect(Home(Path(home))) as connection:
        obey(Silo(connection, job, int(size), int(seed)))


if __name__ == "__main__":
    main()
