"""What the long simulation found, each by the sentence it broke and the seed it was found under."""

import pytest

from tests.simulation.operations import Aggregate, Approve, Join, Operation, Revoke, SubmitJob, Turn
from tests.simulation.search import Simulator

pytestmark = pytest.mark.soak


def test_a_job_whose_model_stays_as_it_was_completes(simulator: Simulator) -> None:
    """Seeds 7000002 and 6000045: updates cancelled out, two versions had one digest, and nobody could fetch the second."""
    stage: list[Operation] = [Join(0), SubmitJob(1), Approve(0, 0)]
    # Revoked, so that every silo there is at the end has to fetch.
    equal: list[Operation] = [Turn(0, 0, "still"), Aggregate(0), Revoke(0)]
    assert simulator.run(1, [*stage, *equal]).updates > 1
