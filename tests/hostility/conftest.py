import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.federation import Federation
from tests.hostility.target import FEW, Target


@contextmanager
def few_files() -> Iterator[None]:
    """What a child process inherits: so few open files that strangers' connections alone would take them all."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """One server process for all tests of a file: each leaves it as able as it was."""
    with few_files():
        running = Target(Federation(tmp_path_factory.mktemp("target"))).create()
    yield running
    running.close()
