import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from anabranch import durable
from silo_agent import agent as agent_module
from silo_agent import worker
from silo_agent.agent import Agent, connect
from silo_agent.config import Home
from silo_agent.enrol import enrol
from silo_agent.training.isolation import Isolation
from tests.silo_agent.running import Running
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


@pytest.fixture
def job(tmp_path: Path) -> Callable[[str], Path]:
    def make(code: str) -> Path:
        folder = tmp_path / "code"
        folder.mkdir(exist_ok=True)
        (folder / "task.py").write_text(code)
        return folder

    return make


@pytest.fixture
def interpreter(tmp_path: Path) -> Path:
    path = tmp_path / "python"
    program = Path(__file__).with_name("runner.py")
    path.write_text(
        f'#!/bin/sh\ncase "$*" in\n*training.runner*) exec {sys.executable} {program};;\n'
        f'*) exec {sys.executable} "$@";;\nesac\n'
    )
    path.chmod(0o755)
    return path


@pytest.fixture
def start(enrolled: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Running]]:
    monkeypatch.setattr(agent_module, "LOOK", 0.05)
    monkeypatch.setattr(agent_module, "available", lambda *_: Isolation("none", "NOT ISOLATED: a test"))
    monkeypatch.setattr(worker, "PAUSES", (0.07, 0.09))
    running: list[Running] = []

    def begin() -> Running:
        failure: list[BaseException] = []
        ready = threading.Event()

        def body() -> None:
            with connect(enrolled) as connection:
                agent = Agent(connection)
                running.append(Running(agent, thread, enrolled, failure))
                ready.set()
                try:
                    agent.run()
                except BaseException as error:
                    failure.append(error)

        thread = threading.Thread(target=body)
        thread.start()
        ready.wait(10)
        return running[-1]

    yield begin
    for one in running:
        one.stop()
