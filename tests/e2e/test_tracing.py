"""Traces, through to a collector that is gRPC's own server with OpenTelemetry's own messages."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from harness import (
    Server,
    eventually,
    free_port,
    infer_request,
    many,
    occupy,
    raw_input,
    tensor,
    write_gated,
    write_identity,
    write_model,
)
from tritonclient.utils import InferenceServerException

Start = Callable[..., Server]
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
ONE = np.ones((1, 2), np.float32)


class Collector:
    """Keeps the spans that it is sent."""

    def __init__(self, port: int = 0) -> None:
        trace_service_pb2 = pytest.importorskip(
            "opentelemetry.proto.collector.trace.v1.trace_service_pb2",
            reason="needs pip install opentelemetry-proto",
        )
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc

        lock = threading.Lock()
        self.spans: list[Any] = []
        self.resources: list[dict[str, str]] = []
        collector = self

        class Servicer(trace_service_pb2_grpc.TraceServiceServicer):  # type: ignore[misc]
            def Export(self, request: Any, context: Any) -> Any:
                with lock:
                    for resource in request.resource_spans:
                        collector.resources.append(attributes(resource.resource))
                        for scope in resource.scope_spans:
                            collector.spans.extend(scope.spans)
                return trace_service_pb2.ExportTraceServiceResponse()

        self.server = grpc.server(futures.ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Servicer(), self.server)
        self.port = self.server.add_insecure_port(f"127.0.0.1:{port}")
        self.server.start()

    @property
    def flags(self) -> tuple[str, str]:
        return ("--otlp-endpoint", f"http://127.0.0.1:{self.port}")

    def named(self, name: str) -> list[Any]:
        return [span for span in list(self.spans) if span.name == name]

    def servers(self) -> list[Any]:
        return [span for span in list(self.spans) if span.kind == 2]

    def children(self, of: Any) -> dict[str, Any]:
        return {s.name: s for s in list(self.spans) if s.parent_span_id == of.span_id}


def attributes(of: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in of.attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.server.stop(0).wait()


def ask(server: Server, model: str, traceparent: str = "", request_id: str = "") -> None:
    request = infer_request(
        model,
        id=request_id,
        inputs=[raw_input("X", "FP32", [1, 2])],
        raw_input_contents=[ONE.tobytes()],
    )
    metadata = (("traceparent", traceparent),) if traceparent else ()
    server.stub.ModelInfer(request, metadata=metadata, timeout=60)


def test_a_request_is_a_tree_of_spans(start: Start, repository: Path, collector: Collector) -> None:
    write_identity(repository, "m", "FP32")
    server = start(*collector.flags, "--trace-ratio", "1", "--id", "here")
    ask(server, "m", request_id="request-7")
    (span,) = eventually(collector.servers, "a span of the server's")
    assert collector.resources[0]["service.name"] == "here"
    assert span.name == "inference.GRPCInferenceService/ModelInfer"
    assert span.parent_span_id == b""
    has = attributes(span)
    assert (has["headrace.model"], has["headrace.version"], has["headrace.rows"]) == ("m", "1", 1)
    assert (has["rpc.system"], has["rpc.grpc.status_code"]) == ("grpc", 0)
    assert has["headrace.request_id"] == "request-7"
    children = collector.children(span)
    assert children.keys() == {"queue", "batch"}
    (infer,) = collector.children(children["batch"]).values()
    assert infer.name == "infer"
    assert attributes(infer)["headrace.batch_size"] == 1
    assert {s.trace_id for s in collector.spans} == {span.trace_id}
    for inner, outer in (
        (children["queue"], span),
        (children["batch"], span),
        (infer, children["batch"]),
    ):
        assert outer.start_time_unix_nano <= inner.start_time_unix_nano
        assert inner.start_time_unix_nano <= inner.end_time_unix_nano
        assert inner.end_time_unix_nano <= outer.end_time_unix_nano
    server.counts(1, "headrace_traces_exported_total")


def test_the_callers_trace_goes_on_and_its_flag_decides(
    start: Start, repository: Path, collector: Collector
) -> None:
    write_identity(repository, "m", "FP32")
    server = start(*collector.flags, "--trace-ratio", "0")
    ask(server, "m")
    ask(server, "m", f"00-{TRACE}-{PARENT}-00")
    ask(server, "m", f"00-{TRACE}-{PARENT}-01")
    (span,) = eventually(collector.servers, "the sampled one")
    assert span.trace_id.hex() == TRACE
    assert span.parent_span_id.hex() == PARENT
    # A server that ends sends the rest: the others were not on their way.
    server.terminate()
    server.process.wait(timeout=60)
    assert len(collector.servers()) == 1


def test_requests_of_one_batch(start: Start, repository: Path, collector: Collector) -> None:
    gate = write_gated(repository, "gated", max_batch_size=8)
    server = start(*collector.flags, "--trace-ratio", "1")
    first = occupy(server, gate)
    one = np.ones((1, 2), np.int32)
    with many([lambda: server.infer("gated", one) for _ in range(3)]):
        eventually(lambda: server.pending("gated") == 3, "three wait")
        gate.touch()
    first.result(timeout=60)
    eventually(lambda: len(collector.named("infer")) == 4, "four were executed")
    sizes = [attributes(span)["headrace.batch_size"] for span in collector.named("infer")]
    assert sorted(sizes) == [1, 3, 3, 3]


def test_failures_and_streams(start: Start, repository: Path, collector: Collector) -> None:
    write_identity(repository, "m", "FP32")
    config = (repository / "m" / "config.pbtxt").read_text()
    code = "class Model:\n    def __call__(self, inputs):\n        raise ValueError('secret')\n"
    write_model(repository, "bad", config, {"model.py": code})
    server = start(*collector.flags, "--trace-ratio", "1")
    for model in ("bad", "nobody"):
        with pytest.raises(InferenceServerException):
            server.client.infer(model, [tensor("X", ONE)])
    answers: list[Any] = []
    server.client.start_stream(lambda result, error: answers.append(error or result))
    server.client.async_stream_infer("m", [tensor("X", ONE)])
    eventually(lambda: answers, "the stream's answer")
    server.client.stop_stream()
    eventually(lambda: len(collector.servers()) == 3, "three requests")
    by_model = {attributes(s)["headrace.model"]: s for s in collector.servers()}
    assert by_model["bad"].status.code == 2
    assert attributes(by_model["bad"])["rpc.grpc.status_code"] == 13
    assert by_model["nobody"].status.code == 0, "the client's mistake, not the server's"
    assert attributes(by_model["nobody"])["rpc.grpc.status_code"] == 5
    assert collector.children(by_model["nobody"]) == {}
    assert by_model["m"].name.endswith("/ModelStreamInfer")
    assert "secret" not in str(collector.spans), "no texts of models, which may hold inputs"


def test_a_collector_that_is_gone_costs_no_answer_and_is_found_again(
    start: Start, repository: Path
) -> None:
    write_identity(repository, "m", "FP32")
    port = free_port()
    server = start("--otlp-endpoint", f"http://127.0.0.1:{port}", "--trace-ratio", "1")
    for _ in range(20):
        ask(server, "m")
    dropped = "headrace_traces_dropped_total"
    eventually(lambda: server.metric(dropped, reason="export") >= 1, "dropped and counted")
    assert "does not take traces" in server.log()
    collector = Collector(port)
    try:

        def arrives() -> bool:
            ask(server, "m")
            return bool(collector.servers())

        eventually(arrives, "traces again", within_s=90)
    finally:
        collector.server.stop(0).wait()


def test_without_an_endpoint_nothing_is_traced(start: Start, repository: Path) -> None:
    write_identity(repository, "m", "FP32")
    server = start("--trace-ratio", "1")
    ask(server, "m", f"00-{TRACE}-{PARENT}-01")
    assert "headrace_traces" not in server.metrics_text()


def test_an_endpoint_that_makes_no_sense(start: Start) -> None:
    server = start("--otlp-endpoint", "127.0.0.1:4317", ready=False)
    server.checked = False
    assert server.process.wait(timeout=60) == 1
    assert "http://host:4317" in server.log()
