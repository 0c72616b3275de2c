"""What the simulation found: each bug by name, with the seed that found it and the smallest sequence that showed it."""

from collections.abc import Iterator

import pytest

from tests.simulation.operations import Approve, Deliver, Join, Operation, SubmitJob, Together, Train
from tests.simulation.search import Simulator
from tests.simulation.world import configured


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with configured():
        made = Simulator(versions=2)
        yield made
        made.close()


def test_an_update_sent_twice_at_once_is_not_called_refused(simulator: Simulator) -> None:
    """Seed 106. The second stream was refused as replayed, so the silo set an update aside that was admitted and merged.

    The transport lets one stream at a time write an update; the core must not depend on it.
    """
    sequence: list[Operation] = [
        *(Join(silo) for silo in range(2)),
        SubmitJob(1),
        *(Approve(silo, 0) for silo in range(2)),
        Train(0, 0),
        Together((Deliver(0), Deliver(0), Deliver(0))),
    ]
    simulator.run(106, sequence)
