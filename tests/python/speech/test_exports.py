"""Optimum's and sherpa-onnx's exports of random models against transformers and openai-whisper
themselves.

Needs torch, transformers, optimum-onnx: skipped where they are not installed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.speech import moonshine, whisper
from headrace.speech.moonshine_export import read_moonshine
from headrace.speech.network import Networks
from headrace.speech.sources import find_folder
from headrace.speech.whisper_export import read_whisper

onnxruntime = pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch", reason="makes the exports")
transformers = pytest.importorskip("transformers", reason="makes the exports")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

IDS = [[51, 3, 7, 9]]


def logits_of(networks: Networks, feed: dict[str, Any]) -> Any:
    """At all positions of IDS, in one pass."""
    encoder, decoder = (
        onnxruntime.InferenceSession(model.SerializeToString())
        for model in (networks.encoder, networks.decoder)
    )
    names = [output.name for output in encoder.get_outputs()]
    cross = dict(zip(names, encoder.run(None, feed), strict=True))
    count = len(IDS[0])
    mask = np.full((1, 1, count, 1 + count), -1e9, np.float32)
    for row in range(count):
        mask[:, :, row, 1 : row + 2] = 0
    past = {
        value.name: np.zeros((1, value.shape[1], 1, value.shape[3]), np.float32)
        for value in decoder.get_inputs()
        if value.name.startswith("past")
    }
    feeds = {
        "input_ids": np.array(IDS),
        "positions": np.arange(count)[None],
        "self_mask": mask,
        "cross_mask": np.zeros((1, 1, 1, cross["cross.0.key"].shape[2]), np.float32),
    }
    return decoder.run(["logits"], {**feeds, **past, **cross})[0]


def randomize(model: Any) -> None:
    torch.manual_seed(0)
    for parameter in model.parameters():
        many = parameter.dim() > 1
        parameter.data.normal_(0.0 if many else 0.5, 0.2)
    model.eval()


def optimum_export(source: Path, target: Path) -> None:
    pytest.importorskip("optimum.exporters.onnx", reason="needs optimum-onnx")
    command = [sys.executable, "-m", "optimum.exporters.onnx", "--model", str(source)]
    command += ["--task", "automatic-speech-recognition-with-past", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (target / "decoder_model_merged.onnx").exists(), done.stderr[-2000:]


@pytest.mark.timeout(600)
def test_whisper_by_optimum(tmp_path: Path) -> None:
    config = transformers.WhisperConfig(
        vocab_size=60,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        pad_token_id=50,
        bos_token_id=50,
        eos_token_id=50,
        decoder_start_token_id=51,
    )
    model = transformers.WhisperForConditionalGeneration(config)
    randomize(model)
    model.save_pretrained(tmp_path / "model")
    features = torch.randn(1, 80, 3000)
    with torch.no_grad():
        answer = model(input_features=features, decoder_input_ids=torch.tensor(IDS))
    optimum_export(tmp_path / "model", tmp_path / "export")
    (tmp_path / "export/tokenizer.json").write_text("{}")
    found = find_folder(tmp_path / "export")
    assert found.layout == "whisper-onnx"
    for name in ("decoder_model.onnx", "decoder_model_merged.onnx"):
        weights = read_whisper(found.files["encoder"], tmp_path / "export" / name, 2)
        networks = whisper.build(weights, int8=False, metadata={})
        got = logits_of(networks, {"input_features": features.numpy()})
        np.testing.assert_allclose(got, answer.logits.numpy(), atol=1e-4)


@pytest.mark.timeout(600)
def test_moonshine_by_optimum(tmp_path: Path) -> None:
    config = transformers.MoonshineConfig(
        vocab_size=60,
        hidden_size=64,
        intermediate_size=48,
        encoder_num_hidden_layers=2,
        decoder_num_hidden_layers=2,
        encoder_num_attention_heads=4,
        decoder_num_attention_heads=4,
    )
    model = transformers.MoonshineForConditionalGeneration(config)
    randomize(model)
    model.save_pretrained(tmp_path / "model")
    samples = 0.1 * torch.randn(1, 8000)
    with torch.no_grad():
        answer = model(input_values=samples, decoder_input_ids=torch.tensor(IDS))
    optimum_export(tmp_path / "model", tmp_path / "export")
    (tmp_path / "export/tokenizer.json").write_text(json.dumps({}))
    found = find_folder(tmp_path / "export")
    assert found.layout == "moonshine"
    for name in ("decoder_model.onnx", "decoder_model_merged.onnx"):
        weights = read_moonshine(found.files["encoder"], tmp_path / "export" / name)
        networks = moonshine.build(weights, int8=False, metadata={})
        got = logits_of(networks, {"input_values": samples.numpy()})
        np.testing.assert_allclose(got, answer.logits.numpy(), atol=1e-4)


def sherpa_whisper(folder: Path) -> tuple[Any, Any]:
    """(features, logits) of a random model of openai-whisper, exported with the modules' names that
    sherpa-onnx's export gives them."""
    openai = pytest.importorskip("whisper.model", reason="needs openai-whisper")
    import onnx

    openai.MultiHeadAttention.use_sdpa = False
    model = openai.Whisper(openai.ModelDimensions(80, 1500, 32, 2, 2, 60, 448, 32, 2, 2))
    randomize(model)

    class Encoder(torch.nn.Module):  # type: ignore[misc, name-defined]
        """The decoder's projections of the audio are in its graph."""

        def __init__(self) -> None:
            super().__init__()
            self.audioEncoder = model.encoder
            self.textDecoder = model.decoder

        def forward(self, mel: Any) -> Any:
            audio = self.audioEncoder(mel)
            keys = [block.cross_attn.key(audio) for block in self.textDecoder.blocks]
            values = [block.cross_attn.value(audio) for block in self.textDecoder.blocks]
            return torch.stack(keys), torch.stack(values)

    class Wrapped:
        """Attention whose modules are called one by one, by what is no module itself."""

        def __init__(self, block: Any) -> None:
            self.block = block

        def run(self, x: Any, keys: Any, values: Any, mask: Any) -> Any:
            own, cross = self.block.attn, self.block.cross_attn
            h = self.block.attn_ln(x)
            seen = own.qkv_attention(own.query(h), own.key(h), own.value(h), mask)[0]
            x = x + own.out(seen)
            h = self.block.cross_attn_ln(x)
            x = x + cross.out(cross.qkv_attention(cross.query(h), keys, values)[0])
            return x + self.block.mlp(self.block.mlp_ln(x))

    class Decoder(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.textDecoder = model.decoder
            self.blocks = [Wrapped(block) for block in model.decoder.blocks]

        def forward(self, tokens: Any, keys: Any, values: Any, offset: Any) -> Any:
            text = self.textDecoder
            end = offset[0] + tokens.shape[-1]
            x = text.token_embedding(tokens) + text.positional_embedding[offset[0] : end]
            for i, block in enumerate(self.blocks):
                x = block.run(x, keys[i], values[i], text.mask)
            x = text.ln(x)
            logits = torch.matmul(text.token_embedding.weight, x.permute(0, 2, 1))
            return logits.permute(0, 2, 1)

    features, ids = torch.randn(1, 80, 3000), torch.tensor(IDS)
    with torch.no_grad():
        audio = model.encoder(features)
        logits = model.decoder(ids, audio)
        for name, module, inputs in (
            ("encoder", Encoder(), (features,)),
            ("decoder", Decoder(), (ids, *Encoder()(features), torch.zeros(1, dtype=torch.int64))),
        ):
            path = folder / f"tiny-{name}.onnx"
            torch.onnx.export(module, inputs, str(path), opset_version=13, dynamo=False)
            exported = onnx.load(str(path))
            onnx.helper.set_model_props(exported, {"n_audio_head": "2", "n_text_layer": "2"})
            onnx.save(exported, str(path))
    return features.numpy(), logits.numpy()


@pytest.mark.timeout(600)
def test_whisper_with_openais_names(tmp_path: Path) -> None:
    features, logits = sherpa_whisper(tmp_path)
    (tmp_path / "tiny-tokens.txt").write_text("YQ== 0\n")
    found = find_folder(tmp_path)
    assert found.layout == "whisper-sherpa"
    weights = read_whisper(found.files["encoder"], found.files["decoder"], 0)
    networks = whisper.build(weights, int8=False, metadata={})
    got = logits_of(networks, {"input_features": features})
    np.testing.assert_allclose(got, logits, atol=1e-4)
