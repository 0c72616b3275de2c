"""A clock that is wrong, at a silo or at the server, from one second to the next: said by name, and harmless.

Staleness counts versions, leases do not run out, and TLS judges certificates by the same wrong clock as we do.
"""

from pathlib import Path

import pytest

from server.serve import judge_clock
from tests.e2e.federation import Federation
from tests.hostility.fault import Fault, make_fault
from tests.server.harness import Server

HOUR, DAY = 3600, 86400
NAMES = {"silo": "hospital-a", "server": "server"}


@pytest.mark.parametrize(
    ("behind", "told"), [(0, False), (50, False), (HOUR, True), (DAY, True), (-DAY, False)]
)
def test_a_server_that_starts_before_its_newest_entry_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], behind: int, told: bool
) -> None:
    """By such a clock TLS turns silos away whose certificates are younger; they would only see a broken handshake."""
    server = Server(tmp_path / "server")
    server.submit()
    judge_clock(server.core.reader, server.clock() - behind)
    said = "".join(
        capsys.readouterr()
    )  # where the log goes depends on whether a server was started in this process
    assert ("set the clock" in said) is told
    server.core.close()


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("where", "seconds"),
    [
        ("silo", HOUR),
        ("silo", -HOUR),
        ("silo", DAY),
        ("silo", -DAY),
        ("server", -HOUR),
        ("server", -DAY),
        ("server", HOUR),
        ("server", DAY),
    ],
)
def test_wrong_time_is_named_and_loses_nothing(tmp_path: Path, where: str, seconds: int) -> None:
    """Off while it runs, still off at a start, and set right while it runs."""
    federation = Federation(tmp_path)
    try:
        federation.create()
        federation.enrol("hospital-a", pause=0.05)
        fault = make_fault(tmp_path, where, tmp_path / "nothing")
        job = federation.submit(versions=8, steps=10)
        federation.approve("hospital-a", job)
        _start(federation, where, fault)
        if where == "server":
            federation.agent("hospital-a")
        federation.until(lambda: federation.status(job)["head"] >= 1, "the first version")
        fault.set(seconds=seconds)
        _start(
            federation, where, fault
        )  # a connection that is open survives; this one is made with the wrong clock
        federation.until(lambda: _told(federation, where), "somebody is told to set the clock")
        fault.set()
        if federation.processes[NAMES[where]].poll() is not None:
            _start(federation, where, fault)
        assert federation.finish(job)["head"] == 8
        federation.verified()
        received = [entry["detail"]["update"] for entry in federation.entries("update.received")]
        merged = [
            one["update"]
            for step in federation.entries("aggregation.performed")
            for one in step["detail"]["inputs"]
        ]
        retired = [entry["detail"]["update"] for entry in federation.entries("update.retired")]
        assert sorted(received) == sorted(merged + retired)
        assert len(merged) == 8
    finally:
        federation.close()


def _start(federation: Federation, where: str, fault: Fault) -> None:
    """Start it anew under `fault`."""
    name = NAMES[where]
    if name in federation.processes:
        federation.kill(name)
    if where == "silo":
        federation.agent(name, env=fault.environment())
    else:
        federation.start(name, "anabranch-server", "serve", federation.server_dir, env=fault.environment())


def _told(federation: Federation, where: str) -> bool:
    """By the silo, whose log its administrator reads; or by a server that does not start."""
    said = (federation.root / "hospital-a.log").read_text()  # no path of this test says "clock"
    own = (federation.root / f"{NAMES[where]}.log").read_text()
    return "clock" in said or "clock" in own
