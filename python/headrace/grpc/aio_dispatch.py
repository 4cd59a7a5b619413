"""From handlers to calls on an asyncio loop. Each call is a task; the Engine takes the core's
events and wakes the task that waits for each."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, NoReturn

import grpc

from headrace.grpc.context import (
    CallContext,
    Metadata,
    number_of,
    run_callbacks,
    text_of,
)
from headrace.grpc.dispatch import HandlerCallDetails, behavior_of, bind, deserialized, serialized

if TYPE_CHECKING:
    from headrace import runtime

__all__ = ["Engine", "ServicerContext"]

_log = logging.getLogger("headrace.grpc")

_INTERNAL: int = grpc.StatusCode.INTERNAL.value[0]
_UNIMPLEMENTED: int = grpc.StatusCode.UNIMPLEMENTED.value[0]
_UNKNOWN: int = grpc.StatusCode.UNKNOWN.value[0]
_CANCELLED: int = grpc.StatusCode.CANCELLED.value[0]
_FINISHED = "RPC already finished."


class ServicerContext(CallContext):
    """grpc.aio.ServicerContext."""

    _abort_error: grpc.aio.AbortError | None = None
    _done = False
    _done_callbacks: list[Callable[[Any], object]] | None = None
    _waiter: asyncio.Future[None] | None = None
    _task: asyncio.Task[None] | None = None
    _deserializer: Callable[[bytes], Any] | None = None
    _serializer: Callable[[Any], bytes] | None = None

    async def read(self) -> Any:
        """The next request, grpc.aio.EOF at their end."""
        message = await self._read()
        if message is None:
            return grpc.aio.EOF
        request = deserialized(message, self._deserializer)
        if request is None:
            self._call.finish(_INTERNAL, "Exception deserializing request!")
            raise grpc.aio.InternalError("Exception deserializing request!")
        return request

    async def write(self, message: Any) -> None:
        if self._done:
            raise grpc.aio.UsageError(_FINISHED)
        data = serialized(message, self._serializer)
        if data is None:
            self._call.finish(_INTERNAL, "Failed to serialize response!")
            raise grpc.aio.InternalError("Failed to serialize response!")
        self._initial_sent = True
        if not self._call.send(data, wait=False):
            raise (
                asyncio.CancelledError
                if self._call.is_cancelled()
                else grpc.aio.UsageError(_FINISHED)
            )
        while not self._call.writable_or_notify():
            await self._event()

    async def send_initial_metadata(self, initial_metadata: Metadata) -> None:
        if self._done:
            raise grpc.aio.UsageError(_FINISHED)
        if self._initial_sent:
            raise grpc.aio.UsageError("Send initial metadata failed: already sent")
        self._call.send_initial_metadata(() if initial_metadata is None else initial_metadata)
        self._initial_sent = True

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()
    ) -> NoReturn:
        if self._abort_error is not None:
            raise grpc.aio.UsageError("Abort already called!")
        if self._done:
            raise grpc.aio.UsageError(_FINISHED)
        if trailing_metadata:
            self.set_trailing_metadata(tuple(self._trailing or ()) + tuple(trailing_metadata))
        if code == grpc.StatusCode.OK:
            _log.error("abort() called with StatusCode.OK; returning UNKNOWN")
            code, details = grpc.StatusCode.UNKNOWN, ""
        self._code = code
        self.set_details(details)
        self._finish()
        self._done = True
        self._abort_error = grpc.aio.AbortError("Locally aborted.")
        raise self._abort_error

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        await self.abort(status.code, status.details, status.trailing_metadata or ())

    def details(self) -> str:  # type: ignore[override]
        return "" if self._details is None else self._details.decode(errors="replace")

    def time_remaining(self) -> float | None:
        return self._call.time_remaining()

    def cancelled(self) -> bool:
        return self._call.is_cancelled()

    def done(self) -> bool:
        return self._done or not self._call.is_active()

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        if self._done_callbacks is None:
            self._done_callbacks = []
        self._done_callbacks.append(callback)

    # --- for the engine ----------------------------------------------------------------------

    async def _read(self) -> bytes | None:
        while True:
            message = self._call.read_nowait()
            if message is True:
                await self._event()
            elif message is False:
                if self._call.is_cancelled():
                    raise asyncio.CancelledError
                return None
            else:
                return message

    async def _event(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _requests(self) -> AsyncIterator[Any]:
        while True:
            request = await self.read()
            if request is grpc.aio.EOF:
                return
            yield request


grpc.aio.ServicerContext.register(ServicerContext)

Serve = Callable[[ServicerContext, "bytes | None"], Awaitable[None]]


def _is_async(behavior: Any) -> bool:
    while hasattr(behavior, "func"):  # functools.partial
        behavior = behavior.func
    return (
        inspect.iscoroutinefunction(behavior)
        or inspect.isasyncgenfunction(behavior)
        or inspect.iscoroutinefunction(getattr(behavior, "__call__", None))  # noqa: B004
        or inspect.isasyncgenfunction(getattr(behavior, "__call__", None))  # noqa: B004
    )


class Engine:
    """The calls of one server. Knows nothing of the Server, so that a dropped one ends."""

    def __init__(
        self,
        core: runtime.Server,
        generic: Sequence[grpc.GenericRpcHandler],
        interceptors: Sequence[Any],
        executor: Executor | None,
        compression: int,
        max_message_bytes: int,
    ) -> None:
        self.generic = list(generic)
        self.methods: dict[str, grpc.RpcMethodHandler] = {}
        self._core = core
        self._interceptors = list(interceptors)
        self._executor = executor
        self._compression = compression
        self._max_message_bytes = max_message_bytes
        self._calls: dict[int, ServicerContext] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._events = core.events()

    # --- life --------------------------------------------------------------------------------

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        for path, handler in self.methods.items():
            run = self._looked_up(handler) if self._interceptors else self._run(handler)
            self._add(path, run, bool(handler.request_streaming), bool(handler.response_streaming))
        self._add("", self._looked_up(None), True, True)
        loop.add_reader(self._events.fileno(), self._on_events)

    def _add(self, path: str, run: Any, request_streaming: bool, response_streaming: bool) -> None:
        self._core.add_method(
            path,
            run,
            pool="events",
            request_streaming=request_streaming,
            response_streaming=response_streaming,
            max_message_bytes=self._max_message_bytes,
            compression=self._compression,
        )

    async def finish(self) -> None:
        """After the core has stopped: until the last handler has ended."""
        self._on_events()
        tasks = [c._task for c in self._calls.values() if c._task is not None]
        if tasks:
            await asyncio.gather(*tasks, return_exceptions=True)
        self._detach()

    def abandon(self) -> None:
        """Any thread: the Server was dropped."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._detach)

    def _detach(self) -> None:
        assert self._loop is not None
        self._loop.remove_reader(self._events.fileno())
        self._core.stop(0.0)

    # --- events ------------------------------------------------------------------------------

    def _on_events(self) -> None:
        calls, events = self._events.drain()
        for run, message, call in calls:
            run(message, call)
        for call_id, event in events:
            if event == "ended":
                self._on_ended(call_id)
            elif (context := self._calls.get(call_id)) is not None:
                context._wake()

    def _on_ended(self, call_id: int) -> None:
        run_callbacks(call_id)  # of handlers on threads
        context = self._calls.get(call_id)
        if context is not None and context._task is not None and context._call.is_cancelled():
            context._task.cancel()

    # --- calls -------------------------------------------------------------------------------

    def _run(self, handler: grpc.RpcMethodHandler) -> Any:
        serve = self._bind(handler)

        def run(message: bytes | None, call: runtime.ServerCall) -> None:
            self._begin(call, message, serve)

        return run

    def _looked_up(self, registered: grpc.RpcMethodHandler | None) -> Any:
        """run() of methods whose handler is looked up for each call."""

        async def find(details: Any) -> grpc.RpcMethodHandler | None:
            if registered is not None:
                return registered
            for generic in self.generic:
                handler = generic.service(details)
                if handler is not None:
                    return handler
            return None

        lookup = find
        for interceptor in reversed(self._interceptors):
            lookup = _behind(interceptor, lookup)

        async def serve(context: ServicerContext, message: bytes | None) -> None:
            call = context._call
            details = HandlerCallDetails(call.method, call.metadata)
            handler = await lookup(details)
            if handler is None:
                call.finish(_UNIMPLEMENTED, "Method not found!")
                return
            await self._bind(handler)(context, message)

        def run(message: bytes | None, call: runtime.ServerCall) -> None:
            self._begin(call, message, serve)

        return run

    def _begin(self, call: runtime.ServerCall, message: bytes | None, serve: Serve) -> None:
        assert self._loop is not None
        context = ServicerContext(call)
        self._calls[call.id] = context
        context._task = self._loop.create_task(self._guard(context, message, serve))

    async def _guard(self, context: ServicerContext, message: bytes | None, serve: Serve) -> None:
        call = context._call
        try:
            await serve(context, message)
        except grpc.aio.AbortError as error:
            if error is not context._abort_error:
                _log.exception("an AbortError of another call was raised by [%s]", call.method)
                call.finish(_UNKNOWN, text_of(error, f"Unexpected {type(error)}"))
        except asyncio.CancelledError:
            _log.debug("RPC cancelled for servicer method [%s]", call.method)
            call.finish(_CANCELLED, "the server's handler was cancelled")
        except Exception as error:
            if call.is_active() or not call.is_cancelled():
                _log.exception(
                    "Unexpected [%s] raised by servicer method [%s]",
                    type(error).__name__,
                    call.method,
                )
            code = _UNKNOWN if context._code is None else number_of(context._code)
            call.finish(code or _UNKNOWN, text_of(error, f"Unexpected {type(error)}"))
        finally:
            context._done = True
            self._calls.pop(call.id, None)
            for callback in context._done_callbacks or ():
                try:
                    callback(context)
                except Exception:
                    _log.exception("Exception calling callback!")
            context._task = None

    def _bind(self, handler: grpc.RpcMethodHandler) -> Serve:
        behavior = behavior_of(handler)
        if not _is_async(behavior):
            return self._on_thread(handler)

        async def serve(context: ServicerContext, message: bytes | None) -> None:
            context._deserializer = handler.request_deserializer
            context._serializer = handler.response_serializer
            call = context._call
            if handler.request_streaming:
                request: Any = context._requests()
            else:
                if message is None:
                    message = await context._read()
                if message is None:
                    text = f'"{call.method}" requires exactly one request message.'
                    call.finish(_UNIMPLEMENTED, text)
                    return
                request = deserialized(message, handler.request_deserializer)
                if request is None:
                    call.finish(_INTERNAL, "Exception deserializing request!")
                    return
            answer = behavior(request, context)
            if not handler.response_streaming:
                data = serialized(await answer, handler.response_serializer)
                if data is None:
                    context._call.finish(_INTERNAL, "Failed to serialize response!")
                else:
                    context._finish(data)
                return
            if hasattr(answer, "__aiter__"):
                async for response in answer:
                    await context.write(response)
            else:
                await answer
            context._finish()

        return serve

    def _on_thread(self, handler: grpc.RpcMethodHandler) -> Serve:
        run = bind(handler)

        async def serve(context: ServicerContext, message: bytes | None) -> None:
            assert self._loop is not None
            call = context._call
            data = await self._loop.run_in_executor(self._executor, run, message, call)
            if data is not None:
                call.respond(data)

        return serve


def _behind(interceptor: Any, lookup: Callable[[Any], Awaitable[Any]]) -> Any:
    async def intercepted(details: Any) -> Any:
        return await interceptor.intercept_service(lookup, details)

    return intercepted
