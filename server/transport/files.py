"""Bulk data between streams and disk: a thread works on the next bytes while these travel."""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from anabranch.errors import Reason, Refused
from anabranch.wire import limits
from anabranch.wire.squeeze import unsqueeze
from anabranch.wire.values import Bytes

T = TypeVar("T")
Bulk = Any  # a message of a bulk request as `codec.chunk_or` reads it: a chunk, or a message with a header or a chunk
BREAK_SECONDS = 1.0
READ = 2 * limits.CHUNK  # bytes a thread reads at once: waking it costs as much as reading one chunk


def in_thread(call: Callable[..., T], *arguments: object) -> "asyncio.Future[T]":
    """Start a synchronous call now. Await it under `asyncio.shield`: a thread cannot be cancelled, and what it uses
    must stay until it is done.
    """
    return asyncio.get_running_loop().run_in_executor(None, call, *arguments)


async def settled(work: "asyncio.Future[T]") -> T:
    """The result of a thread, waited for to the end even while being cancelled: only then may its file be closed."""
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError as error:
            cancelled = error
        except Exception:
            break  # the work's own; raised below
    if cancelled is not None:
        raise cancelled
    return work.result()


async def read_chunks(path: Path, offset: int) -> AsyncGenerator[memoryview, None]:
    """The file from `offset` on, in chunks of at most limits.CHUNK bytes. Raises Refused(SIZE_LIMIT) behind its end."""
    descriptor = await settled(in_thread(os.open, path, os.O_RDONLY | os.O_CLOEXEC))
    reading: asyncio.Future[bytes] | None = None
    try:
        size = os.fstat(descriptor).st_size
        if offset > size:
            raise Refused(Reason.SIZE_LIMIT, f"there are {size} bytes; {offset} is behind their end")
        reading = in_thread(os.pread, descriptor, READ, offset)
        while read := memoryview(await asyncio.shield(reading)):
            offset += len(read)
            reading = in_thread(os.pread, descriptor, READ, offset)
            for start in range(0, len(read), limits.CHUNK):
                yield read[start : start + limits.CHUNK]
    finally:
        try:
            if reading is not None:
                await settled(reading)
        finally:
            os.close(descriptor)


async def header_of(messages: AsyncIterator[Bulk]) -> Any:
    """What the first message of a bulk request announces. Raises Refused(MALFORMED)."""
    first = await anext(messages, None)
    if first is None or isinstance(first, memoryview) or first.WhichOneof("body") != "header":
        raise Refused(Reason.MALFORMED, "a bulk request begins with its header")
    return first.header


async def chunks_of(messages: AsyncIterator[Bulk]) -> AsyncIterator[Bytes]:
    """What follows the header. Raises Refused: MALFORMED, SIZE_LIMIT."""
    async for message in messages:
        kind = "bytes" if isinstance(message, memoryview) else message.WhichOneof("body")
        if kind == "zstd":
            yield await settled(in_thread(unsqueeze, message.zstd))
            continue
        if kind not in ("bytes", "chunk"):
            raise Refused(Reason.MALFORMED, "after its header a bulk request carries chunks only")
        chunk = message if kind == "bytes" else message.chunk
        if len(chunk) > limits.CHUNK:
            raise Refused(Reason.SIZE_LIMIT, f"chunk of {len(chunk)} bytes; at most {limits.CHUNK}")
        yield chunk


async def pour(chunks: AsyncIterator[Bytes], take: Callable[[Bytes], None]) -> None:
    """Hand every chunk to `take`, in order, in a thread. When this returns or raises, `take` is not running."""
    taking: asyncio.Future[None] | None = None
    try:
        async for chunk in chunks:
            if taking is not None:
                await asyncio.shield(taking)
            taking = in_thread(take, chunk)
        if taking is not None:
            await asyncio.shield(taking)
    except BaseException:
        if taking is not None:
            with suppress(Exception, asyncio.CancelledError):
                await settled(taking)
        raise


async def ended_short() -> None:
    """Call when a request stream ended before all that it announced had come.

    gRPC reports a broken stream as an ended one first and cancels the call a moment later. Whoever is still here
    afterwards was sent too little on purpose.
    """
    await asyncio.sleep(BREAK_SECONDS)
