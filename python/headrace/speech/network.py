"""What every decoder of a segment family offers the engine: names and shapes of its graph.

    input_ids [B,T] i64, positions [B,T] i64, self_mask [B,1,T,P+T] f32, cross_mask [B,1,1,S] f32,
    past.{i}.key/value [B,H,P,D], cross.{i}.key/value [B,H,S,D]
    -> logits [B,T,V], present.{i}.key/value [B,H,T,D] (the new positions only)
       and, where the model has alignment heads, alignment [B,T,S]: their mean cross-attention

The masks are added to attention scores; causality is in self_mask, so that one graph prefills,
verifies a draft and steps, for rows of different lengths.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.speech.graph import Graph

__all__ = ["DecoderPorts", "Networks", "add_cross_outputs"]


@dataclass(frozen=True)
class Networks:
    """ModelProtos of one speech model."""

    encoder: Any
    decoder: Any


@dataclass(frozen=True)
class DecoderPorts:
    """The decoder's inputs, declared on `graph`."""

    graph: Graph
    layers: int
    heads: int
    width: int  # of a head

    def declare(self) -> None:
        graph = self.graph
        graph.add_input("input_ids", "i64", ["B", "T"])
        graph.add_input("positions", "i64", ["B", "T"])
        graph.add_input("self_mask", "f32", ["B", 1, "T", "P_T"])
        graph.add_input("cross_mask", "f32", ["B", 1, 1, "S"])
        for kind, length in (("past", "P"), ("cross", "S")):
            for name in self._pairs(kind):
                graph.add_input(name, "f32", ["B", self.heads, length, self.width])

    def self_attention(self, layer: int, q: str, k: str, v: str) -> str:
        """With what was cached; offers `k` and `v` for the cache."""
        graph = self.graph
        shape: list[int | str] = ["B", self.heads, "T", self.width]
        graph.add_output(k, f"present.{layer}.key", "f32", shape)
        graph.add_output(v, f"present.{layer}.value", "f32", shape)
        keys = graph.node("Concat", f"past.{layer}.key", k, axis=2)
        values = graph.node("Concat", f"past.{layer}.value", v, axis=2)
        return graph.attend(q, keys, values, "self_mask")[0]

    def cross_attention(self, layer: int, q: str) -> tuple[str, str]:
        return self.graph.attend(q, f"cross.{layer}.key", f"cross.{layer}.value", "cross_mask")

    def _pairs(self, kind: str) -> Iterator[str]:
        for layer in range(self.layers):
            yield f"{kind}.{layer}.key"
            yield f"{kind}.{layer}.value"


def add_cross_outputs(graph: Graph, layer: int, keys_values: str, heads: int, width: int) -> None:
    """`keys_values` (batch, time, 2 * heads * width): the encoder's outputs for decoder layer
    `layer`."""
    both = graph.split(keys_values, [heads * width, heads * width], axis=2)
    for value, name in zip(both, ("key", "value"), strict=True):
        graph.add_output(
            graph.heads(value, heads, width),
            f"cross.{layer}.{name}",
            "f32",
            ["B", heads, "S", width],
        )
