"""ONNX files as the quantiser takes them: opened and checked, and which of their layers can run in
INT8. Needs the package onnx."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from headrace.optimize.samples import Input

__all__ = ["Layer", "Left", "constants", "find_layers", "inputs_of", "open_model"]

Array = npt.NDArray[Any]
# DequantizeLinear with a scale for each channel.
OPSET = 13
_LARGEST = 2**31 - 1  # a protobuf message
_NOT_QUANTISED = {
    "ConvTranspose": "transposed convolutions stay in float",
    "LSTM": "recurrent layers stay in float",
    "GRU": "recurrent layers stay in float",
    "RNN": "recurrent layers stay in float",
    "Einsum": "stays in float",
}


@dataclass(frozen=True)
class Layer:
    """A node that multiplies activations by constant weights."""

    key: str  # the node's output: names of nodes may be missing or double
    name: str  # for people
    op: str  # Conv, MatMul or Gemm
    x: str  # the activation tensor it reads
    weight: str
    axis: int  # of the weights' output channels


@dataclass(frozen=True)
class Left:
    """A layer that stays in float, and why."""

    name: str
    op: str
    reason: str


def open_model(path: Path) -> Any:
    """The onnx.ModelProto, weights inside, in opset 13 or newer. Raises NotFoundError,
    InvalidArgumentError (no ONNX) and FailedPreconditionError (not one that can be quantised)."""
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise NotFoundError(f"{path} does not exist")
    try:
        model = onnx.load(str(path))
    except (DecodeError, OSError, ValueError, onnx.checker.ValidationError) as error:
        raise InvalidArgumentError(f"{path} is no ONNX model: {error}") from None
    if not model.graph.node or not model.opset_import:
        raise InvalidArgumentError(f"{path} is no ONNX model: it has no nodes")
    if model.ByteSize() >= _LARGEST:
        raise FailedPreconditionError(f"{path} has 2 GiB or more, which one ONNX file cannot hold")
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise InvalidArgumentError(f"{path} is no valid ONNX model: {error}") from None
    if found := [n for n in model.graph.node if "Quantize" in n.op_type or "QLinear" in n.op_type]:
        raise FailedPreconditionError(
            f"{path} is quantised already ({found[0].op_type}); give the float model"
        )
    if any(t.data_type == onnx.TensorProto.FLOAT16 for t in model.graph.initializer):
        raise FailedPreconditionError(f"{path} has float16 weights; give the float32 model")
    _drop_inputs_of_initializers(model)
    return _upgrade(model, path)


def _drop_inputs_of_initializers(model: Any) -> None:
    """Before IR version 4 every initializer was an input, too."""
    constant = {t.name for t in model.graph.initializer}
    kept = [i for i in model.graph.input if i.name not in constant]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.ir_version = max(model.ir_version, 4)


def _upgrade(model: Any, path: Path) -> Any:
    import onnx
    from onnx import version_converter

    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset >= OPSET:
        return model
    try:
        upgraded = version_converter.convert_version(model, OPSET)
        onnx.checker.check_model(upgraded)
    except Exception as error:  # the converter's C++ raises RuntimeError and others
        raise FailedPreconditionError(
            f"{path} has opset {opset}; INT8 weights need {OPSET}, and converting it failed "
            f"({str(error).strip().splitlines()[0]}). Export it again with opset {OPSET} or newer"
        ) from None
    upgraded.ir_version = max(upgraded.ir_version, 7)
    return upgraded


def inputs_of(model: Any) -> tuple[Input, ...]:
    import onnx

    found = []
    for one in model.graph.input:
        tensor = one.type.tensor_type
        if not tensor.elem_type:
            raise FailedPreconditionError(f"input '{one.name}' is no tensor")
        if not tensor.HasField("shape"):
            raise FailedPreconditionError(f"input '{one.name}' has no shape")
        dims = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
        found.append(Input(one.name, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type), dims))
    return tuple(found)


def constants(model: Any) -> dict[str, Any]:
    """TensorProtos by name: initializers and what Constant nodes hold."""
    found = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    return found


def find_layers(model: Any) -> tuple[list[Layer], list[Left]]:
    """What can be quantised, in the order of the graph, and what cannot and why."""
    import onnx

    known = constants(model)
    layers: list[Layer] = []
    left: list[Left] = []
    inside: Counter[str] = Counter()
    for node in model.graph.node:
        name = node.name or node.output[0]
        for attribute in node.attribute:
            for graph in [attribute.g, *attribute.graphs]:
                inside.update(n.op_type for n in graph.node if n.op_type in ("Conv", "MatMul"))
        if node.op_type in _NOT_QUANTISED:
            left.append(Left(name, node.op_type, _NOT_QUANTISED[node.op_type]))
        if node.op_type not in ("Conv", "MatMul", "Gemm"):
            continue
        weight = known.get(node.input[1])
        attributes = {a.name: a.i for a in node.attribute if a.type == onnx.AttributeProto.INT}
        reason = ""
        if weight is None:
            reason = "its weights are computed, not constant"
            if node.op_type == "MatMul":
                reason = "both sides are activations, as in attention"
        elif node.input[0] in known:
            reason = "both sides are constants"
        elif weight.data_type != onnx.TensorProto.FLOAT:
            reason = "its weights are not float32"
        elif node.op_type != "Conv" and len(weight.dims) != 2:
            reason = f"its weights have {len(weight.dims)} dimensions"
        elif attributes.get("transA", 0):
            reason = "its activations are transposed"
        if reason:
            left.append(Left(name, node.op_type, reason))
            continue
        axis = 0 if node.op_type == "Conv" else 1 - attributes.get("transB", 0)
        layers.append(Layer(node.output[0], name, node.op_type, node.input[0], node.input[1], axis))
    for op, count in inside.items():
        left.append(Left(f"{count} inside If, Loop or Scan", op, "control flow stays in float"))
    return layers, left


def weight_array(model_constants: dict[str, Any], name: str) -> Array:
    from onnx import numpy_helper

    array = np.asarray(numpy_helper.to_array(model_constants[name]))
    if not np.isfinite(array).all():
        raise InvalidArgumentError(f"the weights '{name}' have NaN or infinity")
    return array
