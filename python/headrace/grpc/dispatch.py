"""From a grpc.RpcMethodHandler to run(message, call), what the core calls for each RPC: bytes end
the call OK, None says that it was ended here or will be."""

from __future__ import annotations

import contextvars
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc

from headrace.grpc.context import ServicerContext, text_of

if TYPE_CHECKING:
    from headrace import runtime

__all__ = ["HandlerCallDetails", "Run", "bind", "find_and_run", "on_executor"]

_log = logging.getLogger("headrace.grpc")

Run = Callable[["bytes | None", "runtime.ServerCall"], "bytes | None"]
Lookup = Callable[["HandlerCallDetails"], Any]

_INTERNAL = grpc.StatusCode.INTERNAL
_UNIMPLEMENTED: int = grpc.StatusCode.UNIMPLEMENTED.value[0]
_UNKNOWN: int = grpc.StatusCode.UNKNOWN.value[0]
_CALLING = "Exception calling application"


class _Details(NamedTuple):
    method: str
    invocation_metadata: tuple[Any, ...]


class HandlerCallDetails(_Details, grpc.HandlerCallDetails):  # type: ignore[misc]
    pass


def deserialized(message: bytes, deserializer: Callable[[bytes], Any] | None) -> Any:
    """None: it could not be read, and the log says so."""
    if deserializer is None:
        return message
    try:
        return deserializer(message)
    except Exception:
        _log.exception("Exception deserializing message!")
        return None


def serialized(response: Any, serializer: Callable[[Any], bytes] | None) -> bytes | None:
    """None: it could not be written, and the log says so."""
    try:
        data = response if serializer is None else serializer(response)
        if isinstance(data, bytes):
            return data
        if data is not None:
            raise TypeError(f"a serialized message is bytes, not {type(data).__name__}")
    except Exception:
        _log.exception("Exception serializing message!")
    return None


class RequestIterator:
    """The messages of a streamed request; next() waits without the GIL."""

    def __init__(
        self,
        call: runtime.ServerCall,
        context: ServicerContext,
        deserializer: Callable[[bytes], Any] | None,
    ) -> None:
        self._call = call
        self._context = context
        self._deserializer = deserializer

    def __iter__(self) -> RequestIterator:
        return self

    def __next__(self) -> Any:
        message = self._call.read()
        if message is None:
            if self._call.is_cancelled():
                self._context._raise_rpc_error()
            raise StopIteration
        request = deserialized(message, self._deserializer)
        if request is None:
            self._context._fail(_INTERNAL, "Exception deserializing request!")
            raise StopIteration
        return request

    next = __next__


def _send_responses(
    call: runtime.ServerCall,
    context: ServicerContext,
    responses: Iterator[Any],
    serializer: Callable[[Any], bytes] | None,
) -> None:
    while True:
        try:
            response = next(responses)
        except StopIteration:
            return context._finish()
        except Exception as error:
            return context._raised(error, "Exception iterating responses")
        if not _send_response(call, context, response, serializer):
            return None


def _send_response(
    call: runtime.ServerCall,
    context: ServicerContext,
    response: Any,
    serializer: Callable[[Any], bytes] | None,
) -> bool:
    """False: the call has ended. None is the end of the responses, as in grpcio."""
    if response is None:
        context._finish()
        return False
    data = serialized(response, serializer)
    if data is None:
        context._fail(_INTERNAL, "Failed to serialize response!")
        return False
    context._initial_sent = True
    return call.send(data)


def bind(handler: grpc.RpcMethodHandler) -> Run:
    """The handler's run(); `message` is None when the request is yet to be read from the call."""
    if handler.response_streaming:
        run = _bind_streamed(handler)
    elif handler.request_streaming:
        run = _bind_single(handler)
    else:
        run = _bind_unary(handler)
    behavior = behavior_of(handler)
    pool = getattr(behavior, "experimental_thread_pool", None)
    return on_executor(run, pool) if isinstance(pool, ThreadPoolExecutor) else run


def behavior_of(handler: grpc.RpcMethodHandler) -> Any:
    if handler.request_streaming:
        return handler.stream_stream if handler.response_streaming else handler.stream_unary
    return handler.unary_stream if handler.response_streaming else handler.unary_unary


def _reader(handler: grpc.RpcMethodHandler) -> Callable[..., Any]:
    """read(call, context, message) -> the behaviour's first argument; None when the call has
    ended."""
    deserializer = handler.request_deserializer
    if not handler.request_streaming:

        def read(call: runtime.ServerCall, context: ServicerContext, message: bytes | None) -> Any:
            if message is None:
                message = call.read()
            if message is None:
                if not call.is_cancelled():
                    text = f'"{call.method}" requires exactly one request message.'
                    call.finish(_UNIMPLEMENTED, text)
                return None
            request = deserialized(message, deserializer)
            if request is None:
                context._fail(_INTERNAL, "Exception deserializing request!")
            return request

    else:

        def read(call: runtime.ServerCall, context: ServicerContext, message: bytes | None) -> Any:
            requests = RequestIterator(call, context, deserializer)
            if message is None:
                return requests
            # An interceptor made a streaming handler of a unary method.
            first = deserialized(message, deserializer)
            if first is None:
                context._fail(_INTERNAL, "Exception deserializing request!")
                return None
            return itertools.chain((first,), requests)

    return read


def _bind_unary(handler: grpc.RpcMethodHandler) -> Run:
    """_bind_single() for the calls that there are most of, without a step between."""
    behavior = handler.unary_unary
    deserializer = handler.request_deserializer
    serializer = handler.response_serializer
    slow = _bind_single(handler)

    def run(message: bytes | None, call: runtime.ServerCall) -> bytes | None:
        if message is None:
            return slow(message, call)
        context = ServicerContext(call)
        try:
            request = message if deserializer is None else deserializer(message)
        except Exception:
            _log.exception("Exception deserializing message!")
            request = None
        if request is None:
            context._fail(_INTERNAL, "Exception deserializing request!")
            return None
        try:
            response = behavior(request, context)
        except Exception as error:
            context._raised(error, _CALLING)
            return None
        try:
            data = response if serializer is None else serializer(response)
        except Exception:
            _log.exception("Exception serializing message!")
            data = None
        if not isinstance(data, bytes):
            context._fail(_INTERNAL, "Failed to serialize response!")
        elif context._code is None and context._details is None:
            return data
        else:
            context._finish(data)
        return None

    return run


def _bind_single(handler: grpc.RpcMethodHandler) -> Run:
    behavior = behavior_of(handler)
    serializer = handler.response_serializer
    read = _reader(handler)

    def run(message: bytes | None, call: runtime.ServerCall) -> bytes | None:
        context = ServicerContext(call)
        request = read(call, context, message)
        if request is None:
            return None
        try:
            response = behavior(request, context)
        except Exception as error:
            context._raised(error, _CALLING)
            return None
        data = serialized(response, serializer)
        if data is None:
            context._fail(_INTERNAL, "Failed to serialize response!")
        elif context._code is None and context._details is None:
            return data
        else:
            context._finish(data)
        return None

    return run


def _bind_streamed(handler: grpc.RpcMethodHandler) -> Run:
    behavior = behavior_of(handler)
    serializer = handler.response_serializer
    read = _reader(handler)

    def run(message: bytes | None, call: runtime.ServerCall) -> bytes | None:
        context = ServicerContext(call)
        request = read(call, context, message)
        if request is None:
            return None
        try:
            if getattr(behavior, "experimental_non_blocking", False):
                behavior(
                    request,
                    context,
                    lambda response: _send_response(call, context, response, serializer),
                )
                return None
            responses = behavior(request, context)
        except Exception as error:
            context._raised(error, _CALLING)
            return None
        _send_responses(call, context, responses, serializer)
        return None

    return run


def find_and_run(lookup: Lookup) -> Run:
    """run() of methods whose handler is looked up for each call: interceptors, generic handlers."""

    def run(message: bytes | None, call: runtime.ServerCall) -> bytes | None:
        details = HandlerCallDetails(call.method, call.metadata)
        try:
            handler = lookup(details)
        except Exception as error:
            _log.exception(text_of(error, "Exception servicing handler"))
            call.finish(_UNKNOWN, "Error in service handler!")
            return None
        if handler is None:
            call.finish(_UNIMPLEMENTED, "Method not found!")
            return None
        return bind(handler)(message, call)

    return run


def intercepted(lookup: Lookup, interceptors: Iterable[grpc.ServerInterceptor]) -> Lookup:
    """`lookup` behind the interceptors, the first outermost."""
    for interceptor in reversed(list(interceptors)):
        lookup = _behind(interceptor, lookup)
    return lookup


def _behind(interceptor: grpc.ServerInterceptor, lookup: Lookup) -> Lookup:
    return lambda details: interceptor.intercept_service(lookup, details)


def on_executor(run: Run, executor: Executor) -> Run:
    """`run` on the user's own executor, one submit() a call."""

    def work(message: bytes | None, call: runtime.ServerCall) -> None:
        try:
            data = run(message, call)
        except BaseException as error:
            call.finish(_UNKNOWN, text_of(error, _CALLING))
            raise
        if data is not None:
            call.respond(data)

    def submit(message: bytes | None, call: runtime.ServerCall) -> bytes | None:
        executor.submit(contextvars.copy_context().run, work, message, call)
        return None

    return submit
