"""The unmodified nvidia-riva-client against a server with a streaming transducer of random weights:
what it says is nonsense, but always the same."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from harness import Server

riva = pytest.importorskip("riva.client")
soundfile = pytest.importorskip("soundfile")
pytest.importorskip("onnx")

pytestmark = pytest.mark.timeout(300)

CLIP = Path(__file__).with_name("speech_clips") / "austen_0880.flac"
ZIPFORMER = Path(__file__).parents[1] / "speech_models" / "zipformer"
PCM = (soundfile.read(str(CLIP), dtype="float32")[0] * 32767).astype("<i2")


@pytest.fixture(scope="module")
def asr(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    repository = tmp_path_factory.mktemp("streaming") / "models"
    repository.mkdir()
    headrace = str(Path(sys.executable).with_name("headrace"))
    add = [headrace, "speech", "add", str(ZIPFORMER), "--model-repository", str(repository)]
    subprocess.run(add, check=True)
    with (repository / "zipformer" / "1" / "speech.yaml").open("a") as settings:
        settings.write("max_wait_ms: 60000\n")  # a slow machine is not to refuse streams
    with Server(
        repository, "--model-control-mode", "explicit", "--load-model", "zipformer"
    ) as server:
        yield riva.ASRService(riva.Auth(uri=server.address))


def recognition(**config: Any) -> Any:
    return riva.RecognitionConfig(
        encoding=riva.AudioEncoding.LINEAR_PCM,
        sample_rate_hertz=16000,
        language_code="en-US",
        max_alternatives=1,
        **config,
    )


def streamed(asr: Any, samples: Any, phrases: list[str] | None = None, stop: int = 0) -> list[Any]:
    config = riva.StreamingRecognitionConfig(
        config=recognition(enable_word_time_offsets=True), interim_results=True
    )
    if phrases:
        riva.add_word_boosting_to_config(config, phrases, 4.0)
    if stop:
        config.config.endpointing_config.stop_history = stop
    audio = samples.tobytes()
    chunks = (audio[at : at + 3200] for at in range(0, len(audio), 3200))
    return [response.results[0] for response in asr.streaming_response_generator(chunks, config)]


def finals(results: list[Any]) -> str:
    return "".join(r.alternatives[0].transcript for r in results if r.is_final)


def test_partials_and_finals(asr: Any) -> None:
    results = streamed(asr, PCM, stop=60_000)
    assert [r.is_final for r in results].count(True) == 1
    assert results[-1].is_final
    assert len(results) > 3
    said = results[-1].alternatives[0]
    for result in results[:-1]:
        # A greedy transducer takes nothing back.
        assert said.transcript.startswith(result.alternatives[0].transcript.strip())
        assert 0 < result.stability <= 1
    assert " ".join(word.word for word in said.words) == said.transcript.strip()
    starts = [word.start_time for word in said.words]
    assert starts == sorted(starts)
    assert all(word.start_time <= word.end_time <= 3000 for word in said.words)
    assert results[-1].audio_processed == pytest.approx(len(PCM) / 16000, abs=0.01)


def test_silence_ends_utterances(asr: Any) -> None:
    pause = np.zeros(16000, "<i2")
    results = streamed(asr, np.concatenate([PCM, pause, PCM, pause]))
    assert [r.is_final for r in results].count(True) >= 2
    assert streamed(asr, np.zeros(48000, "<i2")) == []


def test_a_file(asr: Any) -> None:
    response = asr.offline_recognize(PCM.tobytes(), recognition())
    texts = [r.alternatives[0].transcript for r in response.results]
    assert "".join("".join(texts).split()) == "".join(finals(streamed(asr, PCM)).split())


def test_many_at_once(asr: Any) -> None:
    alone = finals(streamed(asr, PCM, stop=60_000))
    with ThreadPoolExecutor(8) as pool:
        together = pool.map(lambda _: finals(streamed(asr, PCM, stop=60_000)), range(8))
        assert set(together) == {alone}


def test_boosted_words(asr: Any) -> None:
    plain = finals(streamed(asr, PCM, stop=60_000))
    boosted = finals(streamed(asr, PCM, phrases=["hug", "clog"], stop=60_000))
    assert boosted
    assert boosted != plain
    with pytest.raises(grpc.RpcError) as refused:
        streamed(asr, PCM, phrases=["\u00fc"])
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_it_is_listed(asr: Any) -> None:
    from riva.client.proto import riva_asr_pb2

    response = asr.stub.GetRivaSpeechRecognitionConfig(
        riva_asr_pb2.RivaSpeechRecognitionConfigRequest()
    )
    models = response.model_config
    assert {model.model_name for model in models} == {"zipformer"}
    assert {model.parameters["family"] for model in models} == {"zipformer"}
    assert sorted(model.parameters["type"] for model in models) == ["offline", "online"]
