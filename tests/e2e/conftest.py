from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.federation import Federation


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    running = Federation(tmp_path)
    running.create()
    yield running
    running.close()
