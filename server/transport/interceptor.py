"""Between gRPC and the servicers: every call of all four kinds goes through `Door._serve`.

Handlers are registered for raw bytes and for streams of requests, so the caller is known before a byte of its message is
taken, and a message is measured and charged to its sender before it is parsed. Servicers see messages and a `Peer`, never
gRPC; what they raise becomes a status here and nowhere else.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any, Protocol, cast

import grpc
import structlog
from google.protobuf.message import DecodeError

from anabranch import durable
from anabranch.errors import AnabranchError, Corrupt, Reason, Refused, Unavailable
from anabranch.wire import codec, limits
from anabranch.wire.status import to_status
from server import metrics
from server.transport.calls import Call, Calls
from server.transport.failures import Failures
from server.transport.files import ended_short
from server.transport.peer import certificate

logger = structlog.get_logger("transport")

SILENCE = 60.0  # seconds a stream may be without a message, in either direction
ANSWER = 60.0  # seconds a unary call may take; what it started goes on, and asking again finds it
SMALL = 64 * limits.KIB  # messages below count as calls: nobody sends bulk data in crumbs
CONTROL = 128 * limits.KIB  # the largest message of a method that carries no bulk data
BULK = frozenset({"Updates/Submit", "Admin/SubmitJob", "Revival/Submit"})


class Entrance(Protocol):
    """Who is let in; raises Refused."""

    @property
    def calls(self) -> Calls: ...

    async def admit(self, method: str, context: Any) -> Call: ...


@dataclass(frozen=True)
class Route:
    """One method as gRPC knows it."""

    name: str  # "Service/Method"
    largest: int  # bytes of one request message
    request_streaming: bool
    response_streaming: bool
    behaviour: Callable[[Any, Any], Any]
    parse: Callable[[bytes], Any]
    serialise: Callable[[Any], bytes]


class Door:
    """A gRPC server interceptor, one per port."""

    def __init__(self, entrance: Entrance, failures: Failures) -> None:
        self._entrance = entrance
        self._calls = entrance.calls
        self._failures = failures
        self._handlers: dict[str, Any] = {}

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        """The handler gRPC runs instead of the registered one; None for a method we do not serve."""
        guarded = self._handlers.get(details.method)
        if guarded is None:
            handler = await continuation(details)
            if handler is None:
                return None
            guarded = self._handlers[details.method] = self._guard(_route(details.method, handler))
        return guarded

    def _guard(self, route: Route) -> Any:
        async def call(incoming: Any, context: Any) -> bytes | None:
            return await self._serve(route, incoming, context)

        # A single request is a stream of one, the same bytes on the wire; gRPC would take it before it asks us.
        if route.response_streaming:
            return grpc.stream_stream_rpc_method_handler(call)
        return grpc.stream_unary_rpc_method_handler(call)

    async def _serve(self, route: Route, incoming: Any, context: Any) -> bytes | None:
        """One call, from its caller's identity to its status."""
        call: Call | None = None
        address = context.peer()  # gRPC forgets it when the call fails
        try:
            call = await self._entrance.admit(route.name, context)
            reply = await self._run(route, call, incoming, context)
        except asyncio.CancelledError:
            if call is None or not call.ended:
                # The caller has gone, or this server is going, or gRPC ended the call over the size of a message.
                logger.info(
                    "a call was cut off",
                    method=route.name,
                    **_owner(call, address, context),
                )
                raise
            call.task.uncancel()
            failure: Exception = Refused(Reason.REVOKED_IDENTITY, call.ended)
        except grpc.aio.BaseError:
            raise  # gRPC's own: the connection broke
        except Exception as error:
            failure = error
        else:
            metrics.CALLS.labels(route.name, "OK").inc()
            return reply
        finally:
            if call is not None:
                self._calls.leave(call)
        await self._fail(route, failure, context, _owner(call, address, context))
        return None

    async def _run(self, route: Route, call: Call, incoming: Any, context: Any) -> bytes | None:
        async with AsyncExitStack() as stack:
            messages = await stack.enter_async_context(aclosing(self._messages(route, call, incoming)))
            request = messages if route.request_streaming else await _only(route, messages)
            if not route.response_streaming:
                async with asyncio.timeout(None if route.request_streaming else ANSWER):
                    return _serialise(route, await route.behaviour(request, call.peer))
            replies = await stack.enter_async_context(aclosing(route.behaviour(request, call.peer)))
            async for reply in replies:
                async with asyncio.timeout(SILENCE):
                    await context.write(_serialise(route, reply))
            return None

    async def _messages(self, route: Route, call: Call, incoming: Any) -> AsyncGenerator[Any, None]:
        """Requests of a stream. Raises Unavailable when the caller falls silent: a stream costs memory and a file."""
        stream = aiter(incoming)
        while True:
            try:
                async with asyncio.timeout(SILENCE):
                    data = await anext(stream)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise Unavailable(
                    f"no message for {SILENCE:.0f} s; what arrived is kept, continue later"
                ) from None
            yield self._parse(route, call, data)

    def _parse(self, route: Route, call: Call, data: bytes) -> Any:
        """Raises Refused: SIZE_LIMIT, QUOTA, MALFORMED, in this order."""
        if len(data) > route.largest:
            raise Refused(
                Reason.SIZE_LIMIT, f"{route.name}: message of {len(data)} bytes; at most {route.largest}"
            )
        metrics.BYTES_IN.inc(len(data))
        self._calls.received(call, len(data), small=route.request_streaming and len(data) < SMALL)
        try:
            return route.parse(data)
        except DecodeError as error:
            raise Refused(
                Reason.MALFORMED, f"{route.name}: the message is not what its schema says"
            ) from error

    async def _fail(self, route: Route, failure: Exception, context: Any, who: Mapping[str, str]) -> None:
        """Turn an error into a status; does not return."""
        if isinstance(failure, Refused):
            self._failures.count(failure, route.name, who)
        if isinstance(failure, TimeoutError):
            failure = Unavailable(f"{route.name} took too long; ask again")
        if isinstance(failure, Corrupt):
            logger.error("storage is damaged", method=route.name, error=str(failure), **who)
        elif isinstance(failure, OSError) and failure.errno in durable.UNWRITABLE:
            logger.error("the disk takes nothing", method=route.name, error=str(failure), **who)
        elif not isinstance(failure, AnabranchError):
            logger.error("a call met a bug", method=route.name, exc_info=failure, **who)
        code, message, metadata = to_status(failure)
        metrics.CALLS.labels(route.name, code.name).inc()
        await context.abort(code, message, metadata)


# gRPC asks for an instance of its abstract class, which has nothing to inherit.
cast(Any, grpc.aio.ServerInterceptor).register(Door)


def _route(path: str, handler: Any) -> Route:
    """`path` is "/anabranch.v1.Service/Method"."""
    name = path.rpartition(".")[2]
    behaviours = (handler.unary_unary, handler.unary_stream, handler.stream_unary, handler.stream_stream)
    return Route(
        name=name,
        largest=limits.REQUEST_MESSAGE if name in BULK else CONTROL,
        request_streaming=handler.request_streaming,
        response_streaming=handler.response_streaming,
        behaviour=next(behaviour for behaviour in behaviours if behaviour),
        parse=codec.chunk_or(handler.request_deserializer) if name in BULK else handler.request_deserializer,
        serialise=handler.response_serializer,
    )


def _owner(call: Call | None, address: str, context: Any) -> dict[str, str]:
    who = "nobody" if call is None else call.allowance.who
    return {"who": who, "peer": address, "certificate": certificate(context)}


async def _only(route: Route, messages: AsyncGenerator[Any, None]) -> Any:
    """The request of a method that takes one. Raises Refused(MALFORMED)."""
    request = await anext(messages, None)
    if request is None:
        await ended_short()  # gRPC did not take the message, and is about to say so itself
        raise Refused(Reason.MALFORMED, f"{route.name}: the call ended without a message")
    return request


def _serialise(route: Route, reply: Any) -> bytes:
    data: bytes = reply if isinstance(reply, bytes) else route.serialise(reply)
    metrics.BYTES_OUT.inc(len(data))
    return data
