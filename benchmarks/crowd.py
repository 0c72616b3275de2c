"""Many connected agents in one process: each has its own identity, channel and session, and does nothing else.

python -m benchmarks.crowd DIRECTORY_OF_HOMES
"""

import sys
import threading
from pathlib import Path

import structlog

from benchmarks.gauge import obey
from silo_agent import identity
from silo_agent.client import Client
from silo_agent.config import Home
from silo_agent.session import Listener, Progress, Session

IGNORE = Listener(
    lambda: None, lambda job, status: None, lambda lease, why: None, lambda why: None, lambda error: None
)


def attend(home: Home, stop: threading.Event) -> None:
    who = identity.load(home.identity)
    client = Client(who.federation.server, who.ca, who.key, who.chain, None)
    session = Session(client, Progress(), IGNORE, stop)
    threading.Thread(target=session.run, name=who.silo, daemon=True).start()


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    stopping = threading.Event()
    for directory in sorted(Path(sys.argv[1]).iterdir()):
        attend(Home(directory), stopping)
    obey(object())
