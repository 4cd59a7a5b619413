"""Recognition through nvidia-riva-client, as it comes from PyPI."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import riva.client
from clips import RATE, Clip

CHUNK_S = 0.1


def service(address: str) -> Any:
    return riva.client.ASRService(riva.client.Auth(uri=address, use_ssl=False))


def config(model: str, stop_history_ms: int = 0) -> Any:
    made = riva.client.RecognitionConfig(
        encoding=riva.client.AudioEncoding.LINEAR_PCM,
        sample_rate_hertz=RATE,
        language_code="en-US",
        max_alternatives=1,
        audio_channel_count=1,
        enable_automatic_punctuation=True,
        model=model,
    )
    if stop_history_ms:
        riva.client.add_endpoint_parameters_to_config(
            made, -1, -1.0, stop_history_ms, -1, -1.0, -1.0
        )
    return made


def only_model(asr: Any) -> str:
    answer = asr.stub.GetRivaSpeechRecognitionConfig(
        riva.client.proto.riva_asr_pb2.RivaSpeechRecognitionConfigRequest()
    )
    names = sorted({one.model_name for one in answer.model_config})
    if len(names) != 1:
        raise SystemExit(f"--model: one of {', '.join(names)}")
    return names[0]


def offline(asr: Any, clip: Clip, model: str) -> str:
    answer = asr.offline_recognize(clip.samples.tobytes(), config(model))
    return " ".join(
        result.alternatives[0].transcript.strip()
        for result in answer.results
        if result.alternatives
    )


@dataclass
class Streamed:
    """Times are seconds since the first sample was said."""

    finals: list[tuple[float, str]] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)  # of interim results

    @property
    def text(self) -> str:
        return " ".join(text for _, text in self.finals)


def streamed(
    asr: Any,
    clip: Clip,
    model: str,
    *,
    real_time: bool,
    silence_s: float = 1.5,
    stop_history_ms: int = 320,
) -> Streamed:
    """The clip, then silence, so that its last final comes from the endpoint, not from the end of
    the stream. In real time a piece leaves when its last sample has been said."""
    data = clip.samples.tobytes() + bytes(2 * int(RATE * silence_s))
    piece = 2 * int(RATE * CHUNK_S)
    began = time.monotonic()

    def chunks() -> Iterator[bytes]:
        for number, at in enumerate(range(0, len(data), piece), 1):
            if real_time:
                time.sleep(max(0.0, began + number * CHUNK_S - time.monotonic()))
            yield data[at : at + piece]

    settings = riva.client.StreamingRecognitionConfig(
        config=config(model, stop_history_ms), interim_results=real_time
    )
    found = Streamed()
    for response in asr.streaming_response_generator(chunks(), settings):
        now = time.monotonic() - began
        for result in response.results:
            if not result.alternatives:
                continue
            text = result.alternatives[0].transcript.strip()
            if result.is_final:
                if text:
                    found.finals.append((now, text))
            elif text:
                found.lags.append(now - result.audio_processed)
    return found
