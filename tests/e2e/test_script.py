"""A script with its own loop, and an agent behind an HTTP proxy: over real processes."""

import select
import shutil
import socket
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.federation import Federation

SCRIPT = Path(__file__).parents[2] / "examples" / "digits-script"


class Tunnel(socketserver.StreamRequestHandler):
    """One CONNECT, then bytes both ways until one end closes."""

    def handle(self) -> None:
        verb, target, _ = self.rfile.readline().decode().split()
        while self.rfile.readline().strip():
            pass
        assert verb == "CONNECT"
        self.server.asked.append(target)  # type: ignore[attr-defined]
        host, _, port = target.rpartition(":")
        with socket.create_connection((host, int(port))) as far:
            self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            ends = {self.connection: far, far: self.connection}
            while True:
                for end in select.select(list(ends), [], [])[0]:
                    data = end.recv(65536)
                    if not data:
                        return
                    ends[end].sendall(data)


class Proxy(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


@pytest.fixture
def proxy() -> Iterator[tuple[int, list[str]]]:
    """A real HTTP CONNECT proxy: its port, and what it was asked to connect to."""
    with Proxy(("127.0.0.1", 0), Tunnel) as server:
        server.asked = asked = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1], asked
        server.shutdown()


def test_through_an_http_connect_proxy(federation: Federation, proxy: tuple[int, list[str]]) -> None:
    port, asked = proxy
    federation.enrol("hospital-a")
    (federation.silo_dir("hospital-a") / "agent.toml").write_text(f'proxy = "http://127.0.0.1:{port}"\n')
    federation.agent("hospital-a")
    job = federation.submit(versions=2)
    federation.approve("hospital-a", job)
    assert federation.finish(job)["head"] == 2
    assert set(asked) == {f"localhost:{federation.ports[0]}"}


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
    text = text.replace("min = 2", "min = 1").replace("versions = 20", "versions = 4").replace("every = 5", "every = 2")
    (folder / "job.toml").write_text(text.replace("buffer = 2", "buffer = 1"))
    job = str(federation.call("anabranch", "job", "submit", folder)["job"])
    federation.approve("hospital-a", job)
    status = federation.finish(job)
    assert status["head"] == 4
    assert status["evaluations"], federation.logs()
    federation.verified()
