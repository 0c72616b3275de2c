"""What the long simulation found, each by the sentence it broke and the seed it was found under."""

import pytest

from tests.simulation.operations import Approve, Join, Operation, SubmitJob, Turn
from tests.simulation.search import Simulator

pytestmark = pytest.mark.soak


def test_a_job_whose_model_stays_as_it_was_completes(simulator: Simulator) -> None:
    """Seeds 7000002 and 6000045: updates cancelled out, two versions had one digest, and nobody could fetch the second."""
    sequence: list[Operation] = [Join(0), SubmitJob(1), Approve(0, 0), Turn(0, 0, "still")]
    assert simulator.run(1, sequence).updates > 1
