"""Moonshine as its makers and Optimum ship it: an encoder, a merged decoder, a tokenizer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.errors import InvalidArgumentError
from headrace.speech.moonshine import MoonshineWeights
from headrace.speech.onnx_weights import OnnxWeights

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["read_bin_tokens", "read_moonshine", "read_sentence_pieces"]

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581".encode()  # a word's start, in sentencepiece's spelling


def read_moonshine(encoder: Path, decoder: Path) -> MoonshineWeights:
    """InvalidArgumentError when these are not Moonshine's networks."""
    e, d = OnnxWeights(encoder), OnnxWeights(decoder)
    encoder_layers = e.count_layers("layers.{}/self_attn/q_proj/MatMul")
    decoder_layers = d.count_layers("layers.{}/encoder_attn/q_proj/MatMul")
    if not encoder_layers or not decoder_layers or not e.has("groupnorm/InstanceNormalization"):
        raise InvalidArgumentError(f"{encoder.parent} holds no Moonshine export")
    inv_freq = e.float_behind("rotary_emb/MatMul").reshape(-1)
    embedding = d.constant_of("embed_tokens/Gather")
    return MoonshineWeights(
        encoder=_encoder(e, encoder_layers),
        decoder=_decoder(d, decoder_layers) | {"embedding": embedding},
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        heads=_heads(d),
        inv_freq=inv_freq,
    )


def _heads(decoder: OnnxWeights) -> int:
    """From the cache's declared shape (batch, heads, time, width of a head)."""
    for name, shape in decoder.shapes.items():
        cached = name.startswith(("past_key_values.0.", "present.0."))
        if cached and len(shape) == 4 and shape[1] > 0:
            return int(shape[1])
    raise InvalidArgumentError(f"{decoder.path} does not say how many heads it has")


def _encoder(e: OnnxWeights, layers: int) -> dict[str, NDArray[Any]]:
    found: dict[str, Any] = {"conv1.weight": e.conv("conv1")[0]}
    for name in ("conv2", "conv3"):
        found[f"{name}.weight"], found[f"{name}.bias"] = e.conv(name)
    found["groupnorm.weight"] = e.constant_of("groupnorm/Mul")
    found["groupnorm.bias"] = e.constant_of("groupnorm/Add")
    for i in range(layers):
        layer = f"layers.{i}"
        for short, long in _ATTENTION.items():
            found[f"{layer}.self_attn.{short}"] = _attention(e, f"{layer}/self_attn", long)
        for name in ("fc1", "fc2"):
            found[f"{layer}.mlp.{name}"] = e.linear(f"{layer}/mlp/{name}")
            found[f"{layer}.mlp.{name}.bias"] = e.linear_bias(f"{layer}/mlp/{name}")
        found[f"{layer}.norm1"] = e.norm(f"{layer}/input_layernorm")[0]
        found[f"{layer}.norm2"] = e.norm(f"{layer}/post_attention_layernorm")[0]
    found["norm"] = e.norm("layer_norm")[0]
    return found


_ATTENTION = {"q": ("q_proj",), "k": ("k_proj",), "v": ("v_proj",), "o": ("dense", "o_proj")}


def _attention(weights: OnnxWeights, path: str, names: tuple[str, ...]) -> NDArray[Any]:
    for name in names:
        if weights.has(f"{path}/{name}/MatMul"):
            return weights.linear(f"{path}/{name}")
    return weights.linear(f"{path}/{names[-1]}")


def _decoder(d: OnnxWeights, layers: int) -> dict[str, NDArray[Any]]:
    found: dict[str, Any] = {}
    for i in range(layers):
        layer = f"layers.{i}"
        for part in ("self_attn", "encoder_attn"):
            for short, long in _ATTENTION.items():
                found[f"{layer}.{part}.{short}"] = _attention(d, f"{layer}/{part}", long)
        for short, name, other in (("up", "up_proj", "fc1"), ("down", "down_proj", "fc2")):
            path = f"{layer}/mlp/{name if d.has(f'{layer}/mlp/{name}/MatMul') else other}"
            found[f"{layer}.mlp.{short}"] = d.linear(path)
            found[f"{layer}.mlp.{short}.bias"] = d.linear_bias(path)
        found[f"{layer}.norm1"] = d.norm(f"{layer}/input_layernorm")[0]
        found[f"{layer}.norm2"] = d.norm(f"{layer}/post_attention_layernorm")[0]
        found[f"{layer}.norm3"] = d.norm(f"{layer}/final_layernorm")[0]
    found["norm"] = d.norm("norm")[0]
    return found


def read_bin_tokens(path: Path) -> dict[int, bytes]:
    """tokenizer.bin: pieces in order of their ids, each after its length (one byte, or two of 7
    bits, low first). Names of control tokens print nothing and are left out."""
    data, at, tokens, count = path.read_bytes(), 0, dict[int, bytes](), 0
    while at < len(data):
        length = data[at]
        at += 1
        if length >= 128:
            if at == len(data):
                raise InvalidArgumentError(f"{path} ends inside a token")
            length += data[at] * 128 - 128
            at += 1
        if at + length > len(data):
            raise InvalidArgumentError(f"{path} ends inside a token")
        piece = data[at : at + length]
        at += length
        if piece not in (b"", b"<unk>", b"<s>", b"</s>"):
            tokens[count] = piece.replace(_SPACE, b" ")
        count += 1
    return tokens


def read_sentence_pieces(path: Path) -> dict[int, bytes]:
    """tokenizer.json of transformers: sentencepiece's spelling, <0xNN> for single bytes."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        pieces = {int(number): str(piece) for piece, number in document["model"]["vocab"].items()}
        special = {int(entry["id"]) for entry in document["added_tokens"] if entry["special"]}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidArgumentError(f"{path} is no tokenizer of Moonshine: {error}") from None
    tokens: dict[int, bytes] = {}
    for number, piece in pieces.items():
        if number in special:
            continue
        byte = _BYTE.fullmatch(piece)
        plain = piece.encode().replace(_SPACE, b" ")
        tokens[number] = bytes([int(byte[1], 16)]) if byte else plain
    return tokens
