"""The network between silos and server: a TCP proxy on loopback that cuts, holds, delays and slices what passes."""

import asyncio
import threading
from contextlib import suppress
from random import Random
from typing import Any

PIECE = 1 << 16


class Wire:
    """Listens on `port` of loopback and carries to `far`. Its faults are set from other threads; `close` ends it."""

    def __init__(self, far: int, seed: int) -> None:
        self._far, self._random = far, Random(f"wire {seed}")
        self._open: set[asyncio.StreamWriter] = set()
        self.delay = 0.0  # seconds, at most, before each piece goes on
        self.slice = 0  # bytes, at most, of what goes on at once; 0: as it comes
        self.held = False  # connections are accepted, and nothing passes
        self.bytes = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="wire", daemon=True)
        self._thread.start()
        self._server = self._do(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]

    def cut(self) -> int:
        """Reset every connection; how many there were."""

        async def reset() -> int:
            ends = list(self._open)
            for end in ends:
                end.transport.abort()
            return len(ends)

        return int(self._do(reset()))

    def calm(self) -> None:
        self.delay, self.slice, self.held = 0.0, 0, False

    def close(self) -> None:
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._far)
        except OSError:  # nobody is listening: a silo sees a connection that is closed at once
            writer.transport.abort()
            return
        ends = {writer, far_writer}
        self._open |= ends
        try:
            await asyncio.gather(self._carry(reader, far_writer), self._carry(far_reader, writer))
        finally:
            self._open -= ends
            for end in ends:
                end.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(PIECE):
                self.bytes += len(data)
                if self.delay:
                    await asyncio.sleep(self._random.uniform(0, self.delay))
                while self.held:  # noqa: ASYNC110 - it is set from another thread
                    await asyncio.sleep(0.05)
                await self._pass_on(data, writer)
        writer.transport.abort()

    async def _pass_on(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        while data:
            size = self._random.randrange(1, self.slice + 1) if self.slice else len(data)
            writer.write(data[:size])
            await writer.drain()
            data = data[size:]
            await asyncio.sleep(0)
