"""A reviver reads the base and the update of each silo in the form in which its tier has them."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from anabranch.link import Packing
from anabranch.wire.tensors import read_tensors
from reviver import worker
from reviver.client import Client, Task
from reviver.files import JobFiles
from silo_agent.training import archive
from tests.server.edge import Edge
from tests.server.harness import MANIFEST, Server
from tests.server.reviver import allow
from tests.server.test_tiers import TIERED, Told

REVIVED = TIERED + "[revival]\nfreeze = 0\nwarmup = 0\n"


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    server = Server(tmp_path / "server")
    running = Edge(server).start()
    yield running
    running.stop()
    server.core.close()


def test_bases_and_updates_of_several_tiers_are_expanded(
    edge: Edge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, terms = edge.server.submit(REVIVED)
    silos = {name: edge.server.enrol(name) for name in "abd"}
    for silo in silos.values():
        allow(edge.server, silo, job, terms, True)
    told = Told(edge.server, silos, job, terms)
    for name in "abdab":
        told.publish(name)
    monkeypatch.setattr(archive, "unpack", lambda code, folder: None)
    member = edge.reviver()
    ca = edge.membership.authority.ca_pem
    client = Client(f"127.0.0.1:{edge.ports.server_port}", ca, member.key, member.chain, None)
    try:
        task = client.claim([], []).turn
        assert isinstance(task, Task)
        assert [(one.silo, one.version) for one in task.teachers] == [("a", 3), ("b", 4), ("d", 2)]
        files = JobFiles(client, tmp_path / "home")
        of: Any = SimpleNamespace(seconds=[])
        asked = worker._request(task, list(task.teachers), of, files, *files.job(task))
    finally:
        client.close()
    kept = {one["silo"]: (_nonzero(one["base"]), _nonzero(one["delta"])) for one in asked["teachers"]}
    # 15 entries, and every density has been halved so often: once, twice, once.
    assert kept == {"a": (6, 6), "b": (1, 1), "d": (7, 7)}
    assert terms.file.upload(4, "b") == Packing(0.05, "bf16")


def _nonzero(path: str) -> int:
    return sum(int(np.count_nonzero(one)) for one in read_tensors(Path(path), MANIFEST).values())
