from collections.abc import Iterator

import pytest

from tests.simulation.once import prepare
from tests.simulation.search import Simulator


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    prepare()
    made = Simulator(versions=2)
    yield made
    made.close()
