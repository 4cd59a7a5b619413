"""Weights out of exported ONNX graphs, found by the module paths in their nodes' names.

torch's exporter names a linear layer's node "/model/decoder/layers.0/self_attn/q_proj/MatMul"
while it renames and transposes the weight itself, so that names of nodes are what can be trusted.
What feeds a node may be computed from constants (an int8 weight that is cast, scaled and shifted):
it is evaluated here. Branches of an `If` (Optimum's "merged" decoders) are looked at as if they
stood in one row.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.errors import InvalidArgumentError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["OnnxWeights"]


class OnnxWeights:
    """One model. Paths are matched at their end: "layers.0/mlp/fc1" is ".../layers.0/mlp/fc1"."""

    def __init__(self, path: Path) -> None:
        """`path`: .onnx, or .ort, which onnxruntime writes as .onnx again. InvalidArgumentError."""
        self.path = path
        model = _read(path)
        self._nodes: dict[str, Any] = {}
        self._producers: dict[str, Any] = {}
        self._readers: dict[str, list[Any]] = {}
        self._initializers: dict[str, Any] = {}
        self._values: dict[str, NDArray[Any] | None] = {}
        self._roots: list[str] = []
        for graph in _graphs(model.graph):
            for initializer in graph.initializer:
                self._initializers.setdefault(initializer.name, initializer)
            for node in graph.node:
                self._nodes.setdefault(node.name, node)
                for name in node.output:
                    self._producers.setdefault(name, node)
                for name in node.input:
                    self._readers.setdefault(name, []).append(node)
        self.metadata = {entry.key: entry.value for entry in model.metadata_props}
        # 0: dynamic.
        self.shapes = {
            value.name: [size.dim_value for size in value.type.tensor_type.shape.dim]
            for value in (*model.graph.input, *model.graph.output)
        }

    def has(self, path: str) -> bool:
        return self._find(path) is not None

    def count_layers(self, pattern: str) -> int:
        """How many i there are from 0 with `pattern`.format(i)."""
        count = 0
        while self.has(pattern.format(count)):
            count += 1
        return count

    def linear(self, path: str) -> NDArray[Any]:
        """The weight (in, out) of the linear layer `path`."""
        return self._constant_input(self._node(f"{path}/MatMul"))

    def linear_bias(self, path: str) -> NDArray[Any] | None:
        for reader in self._readers.get(self._node(f"{path}/MatMul").output[0], []):
            if reader.op_type == "Add":
                for name in reader.input:
                    value = self._constant(name)
                    if value is not None:
                        return value
        return None

    def norm(self, path: str) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """(weight, bias or None) of the layer norm `path`, written out or as one node."""
        whole = self._find(f"{path}/LayerNormalization")
        if whole is not None:
            values = [self._constant(name) for name in whole.input[1:]]
            if values and values[0] is not None:
                return values[0], values[1] if len(values) > 1 else None
        scale = self._node(f"{path}/Mul")
        for reader in self._readers.get(scale.output[0], []):
            if reader.op_type == "Add" and reader.name.endswith(f"{path}/Add_1"):
                return self._constant_input(scale), self._constant_input(reader)
        return self._constant_input(scale), None

    def conv(self, path: str) -> tuple[NDArray[Any], NDArray[Any] | None]:
        node = self._node(f"{path}/Conv")
        weight = self._constant(node.input[1])
        if weight is None:
            raise InvalidArgumentError(f"{self.path}: the weight of {path} is no constant")
        return weight, self._constant(node.input[2]) if len(node.input) > 2 else None

    def constant_of(self, node: str) -> NDArray[Any]:
        """The constant that the node `node` reads."""
        return self._constant_input(self._node(node))

    def float_behind(self, node: str) -> NDArray[Any]:
        """The nearest stored array of f32 that what `node` reads is made of."""
        names, seen = list(self._node(node).input), set[str]()
        while names:
            name = names.pop(0)
            if name in seen:
                continue
            seen.add(name)
            value = self._constant(name)
            if value is not None and value.dtype.kind == "f" and value.size > 1:
                return value
            if name in self._producers:
                names.extend(self._producers[name].input)
        raise InvalidArgumentError(f"{self.path}: no table behind '{node}'")

    def initializer(self, ending: str) -> NDArray[Any] | None:
        """The stored array whose name ends so."""
        for name in self._initializers:
            if name.endswith(ending):
                return self._constant(name)
        return None

    def added_table(self, width: int) -> NDArray[Any] | None:
        """A stored (rows, width) or (1, rows, width) array that an Add, Slice or Gather reads, but
        not the embedding of tokens."""
        for name in self._initializers:
            readers = self._readers.get(name, [])
            if not any(reader.op_type in ("Add", "Slice", "Gather") for reader in readers):
                continue
            if any("token" in reader.name for reader in readers):
                continue
            value = self._constant(name)
            if value is not None and value.ndim > 1 and value.shape[-1] == width:
                table: NDArray[Any] = value.reshape(-1, width)
                if len(table) > 1:
                    return table
        return None

    def _find(self, path: str) -> Any | None:
        for start in ("", "/"):
            for prefix in self._prefixes():
                node = self._nodes.get(f"{prefix}{start}{path}")
                if node is not None:
                    return node
        return None

    def _prefixes(self) -> list[str]:
        """What stands before "/layers.0/" or "/blocks.0/" in this model's names; tried in this
        order."""
        if not self._roots:
            found: dict[str, None] = {"": None}
            for name in self._nodes:
                parts = name.split("/")
                for end in range(1, len(parts)):
                    prefix = "/".join(parts[:end])
                    if parts[end].split(".")[0] in _ROOTS:
                        found[prefix] = None
            self._roots = list(found)
        return self._roots

    def _node(self, path: str) -> Any:
        node = self._find(path)
        if node is None:
            raise InvalidArgumentError(
                f"{self.path} has no node '{path}': it is not the export that is expected here "
                "(Optimum or sherpa-onnx, through torch's exporter, not quantized)"
            )
        return node

    def _constant_input(self, node: Any) -> NDArray[Any]:
        for name in node.input:
            value = self._constant(name)
            if value is not None:
                return value
        raise InvalidArgumentError(f"{self.path}: node '{node.name}' reads no constant")

    def _constant(self, name: str) -> NDArray[Any] | None:
        """What `name` always is; None when it depends on an input."""
        if name not in self._values:
            self._values[name] = self._evaluate(name)
        return self._values[name]

    def _evaluate(self, name: str) -> NDArray[Any] | None:
        from onnx import numpy_helper

        if name in self._initializers:
            stored: NDArray[Any] = numpy_helper.to_array(self._initializers[name])
            return stored
        node = self._producers.get(name)
        if node is None or node.op_type not in _FOLDED:
            return None
        inputs = {part: self._constant(part) for part in node.input if part}
        if any(value is None for value in inputs.values()):
            return None
        return _run(node, inputs, name)


# A prefix ends before one of these.
_ROOTS = frozenset(
    {
        "layers",
        "blocks",
        "conv1",
        "conv2",
        "conv3",
        "groupnorm",
        "rotary_emb",
        "embed_tokens",
        "embed_positions",
        "layer_norm",
        "norm",
        "proj_out",
        "ln",
        "ln_post",
        "token_embedding",
    }
)
_FOLDED = frozenset(
    {
        "Add",
        "Cast",
        "Concat",
        "Constant",
        "DequantizeLinear",
        "Div",
        "Identity",
        "Mul",
        "Reshape",
        "Squeeze",
        "Sub",
        "Transpose",
        "Unsqueeze",
    }
)


def _run(node: Any, inputs: Any, output: str) -> NDArray[Any]:
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    graph = helper.make_graph(
        [node],
        "constant",
        [helper.make_empty_tensor_value_info(name) for name in inputs],
        [helper.make_empty_tensor_value_info(output)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)])
    results: Any = ReferenceEvaluator(model).run([output], inputs)
    value: NDArray[Any] = results[0]
    return value


def _graphs(graph: Any) -> Iterator[Any]:
    yield graph
    for node in graph.node:
        if node.op_type == "If":
            for attribute in node.attribute:
                yield from _graphs(attribute.g)


def _read(path: Path) -> Any:
    import onnx

    if not path.is_file():
        raise InvalidArgumentError(f"{path} does not exist")
    try:
        if path.suffix != ".ort":
            return onnx.load(str(path))
        with tempfile.TemporaryDirectory(prefix="headrace-speech-") as folder:
            written = Path(folder) / "model.onnx"
            _ort_to_onnx(path, written)
            return onnx.load(str(written))
    except Exception as error:  # protobuf's, onnxruntime's
        raise InvalidArgumentError(f"{path} could not be read: {error}") from None


def _ort_to_onnx(source: Path, target: Path) -> None:
    """onnxruntime reads its own format and writes what it has read: nothing is optimised
    between."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 3
    options.add_session_config_entry("session.save_model_format", "ONNX")
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
