"""Moonshine's networks from their weights (Useful Sensors, arXiv 2410.15608): raw 16 kHz samples
in, an encoder with rotary positions, a decoder with a gated MLP and a tied embedding.

Weights are named as transformers names them. Rotary pairs are neighbours (2j, 2j+1) there; here
heads' columns are reordered once so that the halves of pairs lie together, which leaves every
score as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.speech.graph import Graph
from headrace.speech.network import DecoderPorts, Networks, add_cross_outputs

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MoonshineWeights", "build"]

Arrays = dict[str, "NDArray[Any]"]


@dataclass(frozen=True)
class MoonshineWeights:
    """Linear ones (in, out). Encoder: conv{1,2,3}.{weight,bias}, groupnorm.{weight,bias},
    layers.{i}.self_attn.{q,k,v,o}, layers.{i}.mlp.{fc1,fc2}[.bias], layers.{i}.{norm1,norm2}, norm.
    Decoder: embedding, layers.{i}.{self_attn,encoder_attn}.{q,k,v,o},
    layers.{i}.mlp.{up,down}[.bias], layers.{i}.{norm1,norm2,norm3}, norm."""

    encoder: Arrays
    decoder: Arrays
    encoder_layers: int
    decoder_layers: int
    heads: int
    inv_freq: NDArray[Any]  # (rotary width / 2,)


def build(weights: MoonshineWeights, *, int8: bool, metadata: dict[str, str]) -> Networks:
    return Networks(
        _encoder(weights, int8).model(metadata), _decoder(weights, int8).model(metadata)
    )


def _rotary_order(heads: int, width: int, rotary: int) -> NDArray[Any]:
    """Columns of a projection such that a head is (firsts of pairs, seconds, not rotated)."""
    head = np.concatenate(
        [np.arange(0, rotary, 2), np.arange(1, rotary, 2), np.arange(rotary, width)]
    )
    columns: NDArray[Any] = (np.arange(heads)[:, None] * width + head[None, :]).reshape(-1)
    return columns


class _Rotary:
    """Rotates queries and keys, which come and go in one tensor."""

    def __init__(self, graph: Graph, weights: MoonshineWeights, width: int, positions: str) -> None:
        """`positions` (B or 1, T) i64."""
        self._graph, self._heads, self._width = graph, weights.heads, width
        self._half = len(weights.inv_freq)
        self._order = _rotary_order(weights.heads, width, 2 * self._half)
        times = graph.node("Unsqueeze", graph.node("Cast", positions, to=1), graph.ints(2, 3))
        frequencies = graph.constant(weights.inv_freq.reshape(1, 1, 1, -1).astype(np.float32))
        angles = graph.node("Mul", times, frequencies)  # (B, T, 1, half)
        self._cos, self._sin = graph.node("Cos", angles), graph.node("Sin", angles)

    def project(self, x: str, arrays: Arrays, prefix: str) -> tuple[str, str, str]:
        """(q, k, v), each (B, heads, T, width), q scaled."""
        graph, heads, width = self._graph, self._heads, self._width
        q = arrays[f"{prefix}.q"][:, self._order] * width**-0.5
        k = arrays[f"{prefix}.k"][:, self._order]
        all_three = graph.linear(x, np.concatenate([q, k, arrays[f"{prefix}.v"]], axis=1))
        qk, v = graph.split(all_three, [2 * heads * width, heads * width], axis=2)
        apart = graph.node("Reshape", qk, graph.ints(0, 0, 2 * heads, width))
        half = self._half
        a, b, rest = graph.split(apart, [half, half, width - 2 * half], axis=3)
        turned = graph.node(
            "Concat",
            graph.node("Sub", graph.node("Mul", a, self._cos), graph.node("Mul", b, self._sin)),
            graph.add(graph.node("Mul", b, self._cos), graph.node("Mul", a, self._sin)),
            rest,
            axis=3,
        )
        q_out, k_out = graph.split(
            graph.node("Transpose", turned, perm=[0, 2, 1, 3]), [heads, heads], axis=1
        )
        return q_out, k_out, graph.heads(v, heads, width)


def _encoder(weights: MoonshineWeights, int8: bool) -> Graph:
    graph, arrays = Graph("moonshine_encoder", int8=int8), weights.encoder
    samples = graph.add_input("input_values", "f32", ["B", "samples"])
    x = graph.conv(
        graph.node("Unsqueeze", samples, graph.ints(1)), arrays["conv1.weight"], None, stride=64
    )
    x = _whole_norm(graph, graph.node("Tanh", x), arrays)
    x = graph.conv(x, arrays["conv2.weight"], arrays["conv2.bias"], stride=3)
    x = graph.node("Gelu", x)
    x = graph.conv(x, arrays["conv3.weight"], arrays["conv3.bias"], stride=2)
    x = graph.node("Transpose", graph.node("Gelu", x), perm=[0, 2, 1])

    length = graph.node("Squeeze", graph.node("Shape", x, start=1, end=2), graph.ints(0))
    positions = graph.node("Range", graph.scalar(0), length, graph.scalar(1))
    width = arrays["layers.0.self_attn.q"].shape[1] // weights.heads
    rotary = _Rotary(graph, weights, width, graph.node("Unsqueeze", positions, graph.ints(0)))
    for i in range(weights.encoder_layers):
        layer = f"layers.{i}"
        normed = graph.layer_norm(x, arrays[f"{layer}.norm1"])
        q, k, v = rotary.project(normed, arrays, f"{layer}.self_attn")
        x = graph.add(x, graph.linear(graph.attend(q, k, v)[0], arrays[f"{layer}.self_attn.o"]))
        normed = graph.layer_norm(x, arrays[f"{layer}.norm2"])
        hidden = graph.linear(normed, arrays[f"{layer}.mlp.fc1"], arrays[f"{layer}.mlp.fc1.bias"])
        x = graph.add(
            x,
            graph.linear(
                graph.node("Gelu", hidden),
                arrays[f"{layer}.mlp.fc2"],
                arrays[f"{layer}.mlp.fc2.bias"],
            ),
        )
    x = graph.layer_norm(x, arrays["norm"])
    for i in range(weights.decoder_layers):
        prefix = f"layers.{i}.encoder_attn"
        both = np.concatenate(
            [weights.decoder[f"{prefix}.k"], weights.decoder[f"{prefix}.v"]], axis=1
        )
        add_cross_outputs(graph, i, graph.linear(x, both), weights.heads, width)
    return graph


def _whole_norm(graph: Graph, x: str, arrays: Arrays) -> str:
    """GroupNorm of one group: over channels and time together, then a scale and shift a channel."""
    flat = graph.node("Reshape", x, graph.ints(0, 1, -1))
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    normed = graph.node(
        "InstanceNormalization", flat, graph.constant(one), graph.constant(zero), epsilon=1e-5
    )
    back = graph.node("Reshape", normed, graph.node("Shape", x))
    scale = arrays["groupnorm.weight"].reshape(-1, 1).astype(np.float32)
    shift = arrays["groupnorm.bias"].reshape(-1, 1).astype(np.float32)
    return graph.add(graph.node("Mul", back, graph.constant(scale)), graph.constant(shift))


def _decoder(weights: MoonshineWeights, int8: bool) -> Graph:
    graph, arrays = Graph("moonshine_decoder", int8=int8), weights.decoder
    width = arrays["layers.0.self_attn.q"].shape[1] // weights.heads
    ports = DecoderPorts(graph, weights.decoder_layers, weights.heads, width)
    ports.declare()
    x, logits_weight = graph.embedding("input_ids", arrays["embedding"])
    rotary = _Rotary(graph, weights, width, "positions")
    for i in range(weights.decoder_layers):
        layer = f"layers.{i}"
        normed = graph.layer_norm(x, arrays[f"{layer}.norm1"])
        q, k, v = rotary.project(normed, arrays, f"{layer}.self_attn")
        seen = ports.self_attention(i, q, k, v)
        x = graph.add(x, graph.linear(seen, arrays[f"{layer}.self_attn.o"]))

        normed = graph.layer_norm(x, arrays[f"{layer}.norm2"])
        q = graph.heads(
            graph.linear(normed, arrays[f"{layer}.encoder_attn.q"] * width**-0.5),
            weights.heads,
            width,
        )
        seen, _ = ports.cross_attention(i, q)
        x = graph.add(x, graph.linear(seen, arrays[f"{layer}.encoder_attn.o"]))

        normed = graph.layer_norm(x, arrays[f"{layer}.norm3"])
        up = graph.linear(normed, arrays[f"{layer}.mlp.up"], arrays[f"{layer}.mlp.up.bias"])
        inner = arrays[f"{layer}.mlp.up"].shape[1] // 2
        hidden, gate = graph.split(up, [inner, inner], axis=2)
        gated = graph.node("Mul", graph.node("Mul", gate, graph.node("Sigmoid", gate)), hidden)
        x = graph.add(
            x,
            graph.linear(gated, arrays[f"{layer}.mlp.down"], arrays[f"{layer}.mlp.down.bias"]),
        )
    x = graph.layer_norm(x, arrays["norm"])
    vocabulary = arrays["embedding"].shape[0]
    graph.add_output(
        graph.node("MatMul", x, logits_weight), "logits", "f32", ["B", "T", vocabulary]
    )
    return graph
