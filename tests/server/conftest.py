from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.edge import Edge
from tests.server.harness import Server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path / "server")
    yield running
    running.core.close()


@pytest.fixture
def edge(server: Server) -> Iterator[Edge]:
    running = Edge(server).start()
    yield running
    running.stop()
