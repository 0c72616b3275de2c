from collections.abc import Iterator

import pytest

from tests.e2e.federation import Federation
from tests.hostility.target import Target


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """One server process for all tests of a file: each leaves it as able as it was."""
    running = Target(Federation(tmp_path_factory.mktemp("target"))).create()
    yield running
    running.close()
