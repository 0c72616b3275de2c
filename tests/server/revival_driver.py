"""A job with revivals that dies by SIGKILL at GAP in its event EVENT, and goes on where it was.

python -m tests.server.revival_driver DIRECTORY EVENT GAP
"""

import os
import signal
import sys
from pathlib import Path

from server.reviving import RevivalTask
from server.state import records
from tests.server import strategy_driver as driver
from tests.server.harness import Server, fake_silo
from tests.server.reviver import NAME, allow, distil, submit

TERMS = """
[evaluation]
every = 50
[silos]
min = 3
[aggregation]
buffer = 2
ema = 0.9
server_optimizer = { name = "adam", lr = 0.1 }
[revival]
freeze = 1
warmup = 1
gain = 0.3
"""
EVENTS = [
    *("hold c", "send a", "send b", "advance", "revive", "send a", "deliver c", "advance"),
    *("revive", "silence a", "send b", "send c", "advance", "revive", "send b", "send c", "advance"),
]
REVIVED = EVENTS.index("revive")
USED = EVENTS.index("advance", REVIVED)


def begin(server: Server) -> None:
    driver.begin(server)
    silos = [driver.enrol(server, name) for name in "abc"]
    job, terms = server.submit(TERMS, driver.LAYOUT)
    for silo in silos:
        allow(server, silo, job, terms, True)
    (server.directory / "job").write_text(job)
    (server.directory / "played").write_text("0")


def play(server: Server, armed_at: int = -1) -> str:
    """The rest of the history; the job. What is done already is written to `played`."""
    played = server.directory / "played"
    if not played.exists():
        begin(server)
    job = (server.directory / "job").read_text()
    with server.core.reader.connect() as connection:
        terms = records.job_terms(connection, job)
    for event in range(int(played.read_text()), len(EVENTS)):
        server.clock.now = driver.START + driver.PACE * (event + 1)
        what, _, name = EVENTS[event].partition(" ")
        armed[:] = [event] if event == armed_at else []
        match what:
            case "hold":
                server.lease(fake_silo(name), job)
            case "send" | "deliver":
                driver.send(server, fake_silo(name), job, terms, event)
            case "advance":
                while server.core.aggregation.advance(job):
                    pass
            case "silence":
                allow(server, fake_silo(name), job, terms, False)
            case "revive":
                task = server.core.reviving.claim(NAME)
                if isinstance(task, RevivalTask):  # else its result is there
                    submit(server, task, distil(server, task, driver.LAYOUT))
        played.write_text(str(event + 1))
    return job


armed: list[int] = []


def main() -> None:
    directory, event, gap = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

    def reached(name: str) -> None:
        if armed and name == gap:
            os.kill(os.getpid(), signal.SIGKILL)

    play(Server(directory, reached), event)


if __name__ == "__main__":
    main()
