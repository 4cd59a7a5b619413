"""Whisper out of ONNX exports: Optimum's (transformers' module names) and sherpa-onnx's (openai's).

The graphs as they were exported are left behind; their weights are taken (whisper.py builds graphs
that take short audio, which stock exports do not).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.errors import InvalidArgumentError
from headrace.speech.onnx_weights import OnnxWeights
from headrace.speech.whisper import WhisperWeights

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["read_whisper"]


class _Names:
    """Module names of one code base."""

    def __init__(
        self, layer: str, attention: str, cross: str, parts: str, norms: str, feed: str, last: str
    ) -> None:
        self.layer, self.attention, self.cross = layer, attention, cross
        self.parts = dict(zip("qkvo", parts.split(), strict=True))
        self.norms = norms.split()  # self-attention, cross-attention, feed-forward
        self.feed = feed.split()
        self.last = last.split()  # of encoder, of decoder


_TRANSFORMERS = _Names(
    "layers.{}",
    "self_attn",
    "encoder_attn",
    "q_proj k_proj v_proj out_proj",
    "self_attn_layer_norm encoder_attn_layer_norm final_layer_norm",
    "fc1 fc2",
    "layer_norm layer_norm",
)
_OPENAI = _Names(
    "blocks.{}",
    "attn",
    "cross_attn",
    "query key value out",
    "attn_ln cross_attn_ln mlp_ln",
    "mlp/mlp.0 mlp/mlp.2",
    "ln_post ln",
)


def read_whisper(
    encoder: Path,
    decoder: Path,
    heads: int,
    alignment_heads: tuple[tuple[int, int], ...] = (),
) -> WhisperWeights:
    """`heads` 0: sherpa-onnx's metadata say. InvalidArgumentError."""
    e, d = OnnxWeights(encoder), OnnxWeights(decoder)
    for names in (_TRANSFORMERS, _OPENAI):
        layers = e.count_layers(f"{names.layer}/{names.attention}/{names.parts['q']}/MatMul")
        if layers:
            break
    else:
        raise InvalidArgumentError(
            f"{encoder}: no layers of Whisper's encoder (an export through torch's exporter with "
            "module names, not quantized, is expected)"
        )
    below = d.count_layers(f"{names.layer}/{names.cross}/{names.parts['q']}/MatMul")
    heads = heads or int(e.metadata.get("n_audio_head", "0"))
    if not heads or not below:
        raise InvalidArgumentError(f"{decoder}: no layers of Whisper's decoder, or heads unknown")
    found_encoder = _side(e, names, layers, cross=False)
    for name in ("conv1", "conv2"):
        found_encoder[f"{name}.weight"], bias = e.conv(name)
        if bias is not None:
            found_encoder[f"{name}.bias"] = bias
    found_encoder["positions"] = _positions(
        e, ("embed_positions.weight", "positional_embedding"), found_encoder["norm.weight"].size
    )
    found_decoder = _side(d, names, below, cross=True)
    width = found_decoder["norm.weight"].size
    found_decoder["positions"] = _positions(
        d, ("embed_positions.weight", "positional_embedding"), width
    )
    token_names = ("embed_tokens/Gather", "token_embedding/Gather")
    name = next((name for name in token_names if d.has(name)), token_names[0])
    found_decoder["embedding"] = d.constant_of(name)
    return WhisperWeights(found_encoder, found_decoder, layers, below, heads, alignment_heads)


def _side(
    weights: OnnxWeights, names: _Names, layers: int, *, cross: bool
) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {}

    def linear(source: str, target: str) -> None:
        found[target] = weights.linear(source)
        bias = weights.linear_bias(source)
        if bias is not None:
            found[f"{target}.bias"] = bias

    def norm(source: str, target: str) -> None:
        weight, bias = weights.norm(source)
        found[f"{target}.weight"] = weight
        found[f"{target}.bias"] = weight * 0 if bias is None else bias

    for i in range(layers):
        source, target = names.layer.format(i), f"layers.{i}"
        attentions = [("self_attn", names.attention)]
        attentions += [("encoder_attn", names.cross)] if cross else []
        for ours, theirs in attentions:
            for part, name in names.parts.items():
                linear(f"{source}/{theirs}/{name}", f"{target}.{ours}.{part}")
        norms = names.norms if cross else [names.norms[0], names.norms[2]]
        for number, name in enumerate(norms, 1):
            norm(f"{source}/{name}", f"{target}.norm{number}")
        for ours, theirs in zip(("fc1", "fc2"), names.feed, strict=True):
            linear(f"{source}/{theirs}", f"{target}.{ours}")
    norm(names.last[1 if cross else 0], "norm")
    return found


def _positions(weights: OnnxWeights, endings: tuple[str, ...], width: int) -> NDArray[Any]:
    for ending in endings:
        table = weights.initializer(ending)
        if table is not None:
            return table.reshape(-1, width)
    # Folded into something else: the one stored table of this width that nothing multiplies with.
    table = weights.added_table(width)
    if table is None:
        raise InvalidArgumentError(f"{weights.path}: no table of positions")
    return table
