import os
import sys
import threading
from pathlib import Path

import pytest

from anabranch.errors import Refused
from console.demo.federation import free_ports
from console.demo.processes import Children

SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_leaving_the_block_ends_every_child(tmp_path: Path) -> None:
    pids: list[int] = []

    def interrupted() -> None:
        with Children(tmp_path / "logs") as children:
            for name in ("a", "b"):
                children.start(name, SLEEPER)
            pids.extend(child.process.pid for child in children.running.values())
            children.check()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(pids) == 2
    assert not any(alive(pid) for pid in pids)


def test_a_dead_child_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    dying = [sys.executable, "-c", "print('first words'); raise SystemExit('disk on fire')"]
    with Children(tmp_path) as children:
        children.start("server", dying)
        children.running["server"].process.wait()
        with pytest.raises(Refused, match=r"server ended with exit code 1(?s:.*)disk on fire"):
            children.check()


def test_a_killed_child_is_no_longer_watched(tmp_path: Path) -> None:
    with Children(tmp_path) as children:
        children.start("server", SLEEPER)
        pid = children.running["server"].process.pid
        assert children.kill("server") > 0
        assert not alive(pid)
        children.check()


def test_a_failed_step_says_why_and_stops_the_others(tmp_path: Path) -> None:
    failing = [sys.executable, "-c", "raise SystemExit('token used')"]
    threads = threading.active_count()
    with Children(tmp_path) as children, pytest.raises(Refused, match="token used"):
        children.run({"bad": failing, "good": [sys.executable, "-c", "pass"]})
    assert threading.active_count() == threads


def test_ports_differ() -> None:
    ports = free_ports()
    assert len({ports.server, ports.enrolment, ports.health}) == 3
