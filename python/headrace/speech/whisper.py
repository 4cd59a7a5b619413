"""Whisper's networks from their weights (arXiv 2212.04356): log-mel features in, pre-norm
transformers.

Stock exports fix 30 s of audio. Here time is dynamic: the encoder takes as many of its positions
as there are frames, so that a short clip costs what it is long.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.speech.graph import Graph
from headrace.speech.network import DecoderPorts, Networks, add_cross_outputs

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["WhisperWeights", "build"]

Arrays = dict[str, "NDArray[Any]"]


@dataclass(frozen=True)
class WhisperWeights:
    """Linear ones (in, out), each with NAME.bias (the keys' may lack).
    Encoder: conv{1,2}.{weight,bias}, positions (1500, width), layers.{i}.self_attn.{q,k,v,o},
    layers.{i}.{fc1,fc2}, layers.{i}.{norm1,norm2}.{weight,bias}, norm.{weight,bias}.
    Decoder: the same with embedding (vocabulary, width), layers.{i}.encoder_attn.{q,k,v,o} and
    norm3; norm1 is before self-attention, norm2 before cross-attention, norm3 before fc1."""

    encoder: Arrays
    decoder: Arrays
    encoder_layers: int
    decoder_layers: int
    heads: int
    # (layer, head) of the decoder whose cross-attention follows the audio.
    alignment_heads: tuple[tuple[int, int], ...] = ()


def build(weights: WhisperWeights, *, int8: bool, metadata: dict[str, str]) -> Networks:
    return Networks(
        _encoder(weights, int8).model(metadata), _decoder(weights, int8).model(metadata)
    )


def _norm(graph: Graph, x: str, arrays: Arrays, name: str) -> str:
    return graph.layer_norm(x, arrays[f"{name}.weight"], arrays[f"{name}.bias"])


def _linear(graph: Graph, x: str, arrays: Arrays, name: str) -> str:
    return graph.linear(x, arrays[name], arrays.get(f"{name}.bias"))


def _joined(
    arrays: Arrays, prefix: str, parts: str, scale: float = 1.0
) -> tuple[NDArray[Any], NDArray[Any]]:
    """(weight, bias) of several projections in one, the queries' scaled."""
    weights, biases = [], []
    for part in parts:
        weight = arrays[f"{prefix}.{part}"]
        bias = arrays.get(f"{prefix}.{part}.bias")
        bias = np.zeros(weight.shape[1], np.float32) if bias is None else bias
        factor = scale if part == "q" else 1.0
        weights.append(weight * factor)
        biases.append(bias * factor)
    return np.concatenate(weights, axis=1), np.concatenate(biases)


def _project(graph: Graph, x: str, arrays: Arrays, prefix: str, heads: int) -> tuple[str, str, str]:
    size = arrays[f"{prefix}.q"].shape[1]
    width = size // heads
    all_three = graph.linear(x, *_joined(arrays, prefix, "qkv", width**-0.5))
    q, k, v = (graph.heads(part, heads, width) for part in graph.split(all_three, [size] * 3, 2))
    return q, k, v


def _feed_forward(graph: Graph, x: str, arrays: Arrays, layer: str) -> str:
    hidden = graph.node("Gelu", _linear(graph, x, arrays, f"{layer}.fc1"))
    return _linear(graph, hidden, arrays, f"{layer}.fc2")


def _encoder(weights: WhisperWeights, int8: bool) -> Graph:
    graph, arrays = Graph("whisper_encoder", int8=int8), weights.encoder
    bands = arrays["conv1.weight"].shape[1]
    x = graph.add_input("input_features", "f32", ["B", bands, "frames"])
    for name, stride in (("conv1", 1), ("conv2", 2)):
        x = graph.conv(
            x, arrays[f"{name}.weight"], arrays[f"{name}.bias"], stride=stride, padding=1
        )
        x = graph.node("Gelu", x)
    x = graph.node("Transpose", x, perm=[0, 2, 1])
    length = graph.node("Shape", x, start=1, end=2)
    table = graph.constant(arrays["positions"].astype(np.float32), "positions")
    x = graph.add(x, graph.node("Slice", table, graph.ints(0), length, graph.ints(0)))
    for i in range(weights.encoder_layers):
        layer = f"layers.{i}"
        normed = _norm(graph, x, arrays, f"{layer}.norm1")
        q, k, v = _project(graph, normed, arrays, f"{layer}.self_attn", weights.heads)
        seen, _ = graph.attend(q, k, v)
        x = graph.add(x, _linear(graph, seen, arrays, f"{layer}.self_attn.o"))
        normed = _norm(graph, x, arrays, f"{layer}.norm2")
        x = graph.add(x, _feed_forward(graph, normed, arrays, layer))
    x = _norm(graph, x, arrays, "norm")
    width = arrays["positions"].shape[1] // weights.heads
    for i in range(weights.decoder_layers):
        both = graph.linear(x, *_joined(weights.decoder, f"layers.{i}.encoder_attn", "kv"))
        add_cross_outputs(graph, i, both, weights.heads, width)
    return graph


def _decoder(weights: WhisperWeights, int8: bool) -> Graph:
    graph, arrays = Graph("whisper_decoder", int8=int8), weights.decoder
    vocabulary, size = arrays["embedding"].shape
    width = size // weights.heads
    ports = DecoderPorts(graph, weights.decoder_layers, weights.heads, width)
    ports.declare()
    rows, logits_weight = graph.embedding("input_ids", arrays["embedding"])
    table = graph.constant(arrays["positions"].astype(np.float32), "positions")
    x = graph.add(rows, graph.node("Gather", table, "positions"))
    aligned: list[str] = []
    for i in range(weights.decoder_layers):
        layer = f"layers.{i}"
        normed = _norm(graph, x, arrays, f"{layer}.norm1")
        q, k, v = _project(graph, normed, arrays, f"{layer}.self_attn", weights.heads)
        seen = ports.self_attention(i, q, k, v)
        x = graph.add(x, _linear(graph, seen, arrays, f"{layer}.self_attn.o"))

        normed = _norm(graph, x, arrays, f"{layer}.norm2")
        q = graph.linear(normed, *_joined(arrays, f"{layer}.encoder_attn", "q", width**-0.5))
        seen, attention = ports.cross_attention(i, graph.heads(q, weights.heads, width))
        x = graph.add(x, _linear(graph, seen, arrays, f"{layer}.encoder_attn.o"))
        chosen = [head for at, head in weights.alignment_heads if at == i]
        if chosen:
            aligned.append(graph.node("Gather", attention, graph.ints(*chosen), axis=1))

        normed = _norm(graph, x, arrays, f"{layer}.norm3")
        x = graph.add(x, _feed_forward(graph, normed, arrays, layer))
    x = _norm(graph, x, arrays, "norm")
    graph.add_output(
        graph.node("MatMul", x, logits_weight), "logits", "f32", ["B", "T", vocabulary]
    )
    if aligned:
        heads = graph.node("Concat", *aligned, axis=1)
        mean = graph.node("ReduceMean", heads, graph.ints(1), keepdims=0)
        graph.add_output(mean, "alignment", "f32", ["B", "T", "S"])
    return graph
