"""What the HTTP port answers about speech.

    POST /v1/audio/transcriptions   as OpenAI's API: multipart, a file in, text out
    GET  /v1/models                 speech models, as OpenAI lists models
    GET  /speech                    the page (speech.html); /speech/worklet.js is its microphone
    GET  /speech/stream             WebSocket: samples in, words out

All of it goes to the server's own gRPC service as any client's calls do, with the credential that
the HTTP request brought, so that rights, quotas and limits are the same. Pages of other origins
are refused.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from headrace.errors import HeadraceError, PermissionDeniedError
from headrace.logs import get_logger

if TYPE_CHECKING:
    import socket
    from email.message import Message
    from typing import BinaryIO

    from headrace.client.speech import SpeechClient

__all__ = ["Exchange", "SpeechRoutes", "credential_of", "http_status_of"]

_log = get_logger("speech-web")

_FILES_AT_A_TIME = 8  # whose bytes are held
_FOLDER = Path(__file__).parent
_JSON = {"Content-Type": "application/json"}

_STATUS = {
    3: HTTPStatus.BAD_REQUEST,
    4: HTTPStatus.GATEWAY_TIMEOUT,
    5: HTTPStatus.NOT_FOUND,
    7: HTTPStatus.FORBIDDEN,
    8: HTTPStatus.TOO_MANY_REQUESTS,
    9: HTTPStatus.BAD_REQUEST,
    11: HTTPStatus.BAD_REQUEST,
    12: HTTPStatus.NOT_IMPLEMENTED,
    14: HTTPStatus.SERVICE_UNAVAILABLE,
    16: HTTPStatus.UNAUTHORIZED,
}


class Exchange(Protocol):
    """One HTTP request and its answer (monitoring/http.py's handler)."""

    headers: Message
    rfile: BinaryIO
    wfile: BinaryIO
    path: str
    close_connection: bool
    connection: socket.socket

    def send(self, status: HTTPStatus, headers: Mapping[str, str], body: bytes) -> None: ...


Route = Callable[[Exchange], None]


def http_status_of(error: HeadraceError) -> HTTPStatus:
    return _STATUS.get(error.code, HTTPStatus.INTERNAL_SERVER_ERROR)


def credential_of(headers: Message) -> list[tuple[str, str]]:
    """The request's API key, as gRPC metadata."""
    found = [(name, headers.get(name)) for name in ("authorization", "x-api-key")]
    return [(name, value) for name, value in found if value]


def check_origin(headers: Message) -> None:
    """A browser says which page asks: another site's may not. PermissionDeniedError."""
    origin = headers.get("Origin")
    if origin and origin.partition("://")[2] != headers.get("Host"):
        raise PermissionDeniedError(f"pages of {origin[:200]} may not use this server")


class SpeechRoutes:
    """Any thread. `address`: the server's gRPC service, called at the first request."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(_FILES_AT_A_TIME)
        self._client: SpeechClient | None = None  # guarded by _lock
        self._page: tuple[dict[str, str], bytes] | None = None
        self.routes: Mapping[tuple[str, str], Route] = {
            ("GET", "/speech"): self._get_page,
            ("GET", "/speech/worklet.js"): self._get_worklet,
            ("GET", "/speech/stream"): self._stream,
            ("GET", "/v1/models"): self._get_models,
            ("POST", "/v1/audio/transcriptions"): self._transcribe,
        }

    def close(self) -> None:
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    def client(self) -> SpeechClient:
        from headrace.client.speech import SpeechClient

        with self._lock:
            if self._client is None:
                self._client = SpeechClient(self._address)
            return self._client

    def _get_page(self, exchange: Exchange) -> None:
        if self._page is None:
            from headrace.speech_web.page import page_of

            self._page = page_of(_FOLDER / "speech.html")
        exchange.send(HTTPStatus.OK, *self._page)

    def _get_worklet(self, exchange: Exchange) -> None:
        headers = {"Content-Type": "text/javascript; charset=utf-8"}
        exchange.send(HTTPStatus.OK, headers, (_FOLDER / "worklet.js").read_bytes())

    def _get_models(self, exchange: Exchange) -> None:
        from headrace.speech_web.transcriptions import error_body

        try:
            models = self.client().models(metadata=credential_of(exchange.headers))
        except HeadraceError as error:
            exchange.send(http_status_of(error), _JSON, error_body(error))
            return
        data = [{"id": model.name, "object": "model", "owned_by": "headrace"} for model in models]
        body = json.dumps({"object": "list", "data": data}).encode()
        exchange.send(HTTPStatus.OK, _JSON, body)

    def _transcribe(self, exchange: Exchange) -> None:
        from headrace.speech_web.transcriptions import transcribe

        transcribe(exchange, self.client(), self._slots)

    def _stream(self, exchange: Exchange) -> None:
        from headrace.speech_web.stream import stream

        stream(exchange, self.client())
