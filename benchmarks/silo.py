"""One silo of a measurement: the agent's own client, outbox and cycle, told what to do line by line.

    python -m benchmarks.silo HOME JOB DELTA SCRATCH [REFERENCE_PORT]

Only training is replaced: the "trainer" of a cycle copies a delta that was made before the clock started.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from benchmarks import bare
from silo_agent import approval
from silo_agent.agent import Connection, connect
from silo_agent.config import Home
from silo_agent.cycle import Cycle, Site
from silo_agent.messages import Lease
from silo_agent.outbox import Outbox, Pending
from silo_agent.session import Progress
from silo_agent.trainer import Watch
from silo_agent.training.channel import Train, Trained

POLL = 0.02  # seconds


@dataclass
class Numbers:
    """A trainer whose result lies ready."""

    delta: Path

    def train(self, request: Train, _watch: Watch) -> Trained:
        out = Path(request["out"])
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.delta, out)
        return {"is": "trained", "cycle": request["cycle"], "num_examples": 1, "steps": 1, "metrics": {}}


class Silo:
    """Each method is one command; its seconds are the answer."""

    def __init__(self, connection: Connection, job: str, delta: Path, scratch: Path, port: int | None) -> None:
        self._c, self._job, self._delta, self._scratch = connection, job, delta, scratch
        self._site = Site(
            home=connection.home,
            who=connection.who,
            client=connection.client,
            log=connection.log,
            outbox=Outbox(connection.home.outbox),
            progress=Progress(),
            keep_models=1,
            pause=self._pause,
        )
        self._proposal = next(
            approval.examine(offered, connection.log)
            for offered in connection.client.jobs()
            if offered.id == job
        )
        self._cycle: Cycle | None = None
        self._base = self._pending = None  # type: Any
        self._bare = (
            bare.Client(port, connection.who.ca, connection.who.key, connection.who.chain) if port else None
        )

    def lease(self) -> None:
        """Ask until there is a task; the lease's proof is checked."""
        while not isinstance(task := self._c.client.next_task(self._job), Lease):
            time.sleep(POLL)
        self._cycle = Cycle(self._site, self._proposal, task, lambda: None, lambda: None)
        self._cycle._prove_lease()

    def fetch(self) -> None:
        """The leased version, hashed, proven in the log and synced to this silo's disk."""
        shutil.rmtree(self._c.home.job(self._job) / "models", ignore_errors=True)
        self._base = self._now._fetch()

    def make(self) -> None:
        """The local half of a cycle: check, copy, hash and sign the delta, all durable."""
        self._pending = self._now._train(Numbers(self._delta), self._base)  # type: ignore[arg-type]

    def send(self) -> None:
        """Upload; return with the server's receipt proven."""
        pending: Pending = self._pending
        reason = self._site.sender.deliver(pending)
        assert not reason, reason

    def get(self) -> None:
        assert self._bare is not None
        self._bare.get(self._scratch)

    def put(self) -> None:
        assert self._bare is not None
        self._bare.put(self._delta)

    def finish(self) -> None:
        assert self._bare is not None
        self._bare.finish()

    @property
    def _now(self) -> Cycle:
        assert self._cycle is not None
        return self._cycle

    @staticmethod
    def _pause(seconds: float) -> bool:
        time.sleep(seconds)
        return False


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    home, job, delta, scratch = (Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    port = int(sys.argv[5]) if len(sys.argv) > 5 else None
    with connect(Home(home)) as connection:
        silo = Silo(connection, job, delta, scratch, port)
        print("ready", flush=True)
        for line in sys.stdin:
            command: Callable[[], None] = getattr(silo, line.strip())
            began = time.monotonic()
            command()
            print(json.dumps({"began": began, "ended": time.monotonic()}), flush=True)


if __name__ == "__main__":
    main()
