"""A writer of ONNX graphs for transformers, a method a layer. Weights in, nodes out; no torch.

Opset 20. Linear weights are (in, out) f32. With `int8` they are stored as int8 with a scale an
output channel (symmetric) behind DequantizeLinear: a quarter of the bytes that a decoding step
reads, for runtimes that multiply compressed weights (OpenVINO does); the arithmetic around them
stays f32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["OPSET", "Graph", "quantize_columns"]

OPSET = 20
_NORM_EPSILON = 1e-5


def quantize_columns(weight: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """(int8 values, f32 scale a column) of `weight` (in, out); what is stored is values * scale."""
    scale = np.abs(weight).max(axis=0) / 127.0
    scale = np.where(scale == 0, 1.0, scale).astype(np.float32)
    values = np.clip(np.rint(weight / scale), -127, 127).astype(np.int8)
    return values, scale


class Graph:
    """Nodes in order. Every method returns the name of what it computes."""

    def __init__(self, name: str, *, int8: bool) -> None:
        self.name = name
        self.int8 = int8
        self._nodes: list[Any] = []
        self._initializers: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._count = 0

    # -- the graph itself --

    def add_input(self, name: str, dtype: str, shape: Sequence[int | str]) -> str:
        self._inputs.append(_value(name, dtype, shape))
        return name

    def add_output(self, value: str, name: str, dtype: str, shape: Sequence[int | str]) -> None:
        self.node("Identity", value, outputs=[name])
        self._outputs.append(_value(name, dtype, shape))

    def node(
        self, op: str, *inputs: str, outputs: Sequence[str] | None = None, **attributes: Any
    ) -> str:
        """Appends a node and returns its first output."""
        from onnx import helper

        self._count += 1
        names = list(outputs) if outputs else [f"{op.lower()}_{self._count}"]
        self._nodes.append(
            helper.make_node(op, inputs, names, name=f"{op}_{self._count}", **attributes)
        )
        return names[0]

    def split(self, x: str, sizes: Sequence[int], axis: int) -> list[str]:
        self._count += 1
        names = [f"split_{self._count}_{i}" for i in range(len(sizes))]
        self.node("Split", x, self.ints(*sizes), outputs=names, axis=axis)
        return names

    def constant(self, array: NDArray[Any], hint: str = "constant") -> str:
        """An initializer; equal ones are kept once."""
        from onnx import numpy_helper

        array = np.ascontiguousarray(array)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"{hint}_{len(self._constants)}"
            self._constants[key] = name
            self._initializers.append(numpy_helper.from_array(array, name))
        return self._constants[key]

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def scalar(self, value: int, dtype: Any = np.int64) -> str:
        return self.constant(np.array(value, dtype))

    def model(self, metadata: dict[str, str]) -> Any:
        """The ModelProto, checked."""
        import onnx
        from onnx import helper

        graph = helper.make_graph(
            self._nodes, self.name, self._inputs, self._outputs, self._initializers
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            producer_name="headrace",
            ir_version=9,
        )
        helper.set_model_props(model, metadata)
        onnx.checker.check_model(model)
        return model

    # -- layers --

    def add(self, a: str, b: str) -> str:
        return self.node("Add", a, b)

    def weight(self, weight: NDArray[Any]) -> str:
        """A matrix (in, out), f32 to whoever multiplies with it."""
        if not self.int8:
            return self.constant(weight.astype(np.float32), "weight")
        values, scale = quantize_columns(weight)
        return self.node(
            "DequantizeLinear",
            self.constant(values, "weight"),
            self.constant(scale, "scale"),
            axis=1,
        )

    def linear(self, x: str, weight: NDArray[Any], bias: NDArray[Any] | None = None) -> str:
        product = self.node("MatMul", x, self.weight(weight))
        if bias is None or not np.any(bias):
            return product
        return self.add(product, self.constant(bias.astype(np.float32), "bias"))

    def layer_norm(self, x: str, weight: NDArray[Any], bias: NDArray[Any] | None = None) -> str:
        bias = np.zeros_like(weight) if bias is None else bias
        return self.node(
            "LayerNormalization",
            x,
            self.constant(weight.astype(np.float32), "norm"),
            self.constant(bias.astype(np.float32), "norm"),
            axis=-1,
            epsilon=_NORM_EPSILON,
        )

    def conv(
        self,
        x: str,
        weight: NDArray[Any],
        bias: NDArray[Any] | None,
        *,
        stride: int,
        padding: int = 0,
    ) -> str:
        """1-d, `x` (batch, channels, time)."""
        inputs = [x, self.constant(weight.astype(np.float32), "conv")]
        if bias is not None:
            inputs.append(self.constant(bias.astype(np.float32), "bias"))
        return self.node("Conv", *inputs, strides=[stride], pads=[padding, padding])

    def embedding(self, ids: str, table: NDArray[Any]) -> tuple[str, str]:
        """`table` (vocabulary, width): (rows of `ids`, table transposed, for the logits)."""
        if not self.int8:
            stored = self.constant(table.astype(np.float32), "embedding")
            return self.node("Gather", stored, ids), self.node("Transpose", stored, perm=[1, 0])
        values, scale = quantize_columns(table.T)
        stored = self.constant(values.T, "embedding")
        scales = self.constant(scale, "scale")
        rows = self.node("Cast", self.node("Gather", stored, ids), to=1)
        row_scales = self.node("Unsqueeze", self.node("Gather", scales, ids), self.ints(-1))
        whole = self.node("DequantizeLinear", stored, scales, axis=0)
        return (
            self.node("Mul", rows, row_scales),
            self.node("Transpose", whole, perm=[1, 0]),
        )

    def heads(self, x: str, count: int, width: int) -> str:
        """(batch, time, count * width) to (batch, count, time, width)."""
        apart = self.node("Reshape", x, self.ints(0, 0, count, width))
        return self.node("Transpose", apart, perm=[0, 2, 1, 3])

    def attend(self, q: str, k: str, v: str, mask: str | None = None) -> tuple[str, str]:
        """(what heads saw as (batch, time, width), their weights). `q` is scaled already; `mask` is
        added to the scores. All (batch, heads, time, head's width)."""
        scores = self.node("MatMul", q, self.node("Transpose", k, perm=[0, 1, 3, 2]))
        if mask is not None:
            scores = self.add(scores, mask)
        weights = self.node("Softmax", scores, axis=-1)
        seen = self.node("Transpose", self.node("MatMul", weights, v), perm=[0, 2, 1, 3])
        return self.node("Reshape", seen, self.ints(0, 0, -1)), weights


def _value(name: str, dtype: str, shape: Sequence[int | str]) -> Any:
    from onnx import TensorProto, helper

    kinds = {"f32": TensorProto.FLOAT, "i64": TensorProto.INT64}
    return helper.make_tensor_value_info(name, kinds[dtype], list(shape))
