"""An agent behind an HTTP proxy, an upload that is interrupted, a script with its own loop: over real processes."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.federation import TASK, Federation
from tests.e2e.tunnel import connect_proxy

SCRIPT = Path(__file__).parents[2] / "examples" / "digits-script"


def test_through_an_http_connect_proxy(federation: Federation) -> None:
    with connect_proxy() as proxy:
        federation.enrol("hospital-a")
        settings = federation.silo_dir("hospital-a") / "agent.toml"
        settings.write_text(f'proxy = "http://127.0.0.1:{proxy.port}"\n')
        federation.agent("hospital-a")
        job = federation.submit(versions=2)
        federation.approve("hospital-a", job)
        assert federation.finish(job)["head"] == 2
    assert set(proxy.asked) == {f"localhost:{federation.ports[0]}"}


@pytest.mark.parametrize("victim", ["hospital-a", "server"])
def test_killed_in_mid_upload(federation: Federation, victim: str) -> None:
    """Over a slow line: what was synced is not sent again, and the update is received once."""
    wide = TASK.replace(
        "torch.nn.Linear(8, 2)",
        "torch.nn.Sequential(torch.nn.Linear(8, 200_000), torch.nn.Linear(200_000, 2))",
    )
    with connect_proxy() as proxy:
        federation.enrol("hospital-a")
        settings = federation.silo_dir("hospital-a") / "agent.toml"
        settings.write_text(f'proxy = "http://127.0.0.1:{proxy.port}"\n')
        federation.agent("hospital-a")
        job = federation.submit(task=wide, versions=1)
        proxy.bytes_per_second = 2e6
        federation.approve("hospital-a", job)
        spool = federation.server_dir / "blobs" / "spool"
        federation.until(
            lambda: max((p.stat().st_size for p in spool.iterdir()), default=0) > 2e6, "2 MB arrived"
        )
        federation.kill(victim)
        proxy.bytes_per_second = float("inf")
        if victim == "server":
            federation.serve()
        else:
            federation.agent("hospital-a")
        assert federation.finish(job)["head"] == 1
    sent = float(re.search(r"^anabranch_received_bytes_total (\S+)", federation.metrics(), re.MULTILINE)[1])
    federation.verified()
    [received] = federation.entries("update.received")
    size = received["detail"]["bytes"]
    if victim == "server":
        assert sent < size - 1_500_000  # its predecessor had kept the rest


def test_the_script_example_trains(federation: Federation) -> None:
    """examples/digits-script, as it stands but for the number of silos and versions."""
    federation.enrol("hospital-a")
    data = federation.root / "data" / "digits.npz"
    rng = np.random.default_rng(0)
    x = rng.random((200, 64), dtype=np.float32)
    np.savez(data, x=x, y=(x[:, :10].argmax(1)).astype(np.int64))
    (federation.silo_dir("hospital-a") / "policy.toml").write_text(
        f'[data.digits]\npath = "{data}"\n[run]\nisolation = "allowed-without"\n'
    )
    federation.agent("hospital-a")
    folder = federation.root / "script"
    shutil.copytree(SCRIPT, folder)
    text = (folder / "job.toml").read_text()
    text = (
        text.replace("min = 2", "min = 1")
        .replace("versions = 20", "versions = 4")
        .replace("every = 5", "every = 2")
    )
    (folder / "job.toml").write_text(text.replace("buffer = 2", "buffer = 1"))
    job = str(federation.call("anabranch", "job", "submit", folder)["job"])
    federation.approve("hospital-a", job)
    status = federation.finish(job)
    assert status["head"] == 4
    assert status["evaluations"], federation.logs()
    federation.verified()
