import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from anabranch import durable
from silo_agent.config import Home
from silo_agent.enrol import enrol
from tests.silo_agent.world import World, make_authority


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def fresh_logging() -> None:
    """Commands configure it for their process."""
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests kill threads, not the power: the order of writes is real, the disk's own cache is not waited for."""
    monkeypatch.setattr(durable, "sync_dir", lambda path: None)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path, make_authority(tmp_path / "ca"))
    made.log.append_raw(b"first")
    made.serve()
    yield made
    made.stop()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "silo")


@pytest.fixture
def enrolled(world: World, home: Home) -> Home:
    enrol(home, world.bundle(), time.time())
    return home


@pytest.fixture
def until() -> Callable[..., None]:
    def wait(holds: Callable[[], object], seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, "it did not happen"
            time.sleep(0.02)

    return wait
