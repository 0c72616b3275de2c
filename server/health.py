"""Health and metrics on a plaintext port of their own, for probes that have no certificate.

Nothing here says what is trained, and who is connected only with `[metrics] name_silos` in server.toml. The port is for the
machine or the cluster, not for silos.
"""

import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from anabranch.errors import Unavailable, wording

REQUEST_SECONDS = 5  # a probe that says nothing for this long is hung up on


class Health:
    """`/healthz`: this process can still do its work; `/readyz`: it accepts calls; `/metrics`: Prometheus.

    Both callables return "" when all is well and otherwise one line on what is not; they are called from other
    threads and must not block. Raises Unavailable when the port is taken.
    """

    def __init__(self, address: str, ailing: Callable[[], str], unready: Callable[[], str]) -> None:
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        checks = {"/healthz": ailing, "/readyz": unready}

        class Server(ThreadingHTTPServer):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        class Handler(BaseHTTPRequestHandler):
            timeout = REQUEST_SECONDS

            def do_GET(self) -> None:
                if self.path == "/metrics":
                    self._answer(200, generate_latest(), CONTENT_TYPE_LATEST)
                elif self.path in checks:
                    fault = checks[self.path]()
                    self._answer(503 if fault else 200, f"{fault or 'ok'}\n".encode(), "text/plain")
                else:
                    self._answer(404, b"/healthz /readyz /metrics\n", "text/plain")

            def _answer(self, status: int, body: bytes, kind: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Probes come every few seconds; they are not news."""

        try:
            self._server = Server((host, int(port)), Handler)
        except OSError as error:
            raise Unavailable(
                f"cannot listen on {address} ([listen] health in server.toml): {wording(error)}; stop what listens there, "
                "or choose another port"
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
