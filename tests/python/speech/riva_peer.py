"""A small service of Riva's protocol by grpcio: the other side for tests of clients. It "hears"
one word a half second of 16 kHz samples."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent import futures
from types import TracebackType
from typing import Any

import grpc

from headrace.protocol import riva_asr

WORDS = ["never", "mind", "the", "weather.", "we", "sail", "at", "noon"]
HALF_SECOND = 16000  # bytes


class RivaPeer:
    def __init__(self) -> None:
        self.configs: list[Any] = []
        self.metadata: list[dict[str, str]] = []
        self.heard = 0  # bytes
        self.ended = threading.Event()  # a stream, however
        self.cancelled = threading.Event()
        self.models = ["tiny"]
        self._server = grpc.server(futures.ThreadPoolExecutor(8))

        def unary(function: Any, request: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(
                function, request.FromString, lambda message: message.SerializeToString()
            )

        handlers = {
            "Recognize": unary(self._recognize, riva_asr.RecognizeRequest),
            "GetRivaSpeechRecognitionConfig": unary(
                self._config, riva_asr.RivaSpeechRecognitionConfigRequest
            ),
            "StreamingRecognize": grpc.stream_stream_rpc_method_handler(
                self._stream,
                riva_asr.StreamingRecognizeRequest.FromString,
                lambda message: message.SerializeToString(),
            ),
        }
        service = "nvidia.riva.asr.RivaSpeechRecognition"
        generic = grpc.method_handlers_generic_handler(service, handlers)
        self._server.add_generic_rpc_handlers((generic,))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> RivaPeer:
        self._server.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.stop(None).wait()

    def _note(self, config: Any, context: Any) -> None:
        self.configs.append(config)
        self.metadata.append(dict(context.invocation_metadata()))
        if config.model not in ("", *self.models):
            context.abort(grpc.StatusCode.NOT_FOUND, f"no model '{config.model}'")

    def _config(self, request: Any, context: Any) -> Any:
        metadata = dict(context.invocation_metadata())
        if metadata.get("authorization") == "Bearer wrong":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no such key")
        answer = riva_asr.RivaSpeechRecognitionConfigResponse()
        for name in self.models:
            for kind in ("online", "offline"):
                config = answer.model_config.add(model_name=name)
                config.parameters["type"] = kind
                config.parameters["language_code"] = "en-US"
        return answer

    def _recognize(self, request: Any, context: Any) -> Any:
        self._note(request.config, context)
        if request.audio.startswith(b"ID3"):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "neither WAV nor FLAC nor Ogg Opus")
        answer = riva_asr.RecognizeResponse()
        for words, start in ((WORDS[:4], 0), (WORDS[4:], 4)):
            result = answer.results.add(audio_processed=(start + len(words)) / 2)
            self._fill(result.alternatives.add(), words, start, request.config)
        return answer

    def _fill(self, alternative: Any, words: list[str], start: int, config: Any) -> None:
        alternative.transcript = " ".join(words) + " "
        if config.enable_word_time_offsets:
            for n, word in enumerate(words, start):
                alternative.words.add(word=word, start_time=n * 500, end_time=n * 500 + 400)

    def _stream(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        def ended() -> None:
            self.ended.set()

        context.add_callback(ended)
        config = next(requests).streaming_config
        self._note(config.config, context)
        said = 0
        try:
            for request in requests:
                self.heard += len(request.audio_content)
                while said < min(self.heard // HALF_SECOND, len(WORDS)):
                    said += 1
                    if config.interim_results:
                        yield self._response(WORDS[:said], False, config.config)
        except grpc.RpcError:
            self.cancelled.set()
            return
        yield self._response(WORDS[:said], True, config.config)

    def _response(self, words: list[str], final: bool, config: Any) -> Any:
        answer = riva_asr.StreamingRecognizeResponse()
        result = answer.results.add(
            is_final=final, stability=0.0 if final else 0.5, audio_processed=len(words) / 2
        )
        alternative = result.alternatives.add(transcript=" ".join(words) + " ")
        if final:
            self._fill(alternative, words, 0, config)
        return answer
