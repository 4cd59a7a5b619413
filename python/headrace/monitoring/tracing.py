"""TraceExporter: sends what the core traced to an OpenTelemetry collector (OTLP over gRPC).

A trace has a span of the server's, and below it those of the queue, of the batch and of the model's
execution. Only opentelemetry-proto is needed (`pip install headrace[otlp]`), imported when the
exporter starts; nothing of this runs where requests do. What a collector does not take is dropped
and counted: a collector that is slow or gone slows nothing down.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.errors import InvalidArgumentError, UnavailableError, code_name
from headrace.logs import get_logger

__all__ = ["Span", "TraceExporter", "TraceRecord", "spans_of"]

_log = get_logger("tracing")

CAPACITY = 4096  # traced requests that wait in the core
_DRAIN_S = 0.5
_TIMEOUT_S = 5.0  # of an export
_BATCH = 512  # requests an export
_SERVER, _INTERNAL = 2, 1  # opentelemetry.proto.trace.v1.Span.SpanKind
_METHODS = ("ModelInfer", "ModelStreamInfer")
_SERVICE = "inference.GRPCInferenceService"
# What OpenTelemetry's conventions call the server's fault (rpc, server spans).
_SERVER_FAULTS = frozenset({2, 4, 12, 13, 14, 15})

# As drain_traces() answers it.
TraceRecord = tuple[
    bytes, bytes, bytes, tuple[int, ...], int, bool, int, int, bytes, bytes, bytes, bytes, bytes
]
Drain = Callable[[], tuple[list[TraceRecord], int]]


@dataclass(frozen=True)
class Span:
    trace_id: bytes
    span_id: bytes
    parent_id: bytes  # b"": none
    name: str
    kind: int
    begin_ns: int  # since 1970
    end_ns: int
    attributes: dict[str, str | int]
    code: int = 0  # gRPC's


def spans_of(record: TraceRecord, wall_minus_monotonic_ns: int) -> Iterator[Span]:
    """The server's span first. Stages that did not happen have none."""
    trace, parent, own, stamps, code, streamed, rows, batch_rows, *texts = record
    request_id, model, version, arm, fallback_from = (t.decode(errors="replace") for t in texts)
    arrived, queued, batched, input_done, infer_done, done, answered = (
        stamp + wall_minus_monotonic_ns if stamp else 0 for stamp in stamps
    )
    method = _METHODS[streamed]
    attributes: dict[str, str | int] = {
        "rpc.system": "grpc",
        "rpc.service": _SERVICE,
        "rpc.method": method,
        "rpc.grpc.status_code": code,
        "headrace.model": model,
        "headrace.rows": rows,
    }
    for key, text in (
        ("headrace.version", version),
        ("headrace.arm", arm),
        ("headrace.fallback_from", fallback_from),
        ("headrace.request_id", request_id),
    ):
        if text:
            attributes[key] = text
    no_parent = not any(parent)
    yield Span(
        trace,
        own,
        b"" if no_parent else parent,
        f"{_SERVICE}/{method}",
        _SERVER,
        arrived,
        max(arrived, answered),
        attributes,
        code,
    )
    if queued and batched:
        yield _part(trace, own, "queue", queued, batched, {})
    if batched and done:
        sizes: dict[str, str | int] = {"headrace.batch_size": batch_rows}
        batch = _part(trace, own, "batch", batched, done, sizes)
        yield batch
        if input_done and infer_done:
            yield _part(trace, batch.span_id, "infer", input_done, infer_done, sizes)


def _part(
    trace: bytes, parent: bytes, name: str, begin: int, end: int, attributes: dict[str, str | int]
) -> Span:
    span_id = secrets.token_bytes(8)
    return Span(trace, span_id, parent, name, _INTERNAL, begin, max(begin, end), attributes)


class TraceExporter:
    """start() and stop() once each. Counts may be read from any thread."""

    def __init__(self, endpoint: str, *, server_id: str, version: str) -> None:
        """`endpoint`: "http://host:4317" or, with TLS, "https://host:4317". Raises
        InvalidArgumentError; UnavailableError without opentelemetry-proto."""
        scheme, _, address = endpoint.partition("://")
        if scheme not in ("http", "https") or not address.rstrip("/"):
            raise InvalidArgumentError(
                f"--otlp-endpoint is '{endpoint}'; it must be http://host:4317 or https://host:4317"
            )
        self._address = address.rstrip("/")
        self._secure = scheme == "https"
        self._server_id = server_id
        self._version = version
        self._proto = _import()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._failing = False
        self.exported = 0  # requests
        self.dropped_full = 0  # because the core's ring was full
        self.dropped_export = 0  # because the collector did not take them

    def start(self, drain: Drain) -> None:
        self._thread = threading.Thread(
            target=self._run, args=(drain,), name="tracing", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Sends what is left first, for as long as one export may take."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, drain: Drain) -> None:
        import grpc

        channel = (
            grpc.secure_channel(self._address, grpc.ssl_channel_credentials())
            if self._secure
            else grpc.insecure_channel(self._address)
        )
        with channel:
            export = channel.unary_unary(
                "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=self._proto.ExportTraceServiceResponse.FromString,
            )
            ending = False
            while not ending:
                ending = self._end.wait(_DRAIN_S)
                try:
                    self._drain(drain, export)
                except Exception:
                    _log.exception("traces are lost")

    def _drain(self, drain: Drain, export: Any) -> None:
        import grpc

        records, self.dropped_full = drain()
        for at in range(0, len(records), _BATCH):
            batch = records[at : at + _BATCH]
            try:
                answer = export(self.request(batch), timeout=_TIMEOUT_S)
            except grpc.RpcError as error:
                self.dropped_export += len(records) - at
                if not self._failing:
                    _log.warning(
                        "the collector %s does not take traces (%s: %s); they are dropped until "
                        "it does",
                        self._address,
                        code_name(error.code().value[0]),
                        error.details(),
                    )
                self._failing = True
                return
            if self._failing:
                _log.info("the collector %s takes traces again", self._address)
            self._failing = False
            rejected = bool(answer.partial_success.rejected_spans)
            if rejected:
                _log.warning("the collector refused: %s", answer.partial_success.error_message)
            self.exported += len(batch)

    def request(self, records: Sequence[TraceRecord]) -> Any:
        """An ExportTraceServiceRequest."""
        offset = time.time_ns() - time.monotonic_ns()
        request = self._proto.ExportTraceServiceRequest()
        resource = request.resource_spans.add()
        for name, text in (
            ("service.name", self._server_id),
            ("service.version", self._version),
        ):
            resource.resource.attributes.add(key=name).value.string_value = text
        scope = resource.scope_spans.add()
        scope.scope.name = "headrace"
        scope.scope.version = self._version
        for record in records:
            for span in spans_of(record, offset):
                made = scope.spans.add(
                    trace_id=span.trace_id,
                    span_id=span.span_id,
                    parent_span_id=span.parent_id,
                    name=span.name,
                    kind=span.kind,
                    start_time_unix_nano=span.begin_ns,
                    end_time_unix_nano=span.end_ns,
                )
                for key, value in span.attributes.items():
                    attribute = made.attributes.add(key=key).value
                    if isinstance(value, int):
                        attribute.int_value = value
                    else:
                        attribute.string_value = value
                if span.code in _SERVER_FAULTS:
                    made.status.code = 2  # STATUS_CODE_ERROR
                    made.status.message = code_name(span.code)
        return request


def _import() -> Any:
    try:
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
    except ImportError as error:
        raise UnavailableError(
            "--otlp-endpoint needs opentelemetry-proto: pip install 'headrace[otlp]'"
        ) from error
    return trace_service_pb2
