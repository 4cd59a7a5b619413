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
    if not below and e.has(f"{names.parts['k']}/MatMul"):
        below = int(e.metadata.get("n_text_layer", "0"))
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
    found_decoder = _side(d, names, below, cross=True, other=e)
    width = found_decoder["norm.weight"].size
    found_decoder["positions"] = _positions(
        d, ("embed_positions.weight", "positional_embedding"), width
    )
    token_names = ("embed_tokens/Gather", "token_embedding/Gather")
    name = next((name for name in token_names if d.has(name)), token_names[0])
    found_decoder["embedding"] = d.constant_of(name)
    return WhisperWeights(found_encoder, found_decoder, layers, below, heads, alignment_heads)


def _side(
    weights: OnnxWeights,
    names: _Names,
    layers: int,
    *,
    cross: bool,
    other: OnnxWeights | None = None,
) -> dict[str, NDArray[Any]]:
    """`other`: where a decoder's projections of the audio are when it lacks them (sherpa-onnx's
    exports have them in the encoder)."""
    found: dict[str, NDArray[Any]] = {}
    flat = cross and not weights.has(
        f"{names.layer.format(0)}/{names.attention}/{names.parts['q']}/MatMul"
    )
    for i in range(layers):
        linears, norms = (_flat_paths if flat else _nested_paths)(names, i, cross)
        for target, path in linears.items():
            there = other is not None and ".encoder_attn." in target and target[-1] in "kv"
            lacks = flat or not weights.has(f"{path}/MatMul")
            home = other if there and lacks and other is not None else weights
            found[f"layers.{i}{target}"] = home.linear(path)
            bias = home.linear_bias(path)
            if bias is not None:
                found[f"layers.{i}{target}.bias"] = bias
        for target, path in norms.items():
            weight, shift = weights.norm(path)
            found[f"layers.{i}{target}.weight"] = weight
            found[f"layers.{i}{target}.bias"] = weight * 0 if shift is None else shift
    weight, shift = weights.norm(names.last[1 if cross else 0])
    return found | {
        "norm.weight": weight,
        "norm.bias": weight * 0 if shift is None else shift,
    }


_Paths = tuple[dict[str, str], dict[str, str]]


def _nested_paths(names: _Names, i: int, cross: bool) -> _Paths:
    """(linear layers, norms) of layer i: our names' ends -> paths."""
    layer = names.layer.format(i)
    attentions = {"self_attn": names.attention} | ({"encoder_attn": names.cross} if cross else {})
    linears = {
        f".{ours}.{part}": f"{layer}/{theirs}/{name}"
        for ours, theirs in attentions.items()
        for part, name in names.parts.items()
    }
    for ours, name in zip(("fc1", "fc2"), names.feed, strict=True):
        linears[f".{ours}"] = f"{layer}/{name}"
    norms = names.norms if cross else [names.norms[0], names.norms[2]]
    return linears, {f".norm{n}": f"{layer}/{name}" for n, name in enumerate(norms, 1)}


def _flat_paths(names: _Names, i: int, cross: bool) -> _Paths:
    """The same of sherpa-onnx's decoder, whose layers the exporter does not see: it numbers what it
    meets, two attentions a layer."""

    def nth(name: str, n: int) -> str:
        return f"{name}_{n}" if n else name

    parts = names.parts
    linears = {
        ".self_attn.q": nth(parts["q"], 2 * i),
        ".self_attn.k": nth(parts["k"], i),
        ".self_attn.v": nth(parts["v"], i),
        ".self_attn.o": nth(parts["o"], 2 * i),
        ".encoder_attn.q": nth(parts["q"], 2 * i + 1),
        ".encoder_attn.k": nth(parts["k"], i),
        ".encoder_attn.v": nth(parts["v"], i),
        ".encoder_attn.o": nth(parts["o"], 2 * i + 1),
    }
    for ours, name in zip(("fc1", "fc2"), names.feed, strict=True):
        linears[f".{ours}"] = nth(name, i)
    return linears, {f".norm{n}": nth(name, i) for n, name in enumerate(names.norms, 1)}


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
