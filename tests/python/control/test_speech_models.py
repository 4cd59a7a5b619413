"""Speech models from their folder, with tiny networks of random weights: what they say is nonsense,
but always the same."""

from __future__ import annotations

import base64
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_speech

from headrace import runtime
from headrace.control.speech_models import has_amx, load_speech, read_speech_config
from headrace.errors import HeadraceError, InvalidArgumentError, NotFoundError
from headrace.speech import moonshine, whisper

onnx = pytest.importorskip("onnx")

RATE = 16000
EOS = 2
YAML = """
family: {family}
language: en-US
prompt: [1]
eos: 2
max_tokens_per_second: 12
min_context_s: 0.5
suppress: [0]
max_wait_ms: 60000
unknown_key: ignored
"""


def loudness_as_voice() -> Any:
    """Silero's inputs and outputs: who is louder than 0.01 speaks."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT

    def constant(name: str, value: float) -> Any:
        return helper.make_node(
            "Constant", [], [name], value=helper.make_tensor(name, kind, [1, 1], [value])
        )

    graph = helper.make_graph(
        [
            constant("floor", 0.01),
            constant("steep", 1000.0),
            helper.make_node("Abs", ["input"], ["size"]),
            helper.make_node("ReduceMean", ["size"], ["mean"], axes=[1], keepdims=1),
            helper.make_node("Sub", ["mean", "floor"], ["above"]),
            helper.make_node("Mul", ["above", "steep"], ["logit"]),
            helper.make_node("Sigmoid", ["logit"], ["output"]),
            helper.make_node("Neg", ["state"], ["stateN"]),
        ],
        "vad",
        [
            helper.make_tensor_value_info("input", kind, ["N", 576]),
            helper.make_tensor_value_info("state", kind, [2, "N", 128]),
        ],
        [
            helper.make_tensor_value_info("output", kind, ["N", 1]),
            helper.make_tensor_value_info("stateN", kind, [2, "N", 128]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)])
    model.ir_version = 9
    return model


def write(folder: Path, family: str) -> Path:
    folder.mkdir()
    networks = (
        moonshine.build(random_speech.moonshine(), int8=False, metadata={})
        if family == "moonshine"
        else whisper.build(random_speech.whisper(), int8=False, metadata={})
    )
    onnx.save(networks.encoder, str(folder / "encoder.onnx"))
    onnx.save(networks.decoder, str(folder / "decoder.onnx"))
    onnx.save(loudness_as_voice(), str(folder / "vad.onnx"))
    (folder / "tokens.txt").write_text(
        "".join(
            f"{base64.b64encode(f' t{i}'.encode()).decode()} {i}\n"
            for i in range(3, random_speech.VOCABULARY)
        )
    )
    (folder / "speech.yaml").write_text(YAML.format(family=family))
    return folder


@pytest.fixture(scope="module", params=["moonshine", "whisper"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("models") / "1", request.param)


@pytest.fixture(scope="module")
def recognizer(folder: Path) -> runtime.SpeechRecognizer:
    return load_speech(folder, "nonsense", threads=1)


def sound(seconds: float, seed: int) -> Any:
    return np.random.default_rng(seed).normal(0, 0.1, int(RATE * seconds)).astype(np.float32)


SILENCE = np.zeros(RATE, np.float32)


def answers(stream: runtime.SpeechStream) -> list[dict[str, Any]]:
    found = []
    while not stream.ended:
        result = stream.next(60)
        if result is not None:
            found.append(result)
    return found


def whole(recognizer: runtime.SpeechRecognizer, audio: Any) -> runtime.SpeechStream:
    stream = recognizer.open(offline=True, word_times=True)
    stream.push(audio)
    stream.finish()
    return stream


def test_audio_becomes_words(recognizer: runtime.SpeechRecognizer) -> None:
    results = answers(whole(recognizer, np.concatenate([SILENCE, sound(1.5, 1), SILENCE])))
    assert len(results) == 1
    result = results[0]
    assert result["is_final"]
    assert 0 < result["confidence"] <= 1
    words = result["words"]
    assert [word["text"] for word in words] == result["transcript"].split()
    assert words[0]["start_ms"] >= 700
    assert words[-1]["end_ms"] <= 2800
    assert math.isclose(result["audio_processed_s"], 3.1, abs_tol=0.7)


def test_streams_together_are_each_as_alone(recognizer: runtime.SpeechRecognizer) -> None:
    audios = [
        np.concatenate([sound(0.5 + 0.3 * i, i), SILENCE, sound(1.0, 50 + i)]) for i in range(8)
    ]
    alone = [answers(whole(recognizer, audio)) for audio in audios]
    before = recognizer.statistics()
    streams = [whole(recognizer, audio) for audio in audios]
    together = [answers(stream) for stream in streams]
    after = recognizer.statistics()
    for mine, other in zip(alone, together, strict=True):
        assert [r["transcript"] for r in mine] == [r["transcript"] for r in other]
        assert len(mine) == 2
    steps = after["decoder_steps"] - before["decoder_steps"]
    assert after["decoder_tokens"] - before["decoder_tokens"] > steps


def test_a_stream_in_pieces_says_what_it_says_at_once(
    recognizer: runtime.SpeechRecognizer,
) -> None:
    audio = np.concatenate([SILENCE, sound(2.0, 7), SILENCE, sound(1.0, 8), SILENCE])
    texts = []
    for interim in (False, True):
        stream = recognizer.open(interim_results=interim)
        for at in range(0, len(audio), 1111):
            stream.push(audio[at : at + 1111])
        stream.finish()
        results = answers(stream)
        texts.append([r["transcript"] for r in results if r["is_final"]])
        assert interim or all(r["is_final"] for r in results)
        assert all(0 <= r["stability"] <= 1 for r in results)
    # A draft saves work and changes nothing.
    assert texts[0] == texts[1]
    assert len(texts[0]) == 2


def test_silence_says_nothing(recognizer: runtime.SpeechRecognizer) -> None:
    assert answers(whole(recognizer, np.zeros(RATE * 30, np.float32))) == []


def test_a_closed_stream_is_forgotten(recognizer: runtime.SpeechRecognizer) -> None:
    stream = recognizer.open()
    stream.push(sound(3, 3))
    stream.close()
    assert recognizer.statistics()["open_streams"] == 0
    with pytest.raises(ValueError, match="closed"):
        stream.push(SILENCE)


def test_the_recognizer_tells_what_it_is(
    recognizer: runtime.SpeechRecognizer, folder: Path
) -> None:
    info = recognizer.info
    assert (info["name"], info["language_code"]) == ("nonsense", "en-US")
    assert info["offline"] and info["streaming"]
    assert info["parameters"]["family"] == read_speech_config(folder).family


@pytest.mark.parametrize(("asked", "computes"), [("f32", "f32"), ("bf16", "bf16")])
def test_the_encoder_computes_as_asked(tmp_path: Path, asked: str, computes: str) -> None:
    if computes == "bf16" and not has_amx():
        pytest.skip("no AMX: OpenVINO may stay in f32")
    folder = write(tmp_path / "1", "moonshine")
    (folder / "speech.yaml").write_text(GOOD + f"encoder_precision: {asked}\n")
    recognizer = load_speech(folder, "precise", threads=1)
    assert f"CPU {computes}," in recognizer.info["parameters"]["runtime"]


def test_amx_is_a_word_of_its_own(tmp_path: Path) -> None:
    flags = tmp_path / "cpuinfo"
    assert not has_amx(flags)
    flags.write_text("flags\t: fpu avx512_bf16 amx_tile\n")
    assert not has_amx(flags)
    flags.write_text("flags\t: fpu amx_bf16 amx_tile\n")
    assert has_amx(flags)


def damage_yaml(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "speech.yaml").write_text(text) and None


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def garble(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(b"\x08\x01 what is this") and None


def swap_networks(folder: Path) -> None:
    shutil.copy(folder / "decoder.onnx", folder / "encoder.onnx")


GOOD = YAML.format(family="moonshine")


@pytest.mark.parametrize(
    ("damage", "error", "says"),
    [
        (drop("speech.yaml"), NotFoundError, "speech.yaml' is missing"),
        (drop("decoder.onnx"), NotFoundError, "(files.decoder) is missing"),
        (drop("tokens.txt"), NotFoundError, "(files.tokens) is missing"),
        (garble("encoder.onnx"), InvalidArgumentError, "encoder.onnx'"),
        (garble("vad.onnx"), InvalidArgumentError, "vad.onnx'"),
        (garble("tokens.txt"), InvalidArgumentError, "line 1"),
        (swap_networks, InvalidArgumentError, "encoder: has 12 inputs"),
        (damage_yaml("a: [1"), InvalidArgumentError, "is not YAML"),
        (damage_yaml("- 1"), InvalidArgumentError, "expected keys and values"),
        (damage_yaml(GOOD.replace("[1]", "[]")), InvalidArgumentError, "prompt: "),
        (damage_yaml(GOOD.replace("[1]", "[-4]")), InvalidArgumentError, "prompt.0: "),
        (damage_yaml(GOOD.replace("moonshine", "sphinx")), InvalidArgumentError, "family: "),
        (damage_yaml(GOOD.replace("eos: 2", "")), InvalidArgumentError, "eos: "),
        (
            damage_yaml(GOOD + "files: {vad: ../../vad.onnx}"),
            InvalidArgumentError,
            "must lie in",
        ),
        (
            damage_yaml(GOOD + "properties: {NO_SUCH: '1'}"),
            InvalidArgumentError,
            "unknown OpenVINO property 'NO_SUCH'",
        ),
    ],
)
def test_what_is_wrong_is_said(
    tmp_path: Path, damage: Callable[[Path], None], error: type[HeadraceError], says: str
) -> None:
    broken = write(tmp_path / "1", "moonshine")
    damage(broken)
    with pytest.raises(error) as raised:
        load_speech(broken, "broken", threads=1)
    assert says in raised.value.details
    assert "speech model 'broken'" in raised.value.details
