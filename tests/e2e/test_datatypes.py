"""Every datatype comes back as it was sent, raw and typed, in every shape a model allows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from harness import DTYPES, Server, infer_request, raw_input, tensor
from tritonclient.grpc import service_pb2

DENSE = [name for name in DTYPES if name != "BYTES"]
TYPED_FIELDS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
WORDS = [b"", b"\0", b"a\0b\0", "naïve".encode(), b"\xff\xfe", b"x" * 70000]


def values(dtype: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Random bit patterns, so extremes, NaNs and denormals too."""
    count = int(np.prod(shape))
    random = np.random.default_rng(len(dtype) * 1000 + count)
    if dtype == "BYTES":
        return np.array([WORDS[i % len(WORDS)] for i in range(count)], np.object_).reshape(shape)
    if dtype == "BOOL":
        return random.integers(0, 2, shape).astype(np.bool_)
    size = np.dtype(DTYPES[dtype]).itemsize
    return np.frombuffer(random.bytes(count * size), DTYPES[dtype]).reshape(shape)


def raw(dtype: str, array: np.ndarray[Any, Any]) -> bytes:
    if dtype != "BYTES":
        return array.tobytes()
    return b"".join(len(w).to_bytes(4, "little") + w for w in array.flat)


def ask_raw(server: Server, model: str, dtype: str, array: np.ndarray[Any, Any]) -> Any:
    return server.stub.ModelInfer(
        infer_request(
            model,
            inputs=[raw_input("X", dtype, list(array.shape))],
            raw_input_contents=[raw(dtype, array)],
        )
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("width", [0, 1, 17])
def test_raw_contents_come_back_equal(server: Server, dtype: str, batch: int, width: int) -> None:
    array = values(dtype, (batch, width))
    answer = ask_raw(server, f"identity_{dtype.lower()}", dtype, array)
    assert answer.outputs[0].name == "Y"
    assert answer.outputs[0].datatype == dtype
    assert list(answer.outputs[0].shape) == [batch, width]
    assert answer.raw_output_contents[0] == raw(dtype, array)
    assert not answer.outputs[0].HasField("contents")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 4), (0, 4), (4, 0), (0, 0), (300, 100)])
def test_without_batching_shapes_are_as_they_are(
    server: Server, dtype: str, shape: tuple[int, int]
) -> None:
    array = (
        values(dtype, shape)
        if dtype != "BYTES" or np.prod(shape) < 1000
        else values("BYTES", (9, 9))
    )
    answer = ask_raw(server, f"flat_{dtype.lower()}", dtype, array)
    assert list(answer.outputs[0].shape) == list(array.shape)
    assert answer.raw_output_contents[0] == raw(dtype, array)


@pytest.mark.parametrize("dtype", TYPED_FIELDS)
def test_typed_contents_come_back_equal(server: Server, dtype: str) -> None:
    array = values(dtype, (2, 9))
    if dtype in ("FP32", "FP64"):
        array = np.nan_to_num(array, nan=1.5)  # NaN payloads may change in protobuf's floats
    contents = service_pb2.InferTensorContents()
    getattr(contents, TYPED_FIELDS[dtype]).extend(array.ravel().tolist())
    request = raw_input("X", dtype, [2, 9])
    request.contents.CopyFrom(contents)
    answer = server.stub.ModelInfer(infer_request(f"identity_{dtype.lower()}", inputs=[request]))
    assert answer.raw_output_contents[0] == raw(dtype, array)


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != "BF16"])
def test_tritonclient_reads_what_it_wrote(server: Server, dtype: str) -> None:
    array = values(dtype, (4, 6))
    answer = server.client.infer(f"identity_{dtype.lower()}", [tensor("X", array, dtype)])
    got = answer.as_numpy("Y")
    assert got.dtype == array.dtype
    assert raw(dtype, got) == raw(dtype, array)


def test_bf16_of_tritonclient(server: Server) -> None:
    import ml_dtypes

    array = np.array([[1.0, -2.5, 3.140625, 0.0]], ml_dtypes.bfloat16)
    answer = server.client.infer("identity_bf16", [tensor("X", array, "BF16")])
    np.testing.assert_array_equal(answer.as_numpy("Y").astype(np.float32), array.astype(np.float32))


def test_a_large_tensor(server: Server) -> None:
    array = values("FP32", (8, 1 << 20))  # 32 MiB
    answer = ask_raw(server, "identity_fp32", "FP32", array)
    assert answer.raw_output_contents[0] == array.tobytes()


def test_id_and_version_are_echoed(server: Server) -> None:
    answer = server.client.infer(
        "identity_int32", [tensor("X", np.ones((1, 2), np.int32))], request_id="r-7"
    ).get_response()
    assert (answer.model_name, answer.model_version, answer.id) == ("identity_int32", "1", "r-7")


def test_only_requested_outputs_in_the_order_asked(server: Server) -> None:
    import tritonclient.grpc as triton

    answer = server.client.infer(
        "sum",
        [tensor("A", np.ones((1, 16), np.float32)), tensor("B", np.ones((1, 16), np.float32))],
        outputs=[triton.InferRequestedOutput("SUM")],
    ).get_response()
    assert [o.name for o in answer.outputs] == ["SUM"]


def test_classification(server: Server) -> None:
    import tritonclient.grpc as triton

    a = np.arange(32, dtype=np.float32).reshape(2, 16)
    a[1] = a[1, ::-1]
    answer = server.client.infer(
        "sum",
        [tensor("A", a), tensor("B", np.zeros((2, 16), np.float32))],
        outputs=[triton.InferRequestedOutput("SUM", class_count=2)],
    )
    assert answer.as_numpy("SUM").tolist() == [
        [b"15.000000:15:label15", b"14.000000:14:label14"],
        [b"31.000000:0:label0", b"30.000000:1:label1"],
    ]
