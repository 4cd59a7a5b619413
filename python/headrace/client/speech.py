"""Speech recognition over gRPC, in Riva's protocol: files and streams.

    with SpeechClient("localhost:8001") as client:
        heard = client.recognize(Path("call.wav").read_bytes())
        for heard in client.stream(chunks, interim=True):
            print(heard.text, heard.final)

Failures raise the leaf of `headrace.errors` for their gRPC status.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import grpc

from headrace.client.unary import call_unary
from headrace.errors import error_from_code
from headrace.protocol import riva_asr

__all__ = ["Heard", "SpeechClient", "SpeechModel", "SpeechStream", "Word"]

_PATH = "/nvidia.riva.asr.RivaSpeechRecognition/"


@dataclass(frozen=True)
class Word:
    text: str
    start_s: float
    end_s: float
    confidence: float = 0.0


@dataclass(frozen=True)
class Heard:
    """One utterance, so far or in the end. `end_s`: how much of the audio has been heard by
    then."""

    text: str
    final: bool
    end_s: float
    stability: float = 0.0
    confidence: float = 0.0
    words: tuple[Word, ...] = field(default=())


@dataclass(frozen=True)
class SpeechModel:
    name: str
    language: str
    parameters: dict[str, str]


class SpeechClient:
    """Thread-safe, as grpcio's channels are. `metadata` goes with every call ("authorization")."""

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = 600.0,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._metadata = tuple(metadata)
        self._channel = grpc.insecure_channel(
            address,
            options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
        )

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> SpeechClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def _unreachable(self) -> str:
        return f"no server answers at {self._address}; start one with `headrace serve`"

    def models(self, *, metadata: Sequence[tuple[str, str]] = ()) -> list[SpeechModel]:
        """A model that answers files and streams is there once."""
        answer = call_unary(
            self._channel,
            _PATH + "GetRivaSpeechRecognitionConfig",
            riva_asr.RivaSpeechRecognitionConfigRequest(),
            riva_asr.RivaSpeechRecognitionConfigResponse,
            self._timeout_s,
            self._unreachable,
            [*self._metadata, *metadata],
        )
        found: dict[str, SpeechModel] = {}
        for config in answer.model_config:
            parameters = dict(config.parameters)
            language = parameters.get("language_code", "")
            found.setdefault(
                config.model_name, SpeechModel(config.model_name, language, parameters)
            )
        return list(found.values())

    def recognize(
        self,
        audio: bytes,
        *,
        model: str = "",
        language: str = "en-US",
        words: bool = False,
        encoding: str = "",
        rate: int = 0,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> list[Heard]:
        """A whole file: WAV, FLAC or Ogg Opus, which say themselves what they are, or bare samples
        of `encoding` (LINEAR_PCM, ...) at `rate` Hz."""
        request = riva_asr.RecognizeRequest(
            config=_config(model, language, words, encoding, rate), audio=audio
        )
        answer = call_unary(
            self._channel,
            _PATH + "Recognize",
            request,
            riva_asr.RecognizeResponse,
            self._timeout_s,
            self._unreachable,
            [*self._metadata, *metadata],
        )
        return [_heard(result, True) for result in answer.results if result.alternatives]

    def stream(
        self,
        chunks: Iterable[bytes],
        *,
        model: str = "",
        language: str = "en-US",
        words: bool = False,
        interim: bool = True,
        encoding: str = "LINEAR_PCM",
        rate: int = 16000,
        stop_history_ms: int = 0,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> SpeechStream:
        """Results as they come. `chunks` is read on a thread of grpcio's; closing the iterator
        ends the call."""
        config = riva_asr.StreamingRecognitionConfig(
            config=_config(model, language, words, encoding, rate), interim_results=interim
        )
        if stop_history_ms > 0:
            config.config.endpointing_config.stop_history = stop_history_ms

        def requests() -> Iterator[Any]:
            yield riva_asr.StreamingRecognizeRequest(streaming_config=config)
            for chunk in chunks:
                yield riva_asr.StreamingRecognizeRequest(audio_content=chunk)

        call = self._channel.stream_stream(
            _PATH + "StreamingRecognize",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=riva_asr.StreamingRecognizeResponse.FromString,
        )(requests(), metadata=[*self._metadata, *metadata])
        return SpeechStream(call, self._unreachable)


class SpeechStream:
    """A running recognition: iterate once; cancel() from any thread."""

    def __init__(self, call: Any, unreachable: str) -> None:
        self._call = call
        self._unreachable = unreachable

    def __iter__(self) -> Iterator[Heard]:
        try:
            for response in self._call:
                for result in response.results:
                    if result.alternatives:
                        yield _heard(result, result.is_final)
        except grpc.RpcError as error:
            number, _ = error.code().value
            details = error.details() or ""
            if number == 14 and "connect" in details.lower():
                details = self._unreachable
            raise error_from_code(number, details) from None
        finally:
            self._call.cancel()

    def cancel(self) -> None:
        """Ends it at once; who iterates gets CancelledError, unless it had ended."""
        self._call.cancel()


def _config(model: str, language: str, words: bool, encoding: str, rate: int) -> Any:
    return riva_asr.RecognitionConfig(
        encoding=encoding or "ENCODING_UNSPECIFIED",
        sample_rate_hertz=rate,
        language_code=language,
        max_alternatives=1,
        audio_channel_count=1,
        enable_word_time_offsets=words,
        enable_automatic_punctuation=True,
        model=model,
    )


def _heard(result: Any, final: bool) -> Heard:
    best = result.alternatives[0]
    return Heard(
        best.transcript.strip(),
        final,
        result.audio_processed,
        getattr(result, "stability", 0.0),
        best.confidence,
        tuple(
            Word(word.word, word.start_time / 1000, word.end_time / 1000, word.confidence)
            for word in best.words
        ),
    )
