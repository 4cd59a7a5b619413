"""The benchmark's job: model ``identity``, X -> Y, FP32 [1, 16], output equals input.

Request and response bytes are written by hand (a few protobuf fields), so that the driver needs no
protobuf, and the models are written into a Triton-layout repository for Headrace.
"""

from __future__ import annotations

import struct
from pathlib import Path

__all__ = [
    "VALUES",
    "infer_request",
    "infer_response",
    "write_openvino_model",
    "write_repository",
]

# Exact in every float format down to bf16, all different, so that a wrong row shows.
VALUES = struct.pack("<16f", *(i * 0.5 - 4 for i in range(16)))

MODEL_PY = '''"""A plain Python model: numpy in, numpy out."""

inputs = {"X": ("FP32", [16])}
outputs = {"Y": ("FP32", [16])}
max_batch_size = 128


def infer(inputs):
    return {"Y": inputs["X"]}
'''


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return bytes([number << 3 | 2]) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def infer_request(model: str, values: bytes = VALUES, identifier: str = "") -> bytes:
    """Serialised ModelInferRequest with raw contents: FP32 [1, n]."""
    named = _field(3, identifier.encode()) if identifier else b""
    shape = _field(3, _varint(1) + _varint(len(values) // 4))
    tensor = _field(1, b"X") + _field(2, b"FP32") + shape
    return _field(1, model.encode()) + named + _field(5, tensor) + _field(7, values)


def infer_response(model: str) -> bytes:
    """Serialised ModelInferResponse that a server doing the job sends."""
    tensor = _field(1, b"Y") + _field(2, b"FP32") + _field(3, bytes([1, 16]))
    return _field(1, model.encode()) + _field(2, b"1") + _field(5, tensor) + _field(6, VALUES)


def write_openvino_model(folder: Path, width: int = 16) -> None:
    """``1/model.onnx``: Y = X + 0, [N, width], batch dimension free. Needs the onnx package."""
    import onnx
    from onnx import TensorProto, helper

    zero = helper.make_tensor("zero", TensorProto.FLOAT, [width], [0.0] * width)
    graph = helper.make_graph(
        [helper.make_node("Add", ["X", "zero"], ["Y"])],
        "identity",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["N", width])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["N", width])],
        [zero],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    (folder / "1").mkdir(parents=True)
    onnx.save(model, str(folder / "1" / "model.onnx"))
    (folder / "config.pbtxt").write_text("max_batch_size: 128\ndynamic_batching { }\n")


def write_callback_model(folder: Path) -> None:
    """``1/model.py``: a plain callable."""
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text(MODEL_PY)
    (folder / "config.pbtxt").write_text("max_batch_size: 128\ndynamic_batching { }\n")


def write_repository(folder: Path, model: str) -> None:
    """A repository with one model, named after its backend: ``openvino`` or ``callback``."""
    writers = {"openvino": write_openvino_model, "callback": write_callback_model}
    writers[model](folder / "identity")
