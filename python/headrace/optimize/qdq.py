"""Rewrites of an ONNX graph: smoothing factors moved into weights, and QuantizeLinear/
DequantizeLinear pairs in the one form that TensorRT, TensorRT-RTX, OpenVINO and onnxruntime take:

    x -> Q -> DQ -> Conv | MatMul | Gemm -> y      float in, float out
              w (int8) -> DQ -/   bias: as it was

Activations symmetric int8 with a scale per tensor, weights int8 with a scale per output channel,
zero points 0, biases in float (an int32 one behind a DQ is an error to TensorRT), nothing at
outputs. This is a subset of what onnxruntime.quantization writes. It is written here because one
search builds dozens of variants of a model, each in milliseconds, from thresholds of its own; a
test compares the result with that library's. Needs the package onnx.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.optimize.layers import Layer, constants, weight_array
from headrace.optimize.smooth import quantize_weights

__all__ = ["Group", "foldable", "insert", "smooth"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Group:
    """Linear layers that read one tensor, and what its channels are divided by for them."""

    x: str
    keys: tuple[str, ...]
    divide_by: Array


class _Editor:
    """Finds nodes by their tensors and adds constants under names that are free."""

    def __init__(self, model: Any) -> None:
        graph = model.graph
        self.graph = graph
        self.constants = constants(model)
        self.producer = {out: node for node in graph.node for out in node.output if out}
        self.readers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.outputs = {o.name for o in graph.output}
        # Subgraphs read outer tensors by name.
        self.inner = {
            name
            for node in graph.node
            for attribute in node.attribute
            for sub in [attribute.g, *attribute.graphs]
            for inside in sub.node
            for name in inside.input
        }
        self.names = {*self.constants, *self.producer, *(i.name for i in graph.input)}

    def only_read_by(self, name: str, nodes: Sequence[Any]) -> bool:
        wanted = {id(n) for n in nodes}
        return (
            name not in self.outputs
            and name not in self.inner
            and {id(n) for n in self.readers.get(name, [])} <= wanted
        )

    def free(self, name: str) -> str:
        found, count = name, 1
        while found in self.names:
            count += 1
            found = f"{name}.{count}"
        self.names.add(found)
        return found

    def add(self, name: str, value: Array) -> str:
        from onnx import numpy_helper

        name = self.free(name)
        tensor = numpy_helper.from_array(np.array(value, order="C"), name)
        self.graph.initializer.append(tensor)
        self.constants[name] = tensor
        return name


def _vector(editor: _Editor, name: str, channels: int) -> Array | None:
    """A constant that is broadcast along the last axis: (channels,), or one number."""
    if name not in editor.constants:
        return None
    value = weight_array(editor.constants, name)
    if value.dtype != np.float32 or value.size not in (1, channels):
        return None
    if value.size > 1 and value.shape[-1] != channels:
        return None
    return np.broadcast_to(value.reshape(-1), (channels,))


def _is_full(editor: _Editor, name: str, channels: int) -> bool:
    vector = _vector(editor, name, channels)
    return vector is not None and editor.constants[name].dims[-1:] == [channels]


def _fold_plan(
    editor: _Editor, x: str, readers: Sequence[Any], channels: int
) -> list[tuple[Any, int, int]] | None:
    """(node, input, axis) of the constants that, divided by s along the axis, divide x by s; None
    when x is not the output of a linear or normalising layer that only `readers` read."""
    plan: list[tuple[Any, int, int]] = []
    while True:
        node = editor.producer.get(x)
        if node is None or not editor.only_read_by(x, readers):
            return None
        readers = [node]
        if node.op_type in ("Relu", "LeakyRelu", "Identity"):  # f(x / s) = f(x) / s
            x = node.input[0]
        elif node.op_type == "Add":
            constant = [_vector(editor, name, channels) is not None for name in node.input]
            if not any(constant):
                return None
            at = constant.index(True)
            plan.append((node, at, 0))
            x = node.input[1 - at]
        elif node.op_type == "Mul":
            # Not one number: that may be GELU's 0.5, which runtimes look for.
            at = next((i for i in (0, 1) if _is_full(editor, node.input[i], channels)), 2)
            return None if at == 2 else [*plan, (node, at, 0)]
        elif node.op_type == "LayerNormalization":
            if not all(_is_full(editor, name, channels) for name in node.input[1:]):
                return None
            return [*plan, *((node, i, 0) for i in range(1, len(node.input)))]
        elif node.op_type in ("MatMul", "Gemm"):
            return _fold_into_linear(editor, node, plan, channels)
        else:
            return None


def _fold_into_linear(
    editor: _Editor, node: Any, plan: list[tuple[Any, int, int]], channels: int
) -> list[tuple[Any, int, int]] | None:
    weight = editor.constants.get(node.input[1])
    if weight is None or len(weight.dims) != 2:
        return None
    axis = 1 - next((a.i for a in node.attribute if a.name == "transB"), 0)
    if weight.dims[axis] != channels:
        return None
    plan = [*plan, (node, 1, axis)]
    if len(node.input) > 2 and node.input[2]:
        if _vector(editor, node.input[2], channels) is None:
            return None
        plan.append((node, 2, 0))
    return plan


def foldable(model: Any, x: str, keys: Sequence[str], channels: int) -> bool:
    """Whether dividing x costs nothing, because what makes it can be changed."""
    editor = _Editor(model)
    readers = [editor.producer[key] for key in keys]
    return _fold_plan(editor, x, readers, channels) is not None


def smooth(model: Any, groups: Sequence[Group]) -> Any:
    """A copy in which the groups' tensors are divided and their weights multiplied: the same
    function, but for rounding. A tensor that others read as well gets a Mul for these layers."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for group in groups:
        editor = _Editor(copy)
        s = group.divide_by.astype(np.float32)
        readers = [editor.producer[key] for key in group.keys]
        plan = _fold_plan(editor, group.x, readers, len(s))
        x = group.x
        if plan is None:
            x = _add_mul(editor, group, s)
        for node, at, axis in plan or ():
            old = weight_array(editor.constants, node.input[at])
            if old.ndim == 2 and node.op_type in ("MatMul", "Gemm") and at == 1:
                new = old / (s if axis == 1 else s[:, None])
            else:
                new = np.broadcast_to(old.reshape(-1), s.shape) / s
            node.input[at] = editor.add(f"{node.input[at]}.smoothed", new)
        for node in readers:
            node.input[0] = x
            trans = next((a.i for a in node.attribute if a.name == "transB"), 0)
            old = weight_array(editor.constants, node.input[1])
            new = old * (s if trans else s[:, None])
            node.input[1] = editor.add(f"{node.input[1]}.smoothed", new)
    _drop_unused(copy)
    return copy


def _add_mul(editor: _Editor, group: Group, s: Array) -> str:
    from onnx import helper

    factor = editor.add(f"{group.x}.smooth_factor", 1 / s)
    out = editor.free(f"{group.x}.smoothed")
    keys = set(group.keys)
    at = next(i for i, n in enumerate(editor.graph.node) if n.output and n.output[0] in keys)
    editor.graph.node.insert(at, helper.make_node("Mul", [group.x, factor], [out], name=out))
    return out


def insert(model: Any, layers: Sequence[Layer], thresholds: Mapping[str, float], bits: int) -> Any:
    """A copy with `layers` of it in INT8. `thresholds`: of each layer, by key, the magnitude of its
    activations that becomes 127; those that share a tensor share the threshold."""
    import onnx
    from onnx import helper

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    editor = _Editor(copy)
    wanted = {layer.key: layer for layer in layers}
    zero = editor.add("int8_zero_point", np.array(0, np.int8))
    activations: dict[str, str] = {}
    weights: dict[tuple[str, int], str] = {}
    nodes: list[Any] = []

    def pair(x: str, threshold: float) -> str:
        # A tensor that was always 0 may be anything small elsewhere.
        scale = editor.add(f"{x}.scale", np.array((threshold or 1.0) / 127, np.float32))
        q, dq = editor.free(f"{x}.int8"), editor.free(f"{x}.dequantized")
        nodes.append(helper.make_node("QuantizeLinear", [x, scale, zero], [q], name=q))
        nodes.append(helper.make_node("DequantizeLinear", [q, scale, zero], [dq], name=dq))
        return dq

    def constant(name: str, axis: int) -> str:
        array, scales = quantize_weights(weight_array(editor.constants, name), axis, bits)
        q = editor.add(f"{name}.int8", array)
        scale = editor.add(f"{name}.scale", scales)
        zeros = editor.add(f"{name}.zero_point", np.zeros(len(scales), np.int8))
        dq = editor.free(f"{name}.dequantized")
        nodes.append(helper.make_node("DequantizeLinear", [q, scale, zeros], [dq], dq, axis=axis))
        return dq

    for node in copy.graph.node:
        layer = wanted.get(node.output[0]) if node.output else None
        if layer is not None:
            if layer.x not in activations:
                activations[layer.x] = pair(layer.x, thresholds[layer.key])
            if (layer.weight, layer.axis) not in weights:
                weights[layer.weight, layer.axis] = constant(layer.weight, layer.axis)
            node.input[0] = activations[layer.x]
            node.input[1] = weights[layer.weight, layer.axis]
        nodes.append(node)
    ordered = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del copy.graph.node[:]
    copy.graph.node.extend(ordered)
    _drop_unused(copy)
    return copy


def _drop_unused(model: Any) -> None:
    """Float weights that nothing reads any more, and Constant nodes alike."""
    editor = _Editor(model)
    used = {*editor.readers, *editor.inner, *editor.outputs}
    graph = model.graph
    nodes = [n for n in graph.node if n.op_type != "Constant" or n.output[0] in used]
    tensors = [t for t in graph.initializer if t.name in used]
    if len(nodes) < len(graph.node):
        kept = [type(n).FromString(n.SerializeToString()) for n in nodes]
        del graph.node[:]
        graph.node.extend(kept)
    if len(tensors) < len(graph.initializer):
        kept = [type(t).FromString(t.SerializeToString()) for t in tensors]
        del graph.initializer[:]
        graph.initializer.extend(kept)
