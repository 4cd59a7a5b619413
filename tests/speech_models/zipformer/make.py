"""Writes encoder.onnx, decoder.onnx, joiner.onnx, tokens.txt and bpe.vocab beside itself: a
streaming zipformer2 transducer of minimal size with random weights, exported as icefall does.

    pip install torch==2.13.0 zipformer==0.1.3 onnx onnxscript     # Apache-2.0
    python make.py
"""

from __future__ import annotations

import math
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

# The package's data loading, which wants torchaudio, is not used here.
loading = types.ModuleType("atdataset")
for name in ("fix_random_seed", "SpecAugment", "time_warp"):
    setattr(loading, name, None)
sys.modules["atdataset"] = loading
sys.modules["zipformer.bin"] = types.ModuleType("zipformer.bin")
sys.modules["zipformer.bin"].inference = None  # type: ignore[attr-defined]

from zipformer.modules.model import (  # noqa: E402
    AsrModel,
    OnnxDecoderWrapper,
    OnnxJoinerWrapper,
    OnnxStreamingEncoderWrapper,
)

FOLDER = Path(__file__).parent
CHUNK, LEFT = 16, 32  # frames after the first subsampling
BLANK = 6.0
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ'"


def pieces() -> list[str]:
    """As sentencepiece's BPE lists them: special ones, merged ones in their order, characters."""
    merged = ["▁T", "HE", "▁A", "IN", "▁THE", "ER", "▁S", "ON", "▁W", "RE", "AN", "OU", "▁HE", "AT"]
    merged += [
        "▁B",
        "ED",
        "IS",
        "EN",
        "▁C",
        "OR",
        "▁IN",
        "IT",
        "ES",
        "▁O",
        "▁AN",
        "ING",
        "ST",
        "LL",
    ]
    return ["<blk>", "<sos/eos>", "<unk>", *merged, "▁", *LETTERS]


def describe(path: Path, metadata: dict[str, Any]) -> None:
    model = onnx.load(path)
    for key, value in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, str(value)
    model.producer_version = ""
    model.graph.name = "random"
    for node in model.graph.node:
        node.ClearField("doc_string")
    onnx.checker.check_model(model)
    onnx.save(model, path)


def listed(values: Any) -> str:
    return ",".join(str(value) for value in values)


def main() -> None:
    torch.manual_seed(7)
    tokens = pieces()
    model = AsrModel(
        feature_dim=80,
        downsampling_factor="1,2",
        encoder_dim="16,24",
        num_encoder_layers="1,1",
        encoder_unmasked_dim="16,16",
        query_head_dim="4",
        pos_head_dim="4",
        value_head_dim="4",
        num_heads="2,2",
        feedforward_dim="24,32",
        cnn_module_kernel="7,5",
        pos_dim=8,
        causal=True,
        chunk_size=str(CHUNK),
        left_context_frames=str(LEFT),
        use_ctc=False,
        use_transducer=True,
        use_attention_decoder=False,
        blank_id=0,
        vocab_size=len(tokens),
        decoder_dim=24,
        context_size=2,
        joiner_dim=24,
    )
    # Untrained, a network says the same to everything. Larger weights make it depend on the sound.
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() >= 2:
                weight.mul_(1.5)
        model.joiner.encoder_proj.weight.mul_(4)
        model.joiner.decoder_proj.weight.mul_(3)
        model.joiner.output_linear.weight.mul_(8)
        model.joiner.output_linear.bias.zero_()
        model.joiner.output_linear.bias[1:3] = -50.0
    model.eval()
    export(model, tokens)


@torch.no_grad()
def say_nothing_of_silence(model: Any, encoder: Any, length: int) -> None:
    """Turns the blank's weights towards what silence sounds like."""
    silence = torch.full((1, length, 80), math.log(np.finfo(np.float32).eps))
    states = encoder.get_init_states()
    for _ in range(6):
        heard, states = encoder(silence, states)
    said = model.joiner.decoder_proj(
        model.decoder(torch.zeros(1, 2, dtype=torch.int64), need_pad=False)
    )
    hidden = torch.tanh(heard[0, -1] + said.reshape(-1))
    model.joiner.output_linear.weight[0] = BLANK * hidden / hidden.norm()


def export(model: Any, tokens: list[str]) -> None:
    encoder = OnnxStreamingEncoderWrapper(
        encoder=model.encoder,
        encoder_embed=model.encoder_embed,
        encoder_proj=model.joiner.encoder_proj,
    )
    zipformer = encoder.encoder
    zipformer.__class__.forward = zipformer.__class__.streaming_forward
    length = encoder.chunk_size * 2 + encoder.pad_length
    say_nothing_of_silence(model, encoder, length)
    states = encoder.get_init_states()
    inputs, outputs, axes = ["x"], ["encoder_out"], {"x": {0: "N"}, "encoder_out": {0: "N"}}
    layer = ("cached_key", "cached_nonlin_attn", "cached_val1", "cached_val2")
    for i in range(len(states[:-2]) // 6):
        for part in (*layer, "cached_conv1", "cached_conv2"):
            name, axis = f"{part}_{i}", int(part in layer)
            inputs.append(name)
            outputs.append(f"new_{name}")
            axes[name] = axes[f"new_{name}"] = {axis: "N"}
    for name in ("embed_states", "processed_lens"):
        inputs.append(name)
        outputs.append(f"new_{name}")
        axes[name] = axes[f"new_{name}"] = {0: "N"}
    common: dict[str, Any] = {"opset_version": 13, "dynamo": False}
    torch.onnx.export(
        encoder,
        (torch.rand(1, length, 80), states),
        str(FOLDER / "encoder.onnx"),
        input_names=inputs,
        output_names=outputs,
        dynamic_axes=axes,
        **common,
    )
    factors = zipformer.downsampling_factor
    describe(
        FOLDER / "encoder.onnx",
        {
            "model_type": "zipformer2",
            "version": 1,
            "decode_chunk_len": encoder.chunk_size * 2,
            "T": length,
            "num_encoder_layers": listed(zipformer.num_encoder_layers),
            "encoder_dims": listed(zipformer.encoder_dim),
            "cnn_module_kernels": listed(zipformer.cnn_module_kernel),
            "left_context_len": listed(LEFT // factor for factor in factors),
            "query_head_dims": listed(zipformer.query_head_dim),
            "value_head_dims": listed(zipformer.value_head_dim),
            "num_heads": listed(zipformer.num_heads),
            "comment": "random weights",
        },
    )
    decoder = OnnxDecoderWrapper(decoder=model.decoder, decoder_proj=model.joiner.decoder_proj)
    torch.onnx.export(
        torch.jit.script(decoder),
        torch.zeros(10, 2, dtype=torch.int64),
        str(FOLDER / "decoder.onnx"),
        input_names=["y"],
        output_names=["decoder_out"],
        dynamic_axes={"y": {0: "N"}, "decoder_out": {0: "N"}},
        **common,
    )
    describe(FOLDER / "decoder.onnx", {"context_size": 2, "vocab_size": len(tokens)})
    joiner = OnnxJoinerWrapper(output_linear=model.joiner.output_linear)
    torch.onnx.export(
        joiner,
        (torch.rand(11, 24), torch.rand(11, 24)),
        str(FOLDER / "joiner.onnx"),
        input_names=["encoder_out", "decoder_out"],
        output_names=["logit"],
        dynamic_axes={"encoder_out": {0: "N"}, "decoder_out": {0: "N"}, "logit": {0: "N"}},
        **common,
    )
    describe(FOLDER / "joiner.onnx", {"joiner_dim": 24})
    lines = [f"{piece} {number}\n" for number, piece in enumerate(tokens)]
    (FOLDER / "tokens.txt").write_text("".join(lines), encoding="utf-8")
    scores = [f"{piece}\t{-max(0, number - 3)}\n" for number, piece in enumerate(tokens)]
    (FOLDER / "bpe.vocab").write_text("".join(scores), encoding="utf-8")


if __name__ == "__main__":
    np.random.seed(7)
    main()
