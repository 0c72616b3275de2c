"""The reference: what gRPC for Python alone can do with the same certificates, chunks and cores.

A server that adds float32 chunks to an accumulator, with or without writing them down first, and a client that streams
a file to it and fetches the sum back. It checks nothing, remembers nothing, and dies with its process.

    python -m benchmarks.bare serve DIRECTORY SIZE durable|memory      (started by benchmarks.rounds)
    python -m benchmarks.bare silo HOME PORT DELTA COPY
"""

import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from anabranch.wire import tls
from benchmarks.gauge import obey
from silo_agent import identity

CHUNK = 1 << 20


class Bare:
    """`Put` takes a stream of chunks; `Get` streams the sum; `Finish` ends a round, durably if asked."""

    def __init__(self, directory: Path, size: int, durable: bool) -> None:
        self._directory, self._durable = directory, durable
        self._sum = np.zeros(size // 4, np.float32)
        self._lock = threading.Lock()
        self._updates = count()
        self._model = directory / "model"
        self._write_model()

    def put(self, chunks: Iterator[bytes], _context: Any) -> bytes:
        path = self._directory / f"update-{next(self._updates)}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) if self._durable else -1
        offset = 0
        for chunk in chunks:
            if self._durable:
                os.write(fd, chunk)
            values = np.frombuffer(chunk, np.float32)
            with self._lock, np.errstate(over="ignore", invalid="ignore"):
                part = self._sum[offset : offset + values.size]
                np.add(part, values, out=part)
            offset += values.size
        if self._durable:
            os.fdatasync(fd)
            os.close(fd)  # the file stays: who promises durability may not give its pages back at once
        return b""

    def get(self, _request: bytes, _context: Any) -> Iterator[bytes]:
        with open(self._model, "rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk

    def finish(self, _request: bytes, _context: Any) -> bytes:
        self._write_model()
        return b""

    def _write_model(self) -> None:
        with open(self._model, "wb") as file:
            file.write(self._sum.data)
            if self._durable:
                os.fdatasync(file.fileno())


def serve(directory: Path, size: int, durable: bool) -> None:
    """Serve on a free port of the loopback and print it, until standard input ends."""
    bare = Bare(directory, size, durable)
    server = grpc.server(ThreadPoolExecutor(32), options=tls.SERVER_OPTIONS)
    handlers = {
        "Put": grpc.stream_unary_rpc_method_handler(bare.put),
        "Get": grpc.unary_stream_rpc_method_handler(bare.get),
        "Finish": grpc.unary_unary_rpc_method_handler(bare.finish),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Bare", handlers),))
    key, chain, ca = ((directory / name).read_bytes() for name in ("key.pem", "cert.pem", "ca.pem"))
    credentials = grpc.ssl_server_credentials([(key, chain)], ca, require_client_auth=True)
    port = server.add_secure_port("localhost:0", credentials)
    server.start()
    print(port, flush=True)
    sys.stdin.read()
    server.stop(None)


class Silo:
    """One client; its methods are the commands of a worker."""

    def __init__(self, home: Path, port: int, delta: Path, copy: Path) -> None:
        who = identity.load(home / "identity")
        channel = tls.channel(f"localhost:{port}", who.ca, who.key, who.chain)
        self._put = channel.stream_unary("/Bare/Put")
        self._get = channel.unary_stream("/Bare/Get")
        self._finish = channel.unary_unary("/Bare/Finish")
        self._delta, self._copy = delta, copy

    def put(self) -> None:
        with open(self._delta, "rb") as file:
            self._put(iter(lambda: file.read(CHUNK), b""))

    def get(self) -> None:
        """The model on this silo's disk, synced."""
        with open(self._copy, "wb") as file:
            for chunk in self._get(b""):
                file.write(chunk)
            file.flush()
            os.fdatasync(file.fileno())

    def finish(self) -> None:
        self._finish(b"")


if __name__ == "__main__":
    what, where, *more = sys.argv[1:]
    if what == "serve":
        serve(Path(where), int(more[0]), more[1] == "durable")
    else:
        obey(Silo(Path(where), int(more[0]), Path(more[1]), Path(more[2])))
