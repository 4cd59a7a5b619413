"""Streaming models of random weights as entries of a model repository, and what sherpa-onnx
recognises with them."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from typer.testing import CliRunner

from headrace import cli, runtime
from headrace.control.speech_models import load_speech

RATE = 16000
ZIPFORMER = Path(__file__).parents[2] / "speech_models" / "zipformer"
TAIL = np.zeros(int(0.8 * RATE), np.float32)

Samples = NDArray[np.float32]
# Tokens and the milliseconds at which they were said.
Said = list[tuple[int, int]]


def add(source: Path, repository: Path, name: str) -> Path:
    """The folder of the version that `headrace speech add` writes."""
    arguments = ["speech", "add", str(source), "--model-repository", str(repository)]
    result = CliRunner().invoke(cli.app, [*arguments, "--name", name])
    assert result.exit_code == 0, result.output
    return repository / name / "1"


def spell_ids(folder: Path) -> None:
    """Makes the text of token 17 " 17", so that a transcript says which tokens it is of."""
    numbers = [int(line.split()[1]) for line in (folder / "tokens.txt").read_text().splitlines()]
    (folder / "tokens.txt").write_text(
        "".join(f"{base64.b64encode(f' {n}'.encode()).decode()} {n}\n" for n in numbers)
    )


def change(folder: Path, **settings: Any) -> None:
    path = folder / "speech.yaml"
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(yaml.dump({**document, **settings}), encoding="utf-8")


def load(folder: Path, **settings: Any) -> runtime.SpeechRecognizer:
    """One utterance however long the pauses, computed in f32, with a worker."""
    exact = {"properties": {"INFERENCE_PRECISION_HINT": "f32"}, "max_wait_ms": 60_000}
    before = (folder / "speech.yaml").read_text(encoding="utf-8")
    change(folder, stop_history_ms=60_000, **{**exact, **settings})
    try:
        return load_speech(folder, "random", threads=1)
    finally:
        (folder / "speech.yaml").write_text(before, encoding="utf-8")


def open_stream(recognizer: runtime.SpeechRecognizer, **options: Any) -> runtime.SpeechStream:
    return recognizer.open(word_times=True, stop_history_ms=60_000, **options)


def answer(stream: runtime.SpeechStream) -> Said:
    """Of a stream that is finished."""
    said: Said = []
    while (result := stream.next(120)) is not None:
        if result["is_final"]:
            said += [(int(word["text"]), word["start_ms"]) for word in result["words"]]
    assert stream.ended
    return said


def recognize(recognizer: runtime.SpeechRecognizer, samples: Samples, **options: Any) -> Said:
    stream = open_stream(recognizer, **options)
    for at in range(0, len(samples), 1600):
        stream.push(samples[at : at + 1600])
    stream.finish()
    return answer(stream)


def sherpa_transducer(folder: Path, samples: Samples, hotwords: str = "", **options: Any) -> Said:
    import sherpa_onnx

    recognizer = sherpa_onnx.OnlineRecognizer.from_transducer(
        tokens=str(folder / "tokens.txt"),
        encoder=str(folder / "encoder.onnx"),
        decoder=str(folder / "decoder.onnx"),
        joiner=str(folder / "joiner.onnx"),
        num_threads=1,
        enable_endpoint_detection=False,
        **options,
    )
    stream = recognizer.create_stream(hotwords=hotwords) if hotwords else recognizer.create_stream()
    return _sherpa(recognizer, stream, folder, samples)


def sherpa_ctc(folder: Path, samples: Samples) -> Said:
    import sherpa_onnx

    recognizer = sherpa_onnx.OnlineRecognizer.from_nemo_ctc(
        tokens=str(folder / "tokens.txt"),
        model=str(folder / "model.onnx"),
        num_threads=1,
        enable_endpoint_detection=False,
    )
    return _sherpa(recognizer, recognizer.create_stream(), folder, samples)


def _sherpa(recognizer: Any, stream: Any, folder: Path, samples: Samples) -> Said:
    stream.accept_waveform(RATE, samples)
    stream.accept_waveform(RATE, TAIL)
    stream.input_finished()
    while recognizer.is_ready(stream):
        recognizer.decode_stream(stream)
    lines = (folder / "tokens.txt").read_text(encoding="utf-8").splitlines()
    numbers = {piece.replace("\u2581", " "): int(n) for piece, n in map(str.split, lines)}
    return [
        (numbers[piece], round(1000 * time))
        for piece, time in zip(
            recognizer.tokens(stream), recognizer.timestamps(stream), strict=True
        )
    ]


def noises(seed: int, seconds: float) -> Samples:
    """Bursts of coloured noise and tones between pauses."""
    random = np.random.default_rng(seed)
    parts = []
    while sum(map(len, parts)) < seconds * RATE:
        length = int(RATE * random.uniform(0.1, 0.5))
        time = np.arange(length) / RATE
        tone = np.sin(2 * np.pi * random.uniform(100, 3000) * time) * random.uniform(0, 0.3)
        smooth = np.ones(int(random.integers(1, 20)))
        noise = np.convolve(random.normal(0, 0.1, length), smooth / len(smooth), "same")
        parts.append(tone + noise * random.uniform(0, 2))
        parts.append(np.zeros(int(RATE * random.uniform(0, 0.4))))
    return np.concatenate(parts)[: int(seconds * RATE)].astype(np.float32)
