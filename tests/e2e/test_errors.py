"""What a wrong request is answered: Triton's codes and texts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest
from harness import Server, infer_request, raw_input
from tritonclient.grpc import service_pb2

Contents = service_pb2.InferTensorContents
InferParameter = service_pb2.InferParameter
ROW = np.ones((1, 16), np.float32).tobytes()

# "[request id: 7] " comes before what the model's signature check says.
ID = "[request id: 7] "
MAYBE_ID = re.escape(ID)


def sum_request(**changes: Any) -> Any:
    fields: dict[str, Any] = {
        "inputs": [raw_input("A", "FP32", [1, 16]), raw_input("B", "FP32", [1, 16])],
        "raw_input_contents": [ROW, ROW],
        "id": "7",
    }
    return infer_request(changes.pop("model", "sum"), **{**fields, **changes})


def fixed_request(**changes: Any) -> Any:
    fields: dict[str, Any] = {
        "inputs": [raw_input("X", "FP32", [1, 16])],
        "raw_input_contents": [ROW],
        "id": "7",
    }
    return infer_request("fixed", **{**fields, **changes})


def typed(name: str, dtype: str, shape: list[int], **contents: Any) -> Any:
    made = raw_input(name, dtype, shape)
    made.contents.CopyFrom(Contents(**contents))
    return made


def bytes_request(elements: int, data: bytes) -> Any:
    return infer_request(
        "identity_bytes",
        id="7",
        inputs=[raw_input("X", "BYTES", [1, elements])],
        raw_input_contents=[data],
    )


@dataclass(frozen=True)
class Case:
    """`text` is the whole answer, its beginning (`begins`) or an expression (`pattern`)."""

    name: str
    request: Any
    code: str
    text: str
    begins: bool = False
    pattern: bool = False


NOTE = (
    " NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be "
    "prepended to each input shape."
)

CASES = [
    Case(
        "unknown model",
        sum_request(model="nobody"),
        "NOT_FOUND",
        "Request for unknown model: 'nobody' is not found",
    ),
    Case(
        "unknown version",
        sum_request(model_version="7"),
        "NOT_FOUND",
        "Request for unknown model: 'sum' version 7 is not found",
    ),
    Case(
        "version that is no number",
        sum_request(model_version="x"),
        "INVALID_ARGUMENT",
        "failed to get model version from specified version string 'x' (details: stol), version "
        "should be an integral value > 0",
    ),
    Case(
        "negative version",
        sum_request(model_version="-1"),
        "INVALID_ARGUMENT",
        "invalid model version specified '-1' , version should be an integral value > 0",
    ),
    Case(
        "too few inputs",
        sum_request(inputs=[raw_input("A", "FP32", [1, 16])], raw_input_contents=[ROW]),
        "INVALID_ARGUMENT",
        ID + "expected 2 inputs but got 1 inputs for model 'sum'. Got input(s) ['A'], but missing "
        "required input(s) ['B']. Please provide all required input(s).",
    ),
    Case(
        "too many inputs",
        fixed_request(
            inputs=[raw_input("X", "FP32", [1, 16]), raw_input("Z", "FP32", [1, 16])],
            raw_input_contents=[ROW, ROW],
        ),
        "INVALID_ARGUMENT",
        rf"(?:{MAYBE_ID})?(?:expected 1 inputs but got 2 inputs for model 'fixed'.*"
        r"|unexpected inference input 'Z' for model 'fixed')",
        pattern=True,
    ),
    Case(
        "unknown input",
        fixed_request(inputs=[raw_input("Z", "FP32", [1, 16])]),
        "INVALID_ARGUMENT",
        rf"(?:{MAYBE_ID})?(?:unexpected inference input 'Z' for model 'fixed'"
        r"|expected 1 inputs but got 1 inputs for model 'fixed'\. Got input\(s\) \['Z'\], but "
        r"missing required input\(s\) \['X'\]\. Please provide all required input\(s\)\.)",
        pattern=True,
    ),
    Case(
        "unknown output",
        fixed_request(outputs=[service_pb2.ModelInferRequest.InferRequestedOutputTensor(name="Z")]),
        "INVALID_ARGUMENT",
        "unexpected inference output 'Z' for model 'fixed'",
    ),
    Case(
        "duplicate input",
        sum_request(inputs=[raw_input("A", "FP32", [1, 16]), raw_input("A", "FP32", [1, 16])]),
        "INVALID_ARGUMENT",
        "input 'A' already exists in request",
    ),
    Case(
        "datatype",
        fixed_request(inputs=[raw_input("X", "INT32", [1, 16])]),
        "INVALID_ARGUMENT",
        ID + "inference input 'X' data-type is 'INT32', but model 'fixed' expects 'FP32'",
    ),
    Case(
        "datatype that does not exist",
        fixed_request(inputs=[raw_input("X", "FLOAT", [1, 16])]),
        "INVALID_ARGUMENT",
        r".*(<invalid>|FLOAT).*",
        pattern=True,
    ),
    Case(
        "shape",
        fixed_request(inputs=[raw_input("X", "FP32", [1, 15])], raw_input_contents=[ROW[:60]]),
        "INVALID_ARGUMENT",
        ID
        + "unexpected shape for input 'X' for model 'fixed'. Expected [-1,16], got [1,15]."
        + NOTE,
        begins=True,
    ),
    Case(
        "rank",
        fixed_request(inputs=[raw_input("X", "FP32", [4])], raw_input_contents=[ROW[:16]]),
        "INVALID_ARGUMENT",
        ID + "unexpected shape for input 'X' for model 'fixed'. Expected [-1,16], got [4]." + NOTE,
        begins=True,
    ),
    Case(
        "shape without batching",
        infer_request(
            "flat_fp32",
            id="7",
            inputs=[raw_input("X", "FP32", [16])],
            raw_input_contents=[ROW],
        ),
        "INVALID_ARGUMENT",
        ID + "unexpected shape for input 'X' for model 'flat_fp32'. Expected [-1,-1], got [16]. ",
        begins=False,
    ),
    Case(
        "unspecified dim",
        fixed_request(inputs=[raw_input("X", "FP32", [1, -1])]),
        "INVALID_ARGUMENT",
        rf"(?:{MAYBE_ID})?All input dimensions should be specified for input 'X' for model "
        r"'fixed', got \[1,-1\]",
        pattern=True,
    ),
    Case(
        "byte size",
        fixed_request(raw_input_contents=[ROW[:60]]),
        "INVALID_ARGUMENT",
        ID + "input byte size mismatch for input 'X' for model 'fixed'. Expected 64, got 60",
    ),
    Case(
        "dims that overflow",
        infer_request(
            "flat_fp32",
            id="7",
            inputs=[raw_input("X", "FP32", [2**62, 2**62])],
            raw_input_contents=[ROW],
        ),
        "INVALID_ARGUMENT",
        r".+",
        pattern=True,
    ),
    Case(
        "dims whose bytes overflow to the right count",
        infer_request(
            "flat_fp32",
            id="7",
            inputs=[raw_input("X", "FP32", [2**62, 4])],
            raw_input_contents=[b""],
        ),
        "INVALID_ARGUMENT",
        r".+",
        pattern=True,
    ),
    Case(
        "batch too large",
        fixed_request(inputs=[raw_input("X", "FP32", [9, 16])], raw_input_contents=[ROW * 9]),
        "INVALID_ARGUMENT",
        ID + "inference request batch-size must be <= 8 for 'fixed'",
    ),
    Case(
        "batch sizes that differ",
        sum_request(
            inputs=[raw_input("A", "FP32", [1, 16]), raw_input("B", "FP32", [2, 16])],
            raw_input_contents=[ROW, ROW * 2],
        ),
        "INVALID_ARGUMENT",
        ID + "input 'B' batch size does not match other inputs for 'sum'",
    ),
    Case(
        "no data",
        fixed_request(raw_input_contents=[]),
        "INVALID_ARGUMENT",
        "unable to find data for input tensor 'X' for model 'fixed' in request.",
    ),
    Case(
        "contents and raw",
        fixed_request(inputs=[typed("X", "FP32", [1, 16], fp32_contents=[1.0] * 16)]),
        "INVALID_ARGUMENT",
        "contents field must not be specified when using raw_input_contents for 'X' for model "
        "'fixed'",
    ),
    Case(
        "typed field of another datatype",
        fixed_request(
            inputs=[typed("X", "FP32", [1, 16], int64_contents=[1] * 16)], raw_input_contents=[]
        ),
        "INVALID_ARGUMENT",
        "unexpected explicit tensor data for input tensor 'X' for model 'fixed' of type 'INT64', "
        "expected datatype 'FP32'",
    ),
    Case(
        "typed contents of the wrong length",
        fixed_request(
            inputs=[typed("X", "FP32", [1, 16], fp32_contents=[1.0] * 15)], raw_input_contents=[]
        ),
        "INVALID_ARGUMENT",
        ID + "input byte size mismatch for input 'X' for model 'fixed'. Expected 64, got 60",
    ),
    Case(
        "string length cut off",
        bytes_request(1, b"\x05\0\0"),
        "INVALID_ARGUMENT",
        r".*incomplete string length indicator for inference input 'X'.*",
        pattern=True,
    ),
    Case(
        "string cut off",
        bytes_request(1, b"\x05\0\0\0abc"),
        "INVALID_ARGUMENT",
        r".*(incomplete string data|expected 1 string elements) for inference input 'X'.*",
        pattern=True,
    ),
    Case(
        "4 GiB string",
        bytes_request(1, b"\xff\xff\xff\xffabc"),
        "INVALID_ARGUMENT",
        r".*(incomplete string data|expected 1 string elements) for inference input 'X'.*",
        pattern=True,
    ),
    Case(
        "too many strings",
        bytes_request(1, b"\x01\0\0\0a\x01\0\0\0b"),
        "INVALID_ARGUMENT",
        r".*unexpected number of string elements 2 for inference input 'X'.*expecting 1.*",
        pattern=True,
    ),
    Case(
        "too few strings",
        bytes_request(3, b"\x01\0\0\0a\x01\0\0\0b"),
        "INVALID_ARGUMENT",
        r".*expected 3 string elements for inference input 'X'.*got 2.*",
        pattern=True,
    ),
    Case(
        "priority of the wrong type",
        fixed_request(parameters={"priority": InferParameter(string_param="high")}),
        "INVALID_ARGUMENT",
        "invalid value type for 'priority' parameter, expected int64_param or uint64_param.",
    ),
    Case(
        "negative priority",
        fixed_request(parameters={"priority": InferParameter(int64_param=-1)}),
        "INVALID_ARGUMENT",
        "invalid value for 'priority', expected value >= 0.",
    ),
    Case(
        "timeout of the wrong type",
        fixed_request(parameters={"timeout": InferParameter(string_param="1s")}),
        "INVALID_ARGUMENT",
        "invalid value type for 'timeout' parameter, expected int64_param.",
    ),
    Case(
        "sequence_id of the wrong type",
        fixed_request(parameters={"sequence_id": InferParameter(bool_param=True)}),
        "INVALID_ARGUMENT",
        "invalid value type for 'sequence_id' parameter, expected int64_param or string_param.",
    ),
    Case(
        "sequence_start of the wrong type",
        fixed_request(parameters={"sequence_start": InferParameter(int64_param=1)}),
        "INVALID_ARGUMENT",
        "invalid value type for 'sequence_start' parameter, expected bool_param.",
    ),
    Case(
        "reserved parameter",
        fixed_request(parameters={"triton_mine": InferParameter(bool_param=True)}),
        "INVALID_ARGUMENT",
        "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following "
        "keys starting with 'triton_' are allowed: triton_enable_empty_final_response",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_wrong_request(server: Server, case: Case) -> None:
    with pytest.raises(grpc.RpcError) as error:
        server.stub.ModelInfer(case.request, timeout=20)
    told = error.value.details()
    assert error.value.code().name == case.code, told
    if case.pattern:
        assert re.fullmatch(case.text, told, re.DOTALL), told
    elif case.begins:
        assert told[: len(case.text)] == case.text
    else:
        assert told.rstrip() == case.text.rstrip()


def test_the_id_is_unknown_when_there_is_none(server: Server) -> None:
    with pytest.raises(grpc.RpcError) as error:
        server.stub.ModelInfer(fixed_request(id="", raw_input_contents=[ROW[:60]]))
    assert error.value.details().startswith("[request id: <id_unknown>] input byte size mismatch")


def test_the_right_request_is_answered(server: Server) -> None:
    """What the cases above change is right to begin with."""
    answer = server.stub.ModelInfer(sum_request())
    assert answer.raw_output_contents[0] == (np.ones(16, np.float32) * 2).tobytes()
    assert server.stub.ModelInfer(fixed_request()).raw_output_contents[0] == ROW


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("ModelMetadata", service_pb2.ModelMetadataRequest),
        ("ModelConfig", service_pb2.ModelConfigRequest),
    ],
)
def test_questions_about_an_unknown_model(server: Server, method: str, request_: Any) -> None:
    for fields, text in (
        ({"name": "nobody"}, "Request for unknown model: 'nobody' is not found"),
        (
            {"name": "sum", "version": "7"},
            "Request for unknown model: 'sum' version 7 is not found",
        ),
    ):
        with pytest.raises(grpc.RpcError) as error:
            getattr(server.stub, method)(request_(**fields))
        assert error.value.code() == grpc.StatusCode.NOT_FOUND
        assert error.value.details() == text


def test_statistics_of_an_unknown_model(server: Server) -> None:
    for name, version, text in (
        ("nobody", "", "requested model 'nobody' is not available"),
        ("sum", "7", "requested model version is not available for model 'sum'"),
    ):
        with pytest.raises(grpc.RpcError) as error:
            server.stub.ModelStatistics(
                service_pb2.ModelStatisticsRequest(name=name, version=version)
            )
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert error.value.details() == text


def test_model_ready_of_an_unknown_model_is_no_error(server: Server) -> None:
    for name, version in (("nobody", ""), ("sum", "7")):
        answer = server.stub.ModelReady(service_pb2.ModelReadyRequest(name=name, version=version))
        assert not answer.ready
