"""ModelInfer's messages, read and written by hand in C++, against protobuf itself."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import DecodeError
from tritonclient.grpc import InferResult, service_pb2

from headrace import _ext
from headrace.protocol import kserve

MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
NOT_PROTOBUF = "Exception deserializing request!"

# datatype -> (NumPy dtype, typed field)
DTYPES: dict[str, tuple[Any, str | None]] = {
    "BOOL": (np.bool_, "bool_contents"),
    "UINT8": (np.uint8, "uint_contents"),
    "UINT16": (np.uint16, "uint_contents"),
    "UINT32": (np.uint32, "uint_contents"),
    "UINT64": (np.uint64, "uint64_contents"),
    "INT8": (np.int8, "int_contents"),
    "INT16": (np.int16, "int_contents"),
    "INT32": (np.int32, "int_contents"),
    "INT64": (np.int64, "int64_contents"),
    "FP16": (np.float16, None),
    "FP32": (np.float32, "fp32_contents"),
    "FP64": (np.float64, "fp64_contents"),
    "BF16": (np.uint16, None),
    "BYTES": (np.object_, "bytes_contents"),
}


def wire_bytes(array: Any) -> bytes:
    if array.dtype != object:
        return bytes(array.tobytes())
    return b"".join(struct.pack("<I", len(e)) + e for e in array.ravel().tolist())


def random_array(rng: random.Random, datatype: str) -> Any:
    shape = [rng.choice((0, 1, 2, 3, 7)) for _ in range(rng.randrange(3))]
    if datatype == "BYTES":
        array = np.empty(shape, object)
        for i in np.ndindex(*shape):
            array[i] = rng.randbytes(rng.randrange(5))
        return array
    dtype = np.dtype(DTYPES[datatype][0])
    bits = rng.randbytes(int(np.prod(shape)) * dtype.itemsize)
    if datatype == "BOOL":
        return (np.frombuffer(bits, np.uint8) > 127).reshape(shape)
    array = np.frombuffer(bits, dtype).reshape(shape)
    if datatype in ("FP32", "FP64"):  # a float that goes through Python may quieten its NaN
        array = np.nan_to_num(array)
    return array


def random_request(rng: random.Random, arrays: dict[str, Any], raw: bool) -> Any:
    request = kserve.ModelInferRequest(model_name="m", id=rng.choice(("", "7", "é")))
    if rng.random() < 0.3:
        request.parameters["priority"].uint64_param = 1
    if rng.random() < 0.3:
        request.parameters["mine"].string_param = "v"
    for datatype, array in arrays.items():
        tensor = request.inputs.add(name=datatype, datatype=datatype, shape=array.shape)
        if raw:
            request.raw_input_contents.append(wire_bytes(array))
        else:
            values = getattr(tensor.contents, str(DTYPES[datatype][1]))
            values.extend(array.ravel().tolist())
            tensor.contents.SetInParent()
    return request


@pytest.fixture
def server(make_server: Callable[..., Any]) -> Any:
    server = make_server()
    server.start()
    return server


@pytest.fixture
def everything(server: Any) -> Any:
    """Model "m": an optional input for each datatype, up to rank 2; `seen` has the last call's."""

    class Everything:
        seen: dict[str, Any]

        def __call__(self, arrays: dict[str, Any]) -> dict[str, Any]:
            self.seen = arrays
            return {"N": np.array([len(arrays)], np.int64)}

    model = Everything()
    # One version for each rank: the dims of a signature have a rank.
    versions = {}
    for rank in range(3):
        inputs = [
            _ext.TensorSpec(datatype, datatype, [-1] * rank, optional=True) for datatype in DTYPES
        ]
        outputs = [_ext.TensorSpec("N", "INT64", [1])]
        versions[rank + 1] = _ext.ModelVersion(
            _ext.ModelSpec("m", rank + 1, 0, inputs, outputs),
            _ext.callback_model([model], inputs, outputs),
            policy=_ext.BatchPolicy(),
            instances=1,
        )
        versions[rank + 1].start()
    server.publish({"m": versions})
    yield model
    server.stop(0.0)
    for version in versions.values():
        version.close()


def test_random_requests_arrive_as_they_were_meant(
    server: Any, everything: Any, connect: Callable[..., Any]
) -> None:
    caller = connect(server)
    rng = random.Random(1)
    for round_ in range(400):
        raw = round_ % 2 == 0
        datatypes = [d for d in DTYPES if raw or DTYPES[d][1]]
        arrays = {d: random_array(rng, d) for d in rng.sample(datatypes, rng.randrange(1, 6))}
        rank = next(iter(arrays.values())).ndim
        arrays = {d: a for d, a in arrays.items() if a.ndim == rank}
        request = random_request(rng, arrays, raw)
        request.model_version = str(rank + 1)
        answer = kserve.ModelInferResponse.FromString(
            caller(MODEL_INFER, request.SerializeToString())
        )
        assert answer.id == request.id
        assert answer.model_version == request.model_version
        assert set(everything.seen) == set(arrays)
        for datatype, array in arrays.items():
            seen = everything.seen[datatype]
            assert seen.shape == array.shape
            assert wire_bytes(seen) == wire_bytes(array), datatype


def mutate(rng: random.Random, message: bytes) -> bytes:
    data = bytearray(message)
    for _ in range(rng.randrange(1, 3)):
        at = rng.randrange(len(data) + 1)
        length = rng.randrange(1, 9)
        match rng.randrange(6):
            case 0 if at < len(data):
                data[at] = rng.randrange(256)
            case 1 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = data[at : at + length]
            case 4:
                data[at:at] = rng.randbytes(length)
            case _:
                del data[at:]
    return bytes(data)


def has_group(message: bytes) -> bool:
    """Whether protobuf found a group: it keeps unknown fields, and writes them again."""
    parsed = kserve.ModelInferRequest.FromString(message)
    before = len(parsed.SerializeToString())
    parsed.DiscardUnknownFields()
    return len(parsed.SerializeToString()) != before and any(b & 7 == 3 for b in message)


def test_what_protobuf_refuses_is_refused_and_nothing_else_is_called_garbage(
    server: Any, everything: Any, connect: Callable[..., Any]
) -> None:
    caller = connect(server)
    rng = random.Random(20261122)
    refused = accepted = 0
    pending: list[tuple[bytes, Any]] = []

    def settle() -> None:
        nonlocal refused, accepted
        for message, call in pending:
            code, details = call.code(), call.details()
            try:
                kserve.ModelInferRequest.FromString(message)
            except DecodeError:
                refused += 1
                assert code in (
                    grpc.StatusCode.INTERNAL,
                    # Told before the part that is garbage was looked into, or a length or tag that
                    # is longer than protobuf likes.
                    grpc.StatusCode.INVALID_ARGUMENT,
                    grpc.StatusCode.NOT_FOUND,
                ), message
            else:
                accepted += 1
                if details == NOT_PROTOBUF:
                    assert has_group(message), message
                else:
                    assert code in (
                        grpc.StatusCode.OK,
                        grpc.StatusCode.INVALID_ARGUMENT,
                        grpc.StatusCode.NOT_FOUND,
                        grpc.StatusCode.UNIMPLEMENTED,
                    ), (message, code, details)
        pending.clear()

    for round_ in range(3000):
        raw = round_ % 2 == 0
        datatypes = [d for d in DTYPES if raw or DTYPES[d][1]]
        arrays = {d: random_array(rng, d) for d in rng.sample(datatypes, 3)}
        message = mutate(rng, random_request(rng, arrays, raw).SerializeToString())
        pending.append((message, caller.begin(MODEL_INFER, message)))
        if len(pending) == 100:
            settle()
    settle()
    assert refused > 500 and accepted > 200


def test_every_prefix_of_a_request_is_refused_as_protobuf_refuses_it(
    server: Any, everything: Any, connect: Callable[..., Any]
) -> None:
    caller = connect(server)
    rng = random.Random(5)
    arrays = {"INT32": random_array(rng, "INT32"), "BYTES": np.array([b"x", b""], object)}
    whole = random_request(rng, arrays, raw=False).SerializeToString()
    calls = [caller.begin(MODEL_INFER, whole[:size]) for size in range(len(whole))]
    for size, call in enumerate(calls):
        try:
            kserve.ModelInferRequest.FromString(whole[:size])
            assert call.details() != NOT_PROTOBUF, size
        except DecodeError:
            assert (call.code(), call.details()) == (grpc.StatusCode.INTERNAL, NOT_PROTOBUF), size


def test_groups_are_the_one_form_of_protobuf_that_is_refused(
    server: Any, everything: Any, connect: Callable[..., Any]
) -> None:
    """No proto3 sender writes them; protobuf skips them as unknown fields."""
    group = b"\x83\x01\x08\x01\x84\x01"  # field 16, start; field 1 = 1; field 16, end
    kserve.ModelInferRequest.FromString(group)
    error = connect(server).error(MODEL_INFER, group)
    assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, NOT_PROTOBUF)


@pytest.mark.parametrize("sizes", [[], [1], [16384], [1, 16384, 2], [16384] * 3, [0, 0], [5] * 40])
def test_responses_read_back_with_other_peoples_stubs(
    sizes: list[int], server: Any, make_version: Callable[..., Any], connect: Callable[..., Any]
) -> None:
    """Outputs and raw_output_contents are in the same order: clients go by position."""
    rng = np.random.default_rng(3)
    outputs: dict[str, Any] = {
        f"out{i}": rng.integers(0, 256, size, np.uint8) for i, size in enumerate(sizes)
    }
    outputs["words"] = np.array([b"a", b"", b"\xff" * 20000], object)
    outputs["empty"] = np.zeros((0, 3), np.float32)
    tensors = {
        name: ({"uint8": "UINT8", "object": "BYTES"}.get(a.dtype.name, "FP32"), [-1] * a.ndim)
        for name, a in outputs.items()
    }
    version = make_version(lambda arrays: outputs, {"X": ("FP32", [-1])}, tensors)
    server.publish({"m": {1: version}})
    request = kserve.ModelInferRequest(model_name="m", id="r-é")
    request.inputs.add(name="X", datatype="FP32", shape=[0])
    request.raw_input_contents.append(b"")
    reply = connect(server)(MODEL_INFER, request.SerializeToString())
    response = service_pb2.ModelInferResponse.FromString(reply)
    assert (response.model_name, response.model_version, response.id) == ("m", "1", "r-é")
    assert [o.name for o in response.outputs] == list(outputs)
    assert len(response.raw_output_contents) == len(outputs)
    result = InferResult(response)
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        assert output.datatype == tensors[output.name][0]
        assert raw == wire_bytes(outputs[output.name])
        assert tuple(output.shape) == outputs[output.name].shape
        assert np.array_equal(result.as_numpy(output.name), outputs[output.name])
    # The same bytes as protobuf's own, but for the order that both allow.
    assert kserve.ModelInferResponse.FromString(reply).SerializeToString() == (
        response.SerializeToString()
    )
    server.publish({})
    version.close()
