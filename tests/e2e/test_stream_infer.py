"""ModelStreamInfer with Triton's own client and with a bare stub."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from harness import Server, infer_request, raw_input, tensor
from tritonclient.utils import InferenceServerException


@pytest.fixture
def answers() -> queue.Queue[tuple[Any, InferenceServerException | None]]:
    return queue.Queue()


def start(server: Server, into: queue.Queue[Any], **options: Any) -> triton.InferenceServerClient:
    client = triton.InferenceServerClient(server.address)
    client.start_stream(callback=lambda result, error: into.put((result, error)), **options)
    return client


def test_answers_come_in_order_with_their_ids(
    server: Server, answers: queue.Queue[tuple[Any, InferenceServerException | None]]
) -> None:
    client = start(server, answers)
    count = 600  # more than a stream may have in flight
    for i in range(count):
        client.async_stream_infer(
            "identity_int32", [tensor("X", np.full((1, 3), i, np.int32))], request_id=str(i)
        )
    for i in range(count):
        result, error = answers.get(timeout=60)
        assert error is None
        response = result.get_response()
        assert response.id == str(i)
        assert response.parameters["triton_final_response"].bool_param
        np.testing.assert_array_equal(result.as_numpy("Y"), np.full((1, 3), i))
    client.stop_stream()
    assert answers.empty()
    client.close()


def test_an_empty_final_response_may_be_asked_for(
    server: Server, answers: queue.Queue[tuple[Any, InferenceServerException | None]]
) -> None:
    client = start(server, answers)
    client.async_stream_infer(
        "identity_int32",
        [tensor("X", np.ones((1, 1), np.int32))],
        enable_empty_final_response=True,
    )
    result, error = answers.get(timeout=60)
    assert error is None
    # Models that answer once mark that answer; there is no empty one after it.
    assert result.get_response().parameters["triton_final_response"].bool_param
    client.stop_stream()
    assert answers.empty()
    client.close()


def test_an_error_leaves_the_stream_open(
    server: Server, answers: queue.Queue[tuple[Any, InferenceServerException | None]]
) -> None:
    client = start(server, answers)
    good = [tensor("X", np.ones((1, 2), np.float32))]
    client.async_stream_infer("identity_fp32", good, request_id="a")
    client.async_stream_infer("no_such_model", good, request_id="b")
    client.async_stream_infer("fixed", good, request_id="c")  # wrong shape
    client.async_stream_infer("identity_fp32", good, request_id="d")
    errors = []
    for _ in range(4):
        _result, error = answers.get(timeout=60)
        errors.append(error)
    assert errors[0] is None and errors[3] is None
    assert errors[1] is not None and "no_such_model" in errors[1].message()
    assert errors[2] is not None and "shape" in errors[2].message()
    client.stop_stream()
    client.close()


def stream(server: Server, requests: Callable[[], Iterator[Any]], **options: Any) -> Iterator[Any]:
    answered: Iterator[Any] = server.stub.ModelStreamInfer(requests(), timeout=60, **options)
    return answered


def one(request_id: str, model: str = "identity_int32") -> Any:
    return infer_request(
        model,
        id=request_id,
        inputs=[raw_input("X", "INT32", [1, 2])],
        raw_input_contents=[np.ones(2, np.int32).tobytes()],
    )


def test_an_error_names_its_request(server: Server) -> None:
    got = list(stream(server, lambda: iter([one("1"), one("2", "nope"), one("3")])))
    assert [message.infer_response.id for message in got] == ["1", "2", "3"]
    assert [bool(message.error_message) for message in got] == [False, True, False]


def test_grpc_errors_on_request(server: Server) -> None:
    metadata = (("triton_grpc_error", "true"),)
    answered = stream(server, lambda: iter([one("1"), one("2", "nope")]), metadata=metadata)
    assert next(answered).infer_response.id == "1"
    with pytest.raises(grpc.RpcError) as error:
        next(answered)
    assert error.value.code() == grpc.StatusCode.NOT_FOUND


def test_compressed_requests_in_a_stream(server: Server) -> None:
    got = list(
        stream(
            server,
            lambda: iter([one(str(i)) for i in range(5)]),
            compression=grpc.Compression.Gzip,
        )
    )
    assert [message.infer_response.id for message in got] == [str(i) for i in range(5)]


def test_large_messages_both_ways(
    server: Server, answers: queue.Queue[tuple[Any, InferenceServerException | None]]
) -> None:
    client = start(server, answers)
    array = np.arange(3 << 20, dtype=np.float32).reshape(4, -1)  # 12 MiB
    for _ in range(4):
        client.async_stream_infer("identity_fp32", [tensor("X", array)])
    for _ in range(4):
        result, error = answers.get(timeout=120)
        assert error is None
        np.testing.assert_array_equal(result.as_numpy("Y"), array)
    client.stop_stream()
    client.close()


def test_a_client_that_leaves(server: Server) -> None:
    for _ in range(20):
        answers: queue.Queue[Any] = queue.Queue()
        client = start(server, answers)
        for i in range(50):
            client.async_stream_infer(
                "identity_int32", [tensor("X", np.full((1, 3), i, np.int32))], request_id=str(i)
            )
        client.stop_stream(cancel_requests=True)
        client.close()
    server.still_answers()
