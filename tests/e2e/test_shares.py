"""Two jobs that share a silo as the server says, by real processes: the agent asks for one job at a time."""

from itertools import pairwise

import pytest

from tests.e2e.federation import TASK, Federation
from tests.e2e.test_two_jobs import submit

pytestmark = pytest.mark.timeout(560)  # training processes import torch, and each change of jobs starts one


@pytest.mark.parametrize("policy", ["", 'jobs_at_once = 1\nturn = "1h"\n'])
def test_jobs_take_the_leases_the_server_keeps_for_them(federation: Federation, policy: str) -> None:
    """Also where the silo would let a job go on for an hour: one that is told to wait gives its turn up."""
    federation.kill("server")
    settings = federation.server_dir / "server.toml"
    settings.write_text(settings.read_text().replace('allocation = "turns"', 'allocation = "fedast"'))
    federation.serve()
    federation.enrol("hospital-a", policy=policy)
    jobs = [submit(federation, name, TASK, ["hospital-a"], 3) for name in ("one", "other")]
    shares = [federation.status(job)["share"] for job in jobs]
    assert [share["leases"] for share in shares] == [1, 1]
    federation.agent("hospital-a")
    for job in jobs:
        assert federation.finish(job)["head"] == 3
    order: list[str] = []
    holder = None
    for entry in federation.entries():
        trains = entry["type"] == "lease.issued" and entry["detail"]["kind"] == "train"
        if trains:
            assert holder is None, "a training lease was issued while the silo trained for another job"
            holder = entry["job"]
            order.append(holder)
        elif entry["type"] in ("update.received", "update.refused", "lease.released"):
            holder = None
    assert len(order) == 6
    assert sum(one != other for one, other in pairwise(order)) >= 3, order
    federation.verified()
