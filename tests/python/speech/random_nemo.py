"""A CTC network of random weights with the ports, caches and metadata of NeMo's cache-aware
FastConformer as sherpa-onnx's script exports it: subsampling by 8, layers of attention over a cache
of earlier frames and of a causal convolution over a cache of samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

BANDS, WIDTH, LAYERS, CACHED, KERNEL, LETTERS = 80, 16, 2, 6, 4, 26
# Feature frames: of a run, by which it moves on.
WINDOW, SHIFT = 41, 32
REACH = 9  # of the subsampling
FRAMES = (WINDOW - REACH) // 8  # of the output

METADATA = {
    "vocab_size": LETTERS,
    "window_size": WINDOW,
    "chunk_shift": SHIFT,
    "normalize_type": "",
    "cache_last_channel_dim1": LAYERS,
    "cache_last_channel_dim2": CACHED,
    "cache_last_channel_dim3": WIDTH,
    "cache_last_time_dim1": LAYERS,
    "cache_last_time_dim2": WIDTH,
    "cache_last_time_dim3": KERNEL - 1,
    "subsampling_factor": 8,
    "model_type": "EncDecHybridRNNTCTCBPEModel",
    "version": 1,
    "model_author": "NeMo",
    "comment": "random weights",
}


class _Graph:
    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def op(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def constant(self, values: Any, dtype: Any = np.int64) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def weights(self, *shape: int, scale: float = 1.0) -> str:
        spread = scale / np.sqrt(np.prod(shape[1:]) if len(shape) == 3 else shape[0])
        return self.constant(self.random.normal(0, spread, shape), np.float32)

    def cut(self, value: str, begin: int, end: int, axis: int) -> str:
        where = (self.constant([begin]), self.constant([end]), self.constant([axis]))
        return self.op("Slice", value, *where)

    def layer_of(self, caches: str, layer: int) -> str:
        return self.op("Gather", caches, self.constant(layer), axis=1)


def write(folder: Path, seed: int = 1, **metadata: Any) -> None:
    graph = _Graph(seed)
    heard = graph.op(
        "Conv", "audio_signal", graph.weights(WIDTH, BANDS, REACH, scale=1.5), strides=[8]
    )
    heard = graph.cut(heard, 0, FRAMES, 2)
    heard = graph.op("Tanh", graph.op("Transpose", heard, perm=[0, 2, 1]))
    channels, times = [], []
    # Frames in the cache that are of this stream.
    age = graph.constant(np.arange(CACHED, 0, -1), np.int64)
    fresh = graph.op(
        "Greater", age, graph.op("Unsqueeze", "cache_last_channel_len", graph.constant([1]))
    )
    hidden = graph.op(
        "Mul", graph.op("Cast", fresh, to=TensorProto.FLOAT), graph.constant(-1e9, np.float32)
    )
    hidden = graph.op("Pad", hidden, graph.constant([0, 0, 0, FRAMES]))
    hidden = graph.op("Unsqueeze", hidden, graph.constant([1]))
    for layer in range(LAYERS):
        cached = graph.layer_of("cache_last_channel", layer)
        context = graph.op("Concat", cached, heard, axis=1)
        channels.append(graph.cut(context, FRAMES, CACHED + FRAMES, 1))
        query = graph.op("MatMul", heard, graph.weights(WIDTH, WIDTH))
        key = graph.op("MatMul", context, graph.weights(WIDTH, WIDTH))
        value = graph.op("MatMul", context, graph.weights(WIDTH, WIDTH))
        scores = graph.op("MatMul", query, graph.op("Transpose", key, perm=[0, 2, 1]))
        seen = graph.op("Softmax", graph.op("Add", scores, hidden), axis=-1)
        heard = graph.op("Add", heard, graph.op("MatMul", seen, value))
        signal = graph.op("Transpose", heard, perm=[0, 2, 1])
        signal = graph.op("Concat", graph.layer_of("cache_last_time", layer), signal, axis=2)
        times.append(graph.cut(signal, FRAMES, FRAMES + KERNEL - 1, 2))
        mixed = graph.op("Conv", signal, graph.weights(WIDTH, 1, KERNEL), group=WIDTH)
        heard = graph.op(
            "Add", heard, graph.op("Tanh", graph.op("Transpose", mixed, perm=[0, 2, 1]))
        )
    logits = graph.op("MatMul", heard, graph.weights(WIDTH, LETTERS + 1, scale=6))
    bias = np.zeros(LETTERS + 1)
    bias[-1] = 5
    logits = graph.op("Add", logits, graph.constant(bias, np.float32))
    graph.op("LogSoftmax", logits, output="logprobs", axis=-1)
    rest = graph.op("Sub", "length", graph.constant(REACH))
    graph.op("Div", rest, graph.constant(8), output="encoded_lengths")
    axis = graph.constant([1])
    for name, parts in (("cache_last_channel", channels), ("cache_last_time", times)):
        rows = [graph.op("Unsqueeze", part, axis) for part in parts]
        graph.op("Concat", *rows, output=f"{name}_next", axis=1)
    longer = graph.op("Add", "cache_last_channel_len", graph.constant(FRAMES))
    graph.op("Min", longer, graph.constant(CACHED), output="cache_last_channel_next_len")
    onnx.save(_model(graph, {**METADATA, **metadata}), str(folder / "model.onnx"))
    letters = [f"\u2581{chr(97 + i)}" if i % 3 == 0 else chr(97 + i) for i in range(LETTERS)]
    lines = [f"{piece} {i}\n" for i, piece in enumerate([*letters, "<blk>"])]
    (folder / "tokens.txt").write_text("".join(lines), encoding="utf-8")


def _model(graph: _Graph, metadata: dict[str, Any]) -> Any:
    def port(name: str, dims: list[Any], kind: int = TensorProto.FLOAT) -> Any:
        return helper.make_tensor_value_info(name, kind, dims)

    # As in NeMo's exports, times are dynamic.
    channel, time = ["B", LAYERS, "C", WIDTH], ["B", LAYERS, WIDTH, "K"]
    inputs = [
        port("audio_signal", ["B", BANDS, "T"]),
        port("length", ["B"], TensorProto.INT64),
        port("cache_last_channel", channel),
        port("cache_last_time", time),
        port("cache_last_channel_len", ["B"], TensorProto.INT64),
    ]
    outputs = [
        port("logprobs", ["B", "F", LETTERS + 1]),
        port("encoded_lengths", ["B"], TensorProto.INT64),
        port("cache_last_channel_next", channel),
        port("cache_last_time_next", time),
        port("cache_last_channel_next_len", ["B"], TensorProto.INT64),
    ]
    made = helper.make_graph(graph.nodes, "random", inputs, outputs, graph.constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {key: str(value) for key, value in metadata.items()})
    onnx.checker.check_model(model)
    return model
