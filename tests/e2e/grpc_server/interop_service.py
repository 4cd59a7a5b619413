"""grpc.testing.TestService as an ordinary grpcio servicer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import grpc

INITIAL_KEY = "x-grpc-test-echo-initial"
TRAILING_KEY = "x-grpc-test-echo-trailing-bin"


def make_servicer(testing: Any) -> Any:
    messages = testing.messages

    class TestService(testing.service.TestServiceServicer):  # type: ignore[misc]
        """`ended` gets the name of every method whose call has ended (add_callback)."""

        def __init__(self) -> None:
            self.ended: list[str] = []
            self.changed = threading.Condition()

        def _begin(self, name: str, context: Any) -> None:
            metadata = {key: value for key, value in context.invocation_metadata()}  # noqa: C416
            if INITIAL_KEY in metadata:
                context.send_initial_metadata(((INITIAL_KEY, metadata[INITIAL_KEY]),))
            if TRAILING_KEY in metadata:
                context.set_trailing_metadata(((TRAILING_KEY, metadata[TRAILING_KEY]),))

            def end() -> None:
                with self.changed:
                    self.ended.append(name)
                    self.changed.notify_all()

            context.add_callback(end)

        def _status(self, request: Any, context: Any) -> None:
            if request.HasField("response_status"):
                codes = {code.value[0]: code for code in grpc.StatusCode}
                context.set_code(codes[request.response_status.code])
                context.set_details(request.response_status.message)

        def EmptyCall(self, request: Any, context: Any) -> Any:
            self._begin("EmptyCall", context)
            return testing.empty.Empty()

        def UnaryCall(self, request: Any, context: Any) -> Any:
            self._begin("UnaryCall", context)
            self._status(request, context)
            if request.HasField("response_compressed"):
                if request.response_compressed.value:
                    context.set_compression(grpc.Compression.Gzip)
                else:
                    context.disable_next_message_compression()
            return messages.SimpleResponse(payload=_payload(request.response_size))

        def StreamingOutputCall(self, request: Any, context: Any) -> Iterator[Any]:
            self._begin("StreamingOutputCall", context)
            self._status(request, context)
            yield from self._responses(request, context)

        def StreamingInputCall(self, requests: Any, context: Any) -> Any:
            self._begin("StreamingInputCall", context)
            total = sum(len(request.payload.body) for request in requests)
            return messages.StreamingInputCallResponse(aggregated_payload_size=total)

        def FullDuplexCall(self, requests: Any, context: Any) -> Iterator[Any]:
            self._begin("FullDuplexCall", context)
            for request in requests:
                self._status(request, context)
                if request.HasField("response_status"):
                    return
                yield from self._responses(request, context)

        def HalfDuplexCall(self, requests: Any, context: Any) -> Iterator[Any]:
            self._begin("HalfDuplexCall", context)
            for request in list(requests):
                yield from self._responses(request, context)

        def _responses(self, request: Any, context: Any) -> Iterator[Any]:
            compress = [p.compressed.value for p in request.response_parameters]
            if any(compress):
                context.set_compression(grpc.Compression.Gzip)
            for parameters in request.response_parameters:
                if parameters.interval_us:
                    threading.Event().wait(parameters.interval_us / 1e6)
                if any(compress) and not parameters.compressed.value:
                    context.disable_next_message_compression()
                yield messages.StreamingOutputCallResponse(payload=_payload(parameters.size))

    def _payload(size: int) -> Any:
        return messages.Payload(body=bytes(size))

    return TestService()
