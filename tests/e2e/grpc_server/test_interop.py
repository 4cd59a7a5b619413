"""grpc's published interop cases (doc/interop-test-descriptions.md) with grpcio's client."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from harness import eventually
from interop_service import INITIAL_KEY, TRAILING_KEY, make_servicer

LARGE_REQUEST = 271828
LARGE_RESPONSE = 314159
RESPONSE_SIZES = (31415, 9, 2653, 58979)
REQUEST_SIZES = (27182, 8, 1828, 45904)


@pytest.fixture
def servicer(testing: Any) -> Any:
    return make_servicer(testing)


@pytest.fixture
def stub(testing: Any, servicer: Any, serve: Callable[..., Any]) -> Iterator[Any]:
    running = serve(lambda s: testing.service.add_TestServiceServicer_to_server(servicer, s))
    with running.channel() as channel:
        stub = testing.service.TestServiceStub(channel)
        stub.address = running.address
        stub.channel = channel
        yield stub


def payload(testing: Any, size: int) -> Any:
    return testing.messages.Payload(body=bytes(size))


def output_request(testing: Any, sizes: Any, body: int = 0, **more: Any) -> Any:
    request = testing.messages.StreamingOutputCallRequest(payload=payload(testing, body), **more)
    for size in sizes:
        request.response_parameters.add(size=size)
    return request


def ended(servicer: Any, name: str) -> None:
    with servicer.changed:
        assert servicer.changed.wait_for(lambda: name in servicer.ended, 60)


def test_empty_unary(testing: Any, stub: Any, servicer: Any) -> None:
    assert stub.EmptyCall(testing.empty.Empty()) == testing.empty.Empty()
    ended(servicer, "EmptyCall")


def test_large_unary(testing: Any, stub: Any) -> None:
    request = testing.messages.SimpleRequest(
        response_size=LARGE_RESPONSE, payload=payload(testing, LARGE_REQUEST)
    )
    assert stub.UnaryCall(request).payload.body == bytes(LARGE_RESPONSE)


@pytest.mark.parametrize("compressed", [True, False])
def test_server_compressed_unary(compressed: bool, testing: Any, stub: Any) -> None:
    request = testing.messages.SimpleRequest(
        response_size=LARGE_RESPONSE,
        payload=payload(testing, LARGE_REQUEST),
        response_compressed=testing.messages.BoolValue(value=compressed),
    )
    assert stub.UnaryCall(request).payload.body == bytes(LARGE_RESPONSE)


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_client_compressed_unary(compression: Any, testing: Any, stub: Any) -> None:
    request = testing.messages.SimpleRequest(
        response_size=LARGE_RESPONSE, payload=payload(testing, LARGE_REQUEST)
    )
    answer = stub.UnaryCall(request, compression=compression)
    assert answer.payload.body == bytes(LARGE_RESPONSE)


@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip])
def test_client_streaming(compression: Any, testing: Any, stub: Any) -> None:
    requests = (
        testing.messages.StreamingInputCallRequest(payload=payload(testing, size))
        for size in REQUEST_SIZES
    )
    answer = stub.StreamingInputCall(requests, compression=compression)
    assert answer.aggregated_payload_size == sum(REQUEST_SIZES) == 74922


def test_server_streaming(testing: Any, stub: Any, servicer: Any) -> None:
    answers = stub.StreamingOutputCall(output_request(testing, RESPONSE_SIZES))
    assert [len(a.payload.body) for a in answers] == list(RESPONSE_SIZES)
    ended(servicer, "StreamingOutputCall")


def test_server_compressed_streaming(testing: Any, stub: Any) -> None:
    request = testing.messages.StreamingOutputCallRequest()
    for size, compressed in ((31415, True), (92653, False)):
        request.response_parameters.add(
            size=size, compressed=testing.messages.BoolValue(value=compressed)
        )
    answers = stub.StreamingOutputCall(request)
    assert [len(a.payload.body) for a in answers] == [31415, 92653]


def test_ping_pong(testing: Any, stub: Any) -> None:
    gate = threading.Semaphore(0)

    def requests() -> Iterator[Any]:
        for asked, size in zip(RESPONSE_SIZES, REQUEST_SIZES, strict=True):
            yield output_request(testing, [asked], size)
            gate.acquire()

    answers = stub.FullDuplexCall(requests())
    for size in RESPONSE_SIZES:
        assert len(next(answers).payload.body) == size
        gate.release()
    assert list(answers) == []


def test_half_duplex(testing: Any, stub: Any) -> None:
    requests = [output_request(testing, [size]) for size in RESPONSE_SIZES]
    answers = stub.HalfDuplexCall(iter(requests))
    assert [len(a.payload.body) for a in answers] == list(RESPONSE_SIZES)


def test_empty_stream(testing: Any, stub: Any) -> None:
    assert list(stub.FullDuplexCall(iter(()))) == []


def test_custom_metadata(testing: Any, stub: Any) -> None:
    metadata = ((INITIAL_KEY, "test_initial_metadata_value"), (TRAILING_KEY, b"\xab\xab\xab"))
    request = testing.messages.SimpleRequest(
        response_size=LARGE_RESPONSE, payload=payload(testing, LARGE_REQUEST)
    )
    answer, call = stub.UnaryCall.with_call(request, metadata=metadata)
    assert len(answer.payload.body) == LARGE_RESPONSE
    stream = stub.FullDuplexCall(
        iter([output_request(testing, [LARGE_RESPONSE], LARGE_REQUEST)]), metadata=metadata
    )
    assert len(list(stream)) == 1
    for each in (call, stream):
        assert (INITIAL_KEY, "test_initial_metadata_value") in list(each.initial_metadata())
        assert (TRAILING_KEY, b"\xab\xab\xab") in list(each.trailing_metadata())


@pytest.mark.parametrize(
    "text",
    ["test status message", "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"],
)
def test_status_code_and_message(text: str, testing: Any, stub: Any) -> None:
    """And special_status_message."""
    status = testing.messages.EchoStatus(code=2, message=text)
    with pytest.raises(grpc.RpcError) as error:
        stub.UnaryCall(testing.messages.SimpleRequest(response_status=status))
    assert (error.value.code(), error.value.details()) == (grpc.StatusCode.UNKNOWN, text)
    stream = stub.FullDuplexCall(iter([output_request(testing, [], response_status=status)]))
    with pytest.raises(grpc.RpcError):
        next(stream)
    assert (stream.code(), stream.details()) == (grpc.StatusCode.UNKNOWN, text)


def test_unimplemented_method(testing: Any, stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as error:
        stub.UnimplementedCall(testing.empty.Empty())
    assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_unimplemented_service(testing: Any, stub: Any) -> None:
    other = testing.service.UnimplementedServiceStub(stub.channel)
    with pytest.raises(grpc.RpcError) as error:
        other.UnimplementedCall(testing.empty.Empty())
    assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_cancel_after_begin(stub: Any, servicer: Any) -> None:
    never = threading.Event()

    def requests() -> Iterator[Any]:
        never.wait()
        return
        yield

    try:
        call = stub.StreamingInputCall.future(requests())
        eventually(call.running, "the call runs")
        call.cancel()
        assert call.code() == grpc.StatusCode.CANCELLED
    finally:
        never.set()


def test_cancel_after_first_response(testing: Any, stub: Any, servicer: Any) -> None:
    over = threading.Event()

    def requests() -> Iterator[Any]:
        yield output_request(testing, [31415], 27182)
        over.wait()

    call = stub.FullDuplexCall(requests())
    assert len(next(call).payload.body) == 31415
    call.cancel()
    with pytest.raises(grpc.RpcError):
        next(call)
    over.set()
    assert call.code() == grpc.StatusCode.CANCELLED
    ended(servicer, "FullDuplexCall")


def test_timeout_on_sleeping_server(testing: Any, stub: Any) -> None:
    over = threading.Event()

    def requests() -> Iterator[Any]:
        yield output_request(testing, [], 27182)
        over.wait()

    call = stub.FullDuplexCall(requests(), timeout=0.001)
    with pytest.raises(grpc.RpcError):
        next(call)
    over.set()
    assert call.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_concurrent_large_unary(testing: Any, stub: Any) -> None:
    request = testing.messages.SimpleRequest(
        response_size=LARGE_RESPONSE, payload=payload(testing, LARGE_REQUEST)
    )
    calls = [stub.UnaryCall.future(request) for _ in range(100)]
    assert all(len(call.result().payload.body) == LARGE_RESPONSE for call in calls)


@pytest.mark.parametrize("kind", ["headrace"])  # grpcio's server ends some of them CANCELLED
def test_thousands_of_concurrent_calls(testing: Any, stub: Any) -> None:
    request = testing.messages.SimpleRequest(response_size=10, payload=payload(testing, 10))
    calls = [stub.UnaryCall.future(request) for _ in range(3000)]
    assert all(len(call.result().payload.body) == 10 for call in calls)


def test_soak(testing: Any, stub: Any) -> None:
    """rpc_soak, and channel_soak with a connection each for the last calls."""
    request = testing.messages.SimpleRequest(
        response_size=LARGE_RESPONSE, payload=payload(testing, LARGE_REQUEST)
    )
    for _ in range(100):
        assert len(stub.UnaryCall(request).payload.body) == LARGE_RESPONSE
    for _ in range(20):
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(stub.address, options) as channel:
            other = testing.service.TestServiceStub(channel)
            assert len(other.UnaryCall(request).payload.body) == LARGE_RESPONSE
