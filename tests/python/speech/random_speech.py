"""Tiny networks with random weights: the shapes of Moonshine and Whisper, nothing of their
sense."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from headrace.speech.moonshine import MoonshineWeights
from headrace.speech.whisper import WhisperWeights

HEADS, WIDTH, INNER, LAYERS, VOCABULARY = 2, 12, 16, 2, 40
SIZE = HEADS * WIDTH


def moonshine(seed: int = 1) -> MoonshineWeights:
    random = np.random.default_rng(seed)

    def array(*shape: int) -> Any:
        return random.normal(0, 0.4, shape).astype(np.float32)

    encoder = {
        "conv1.weight": array(SIZE, 1, 127),
        "conv2.weight": array(2 * SIZE, SIZE, 7),
        "conv2.bias": array(2 * SIZE),
        "conv3.weight": array(SIZE, 2 * SIZE, 3),
        "conv3.bias": array(SIZE),
        "groupnorm.weight": array(SIZE),
        "groupnorm.bias": array(SIZE),
        "norm": array(SIZE),
    }
    decoder = {"embedding": array(VOCABULARY, SIZE), "norm": array(SIZE)}
    for i in range(LAYERS):
        layer = f"layers.{i}"
        for part in "qkvo":
            encoder[f"{layer}.self_attn.{part}"] = array(SIZE, SIZE)
            decoder[f"{layer}.self_attn.{part}"] = array(SIZE, SIZE)
            decoder[f"{layer}.encoder_attn.{part}"] = array(SIZE, SIZE)
        for name, into, out in (("fc1", SIZE, INNER), ("fc2", INNER, SIZE)):
            encoder[f"{layer}.mlp.{name}"] = array(into, out)
            encoder[f"{layer}.mlp.{name}.bias"] = array(out)
        for name, into, out in (("up", SIZE, 2 * INNER), ("down", INNER, SIZE)):
            decoder[f"{layer}.mlp.{name}"] = array(into, out)
            decoder[f"{layer}.mlp.{name}.bias"] = array(out)
        for norm in ("norm1", "norm2"):
            encoder[f"{layer}.{norm}"] = array(SIZE)
        for norm in ("norm1", "norm2", "norm3"):
            decoder[f"{layer}.{norm}"] = array(SIZE)
    inv_freq = (1.0 / 100.0 ** (np.arange(4) / 4)).astype(np.float32)
    return MoonshineWeights(encoder, decoder, LAYERS, LAYERS, HEADS, inv_freq)


def whisper(seed: int = 2) -> WhisperWeights:
    random = np.random.default_rng(seed)

    def array(*shape: int) -> Any:
        return random.normal(0, 0.4, shape).astype(np.float32)

    def side(attentions: tuple[str, ...], norms: int) -> dict[str, Any]:
        found: dict[str, Any] = {"norm.weight": array(SIZE), "norm.bias": array(SIZE)}
        for i in range(LAYERS):
            for attention in attentions:
                for part in "qkvo":
                    name = f"layers.{i}.{attention}.{part}"
                    found[name] = array(SIZE, SIZE)
                    if part != "k":
                        found[f"{name}.bias"] = array(SIZE)
            for name, into, out in (("fc1", SIZE, INNER), ("fc2", INNER, SIZE)):
                found[f"layers.{i}.{name}"] = array(into, out)
                found[f"layers.{i}.{name}.bias"] = array(out)
            for number in range(norms):
                found[f"layers.{i}.norm{number + 1}.weight"] = array(SIZE)
                found[f"layers.{i}.norm{number + 1}.bias"] = array(SIZE)
        return found

    encoder = side(("self_attn",), 2) | {
        "positions": array(1500, SIZE),
        "conv1.weight": array(SIZE, 80, 3),
        "conv1.bias": array(SIZE),
        "conv2.weight": array(SIZE, SIZE, 3),
        "conv2.bias": array(SIZE),
    }
    decoder = side(("self_attn", "encoder_attn"), 3) | {
        "positions": array(448, SIZE),
        "embedding": array(VOCABULARY, SIZE),
    }
    return WhisperWeights(encoder, decoder, LAYERS, LAYERS, HEADS, ((0, 1), (1, 0), (1, 1)))


def write_ct2(path: Path, weights: WhisperWeights) -> None:
    """`weights` as CTranslate2 writes them, in float32."""
    variables: dict[str, Any] = {
        "encoder/num_heads": np.array(weights.heads, np.int16),
        "decoder/embeddings/weight": weights.decoder["embedding"],
    }
    for name in ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"):
        variables["encoder/" + name.replace(".", "/")] = weights.encoder[name]
    for side, arrays in (("encoder", weights.encoder), ("decoder", weights.decoder)):

        def norm(target: str, source: str, arrays: Any = arrays) -> None:
            variables[f"{target}/gamma"] = arrays[f"{source}.weight"]
            variables[f"{target}/beta"] = arrays[f"{source}.bias"]

        def linear(target: str, source: str, parts: str, arrays: Any = arrays) -> None:
            names = [f"{source}.{part}" if part else source for part in parts.split(",")]
            zero = np.zeros(SIZE, np.float32)
            variables[f"{target}/weight"] = np.concatenate([arrays[name].T for name in names])
            variables[f"{target}/bias"] = np.concatenate(
                [arrays.get(f"{name}.bias", zero) for name in names]
            )

        variables[f"{side}/position_encodings/encodings"] = arrays["positions"]
        norm(f"{side}/layer_norm", "norm")
        for i in range(LAYERS):
            target, source = f"{side}/layer_{i}", f"layers.{i}"
            linear(f"{target}/self_attention/linear_0", f"{source}.self_attn", "q,k,v")
            linear(f"{target}/self_attention/linear_1", f"{source}.self_attn", "o")
            norm(f"{target}/self_attention/layer_norm", f"{source}.norm1")
            if side == "decoder":
                for number, parts in enumerate(("q", "k,v", "o")):
                    linear(f"{target}/attention/linear_{number}", f"{source}.encoder_attn", parts)
                norm(f"{target}/attention/layer_norm", f"{source}.norm2")
            norm(f"{target}/ffn/layer_norm", f"{source}.norm{3 if side == 'decoder' else 2}")
            linear(f"{target}/ffn/linear_0", f"{source}.fc1", "")
            linear(f"{target}/ffn/linear_1", f"{source}.fc2", "")
    kinds = {np.dtype(np.float32): 0, np.dtype(np.int16): 2}

    def string(text: str) -> bytes:
        data = text.encode() + b"\0"
        return struct.pack("<H", len(data)) + data

    out = [struct.pack("<I", 6), string("WhisperSpec"), struct.pack("<II", 3, len(variables))]
    for name, array in variables.items():
        out.append(string(name) + struct.pack("<B", array.ndim))
        out.append(struct.pack(f"<{array.ndim}I", *array.shape))
        out.append(struct.pack("<BI", kinds[array.dtype], array.nbytes) + array.tobytes())
    out.append(struct.pack("<I", 1) + string("decoder/projection/weight"))
    out.append(string("decoder/embeddings/weight"))
    path.write_bytes(b"".join(out))
