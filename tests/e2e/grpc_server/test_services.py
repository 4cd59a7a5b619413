"""Services that others wrote, unchanged: grpc_health, grpc_reflection; and services beside
inference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_servers import unary
from interop_service import make_servicer

import headrace
from headrace.config import ServerConfig
from headrace.protocol import kserve

Serve = Callable[..., Any]
V1 = "grpc.reflection.v1.ServerReflection"
V1ALPHA = "grpc.reflection.v1alpha.ServerReflection"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@pytest.mark.parametrize("non_blocking", [True, False])
def test_health(non_blocking: bool, serve: Serve) -> None:
    servicer = health.HealthServicer(experimental_non_blocking=non_blocking)
    running = serve(lambda s: health_pb2_grpc.add_HealthServicer_to_server(servicer, s))
    with running.channel() as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="a")
        assert stub.Check(health_pb2.HealthCheckRequest()).status == SERVING
        with pytest.raises(grpc.RpcError) as error:
            stub.Check(request)
        assert error.value.code() == grpc.StatusCode.NOT_FOUND
        watch = stub.Watch(request)
        assert next(watch).status == SERVICE_UNKNOWN
        for status in (SERVING, NOT_SERVING, SERVING):
            servicer.set("a", status)
            assert next(watch).status == status
        servicer.enter_graceful_shutdown()
        assert next(watch).status == NOT_SERVING
        watch.cancel()


def test_many_watches_need_no_threads(serve: Serve) -> None:
    servicer = health.HealthServicer()
    running = serve(lambda s: health_pb2_grpc.add_HealthServicer_to_server(servicer, s), workers=2)
    with running.channel() as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watches = [stub.Watch(health_pb2.HealthCheckRequest(service="a")) for _ in range(50)]
        assert all(next(watch).status == SERVICE_UNKNOWN for watch in watches)
        servicer.set("a", SERVING)
        assert all(next(watch).status == SERVING for watch in watches)
        for watch in watches:
            watch.cancel()


def ask(channel: grpc.Channel, name: str, *requests: Any) -> list[Any]:
    call = channel.stream_stream(
        f"/{name}/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    return list(call(iter(requests)))


def test_reflection(testing: Any, serve: Serve) -> None:
    servicer = make_servicer(testing)

    def add(server: Any) -> None:
        testing.service.add_TestServiceServicer_to_server(servicer, server)
        reflection.enable_server_reflection(
            ("grpc.testing.TestService", reflection.SERVICE_NAME), server
        )

    request = reflection_pb2.ServerReflectionRequest
    with serve(add).channel() as channel:
        listed, found, missing = ask(
            channel,
            reflection.SERVICE_NAME,
            request(list_services=""),
            request(file_containing_symbol="grpc.testing.TestService"),
            request(file_containing_symbol="no.such.Thing"),
        )
        names = [service.name for service in listed.list_services_response.service]
        assert names == ["grpc.reflection.v1alpha.ServerReflection", "grpc.testing.TestService"]
        assert len(found.file_descriptor_response.file_descriptor_proto) == 3
        assert missing.error_response.error_code == 5


@pytest.fixture
def beside(testing: Any) -> Iterator[Any]:
    """A headrace.Server with a model, the TestService and a method without protobuf."""
    server = headrace.Server(ServerConfig(host="127.0.0.1", grpc_port=0, metrics_port=-1))
    tensor = {"x": ("FP32", [1])}, {"y": ("FP32", [1])}
    server.add_callable("double", lambda arrays: {"y": arrays["x"] * 2}, *tensor)
    testing.service.add_TestServiceServicer_to_server(make_servicer(testing), server)
    unary("/t.S/M", lambda request, context: request[::-1])(server)
    with server, grpc.insecure_channel(server.address) as channel:
        yield channel


def test_services_share_the_port_with_inference(testing: Any, beside: grpc.Channel) -> None:
    infer = kserve.ModelInferRequest(model_name="double")
    tensor = infer.inputs.add(name="x", datatype="FP32", shape=[1])
    tensor.contents.fp32_contents.append(21)
    answer = beside.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=kserve.ModelInferRequest.SerializeToString,
        response_deserializer=kserve.ModelInferResponse.FromString,
    )(infer)
    assert answer.outputs[0].name == "y"
    stub = testing.service.TestServiceStub(beside)
    assert stub.EmptyCall(testing.empty.Empty()) == testing.empty.Empty()
    request = testing.messages.StreamingOutputCallRequest()
    request.response_parameters.add(size=7)
    assert [len(a.payload.body) for a in stub.FullDuplexCall(iter([request] * 3))] == [7] * 3
    assert beside.unary_unary("/t.S/M")(b"abc") == b"cba"
    with pytest.raises(grpc.RpcError) as error:
        beside.unary_unary("/t.S/Other")(b"")
    assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("version", [V1, V1ALPHA])
def test_reflection_knows_every_service(version: str, beside: grpc.Channel) -> None:
    request = reflection_pb2.ServerReflectionRequest
    (listed,) = ask(beside, version, request(list_services=""))
    names = [service.name for service in listed.list_services_response.service]
    described = [
        "grpc.health.v1.Health",
        V1,
        V1ALPHA,
        "grpc.testing.TestService",
        "inference.GRPCInferenceService",
        "nvidia.riva.asr.RivaSpeechRecognition",
    ]
    assert sorted(names) == sorted([*described, "t.S"])
    answers = ask(beside, version, *(request(file_containing_symbol=name) for name in described))
    for name, answer in zip(described, answers, strict=True):
        assert answer.file_descriptor_response.file_descriptor_proto, name
    (unknown,) = ask(beside, version, request(file_containing_symbol="t.S"))
    assert unknown.error_response.error_code == 5  # it has no descriptor
