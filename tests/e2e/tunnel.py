"""A real HTTP CONNECT proxy in a thread of the test."""

import select
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Proxy:
    port: int
    asked: list[str] = field(default_factory=list)  # "host:port" of every CONNECT
    bytes_per_second: float = float("inf")  # from the agent to the server


@contextmanager
def connect_proxy() -> Iterator[Proxy]:
    proxy = Proxy(0)

    class Tunnel(socketserver.StreamRequestHandler):
        """One CONNECT, then bytes both ways until one end closes."""

        def handle(self) -> None:
            verb, target, _ = self.rfile.readline().decode().split()
            while self.rfile.readline().strip():
                pass
            assert verb == "CONNECT"
            proxy.asked.append(target)
            host, _, port = target.rpartition(":")
            with socket.create_connection((host, int(port))) as far:
                self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                self.carry(far)

        def carry(self, far: socket.socket) -> None:
            ends = {self.connection: far, far: self.connection}
            while True:
                for end in select.select(list(ends), [], [])[0]:
                    try:
                        data = end.recv(65536)
                        ends[end].sendall(data)
                    except OSError:
                        return
                    if not data:
                        return
                    if end is self.connection:
                        time.sleep(len(data) / proxy.bytes_per_second)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Tunnel) as server:
        proxy.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield proxy
        server.shutdown()
