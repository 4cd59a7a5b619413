"""A cache-aware CTC network, token for token as sherpa-onnx recognises with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from streaming_models import (
    RATE,
    add,
    answer,
    load,
    noises,
    open_stream,
    recognize,
    sherpa_ctc,
    spell_ids,
)
from typer.testing import CliRunner

from headrace import cli, runtime
from headrace.errors import UnimplementedError

pytest.importorskip("onnx")
import random_nemo

pytestmark = pytest.mark.timeout(300)

SOUNDS = [noises(seed, seconds) for seed, seconds in ((1, 4.2), (2, 2.7), (3, 6.01))]
# sherpa-onnx takes frames for 40 ms; those of a network that subsamples by 8 are of 80 ms.
STRETCH = 2


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nemo")
    random_nemo.write(folder)
    return folder


@pytest.fixture(scope="module")
def folder(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = add(source, tmp_path_factory.mktemp("models"), "nemo")
    spell_ids(folder)
    return folder


@pytest.fixture(scope="module")
def recognizer(folder: Path) -> runtime.SpeechRecognizer:
    return load(folder)


def test_as_sherpa_onnx(folder: Path, source: Path) -> None:
    pytest.importorskip("sherpa_onnx")
    recognizer = load(folder, features="librosa")
    for samples in SOUNDS:
        # What is said in the silence behind the end is told as of the end.
        end = round(1000 * len(samples) / RATE)
        expected = [(n, min(ms * STRETCH, end)) for n, ms in sherpa_ctc(source, samples)]
        assert len(expected) > 3
        assert recognize(recognizer, samples) == expected


def test_hears_nemos_features(folder: Path, recognizer: runtime.SpeechRecognizer) -> None:
    kaldi = load(folder, features="kaldi")
    assert any(recognize(recognizer, s) != recognize(kaldi, s) for s in SOUNDS)


def test_together_as_alone(recognizer: runtime.SpeechRecognizer) -> None:
    sounds = [*SOUNDS, noises(4, 3.3), np.zeros(RATE, np.float32)]
    alone = [recognize(recognizer, samples) for samples in sounds]
    before = recognizer.statistics()
    streams = [open_stream(recognizer) for _ in sounds]
    for stream, samples in zip(streams, sounds, strict=True):
        stream.push(samples)
        stream.finish()
    assert [answer(stream) for stream in streams] == alone
    after = recognizer.statistics()
    runs = after["decoder_steps"] - before["decoder_steps"]
    assert after["decoder_tokens"] - before["decoder_tokens"] > runs


def test_phrases_are_the_transducers(recognizer: runtime.SpeechRecognizer) -> None:
    with pytest.raises(UnimplementedError, match="prefer"):
        recognizer.open(phrases=[("abc", 2.0)])


def test_models_that_do_not_stream_are_refused(tmp_path: Path) -> None:
    def refuse(words: str) -> None:
        arguments = ["speech", "add", str(tmp_path), "--model-repository", str(tmp_path / "m")]
        with pytest.raises(Exception, match=words):
            CliRunner().invoke(cli.app, arguments, catch_exceptions=False)

    random_nemo.write(tmp_path, normalize_type="per_feature")
    refuse("per_feature")
    random_nemo.write(tmp_path, window_size="")
    refuse("its metadata has no window_size")
    random_nemo.write(tmp_path)
    tokens = tmp_path / "tokens.txt"
    tokens.write_text(tokens.read_text(encoding="utf-8").replace("<blk>", "~"), encoding="utf-8")
    refuse("none of <blk>")
    (tmp_path / "model.onnx").write_bytes(b"no model")
    refuse("no ONNX model")
