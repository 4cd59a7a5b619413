"""GET /speech/stream: a WebSocket (RFC 6455, framed by wsproto).

The first message is JSON: {"rate": 16000, "model": "", "language": "en-US", "key": ""}. Then binary
ones: 16-bit samples, little-endian, mono. {"end": true} says that no more will come. Answers are
JSON: {"text", "final", "stability", "end_s"}, and {"error"} before an end that was not asked for.

Two threads a connection: this one reads, the other writes results. What the recogniser has not
taken stays in a queue of a few seconds, then in the client's socket.
"""

from __future__ import annotations

import base64
import hashlib
import json
import queue
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from headrace.client.speech import SpeechClient, SpeechStream
from headrace.errors import CancelledError, HeadraceError, InvalidArgumentError
from headrace.logs import get_logger
from headrace.speech_web.routes import check_origin, credential_of, http_status_of

if TYPE_CHECKING:
    from headrace.speech_web.routes import Exchange

__all__ = ["stream"]

_log = get_logger("speech-web")

_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 1.3
_QUEUED = 64  # messages of 100 ms
_LARGEST = 1 << 20  # bytes of a message
_SILENCE_S = 30.0  # the page sends ten messages a second


def stream(exchange: Exchange, client: SpeechClient) -> None:
    exchange.close_connection = True
    try:
        check_origin(exchange.headers)
        accept = _accept(exchange)
    except HeadraceError as error:
        text = {"Content-Type": "text/plain; charset=utf-8"}
        exchange.send(http_status_of(error), text, f"{error.details}\n".encode())
        return
    try:
        from wsproto.connection import Connection, ConnectionType
    except ImportError:
        text = {"Content-Type": "text/plain; charset=utf-8"}
        body = b"WebSockets need a package: pip install 'headrace[speech]', or wsproto\n"
        exchange.send(HTTPStatus.NOT_IMPLEMENTED, text, body)
        return
    exchange.wfile.write(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )
    exchange.wfile.flush()
    connection = exchange.connection
    connection.settimeout(_SILENCE_S)
    session = _Session(connection, Connection(ConnectionType.SERVER), client)
    session.run(credential_of(exchange.headers))


def _accept(exchange: Exchange) -> bytes:
    headers = exchange.headers
    key = headers.get("Sec-WebSocket-Key", "")
    if "websocket" not in headers.get("Upgrade", "").lower() or not key:
        raise InvalidArgumentError("this is a WebSocket; the page at /speech uses it")
    if headers.get("Sec-WebSocket-Version") != "13":
        raise InvalidArgumentError("Sec-WebSocket-Version 13 is spoken here")
    return base64.b64encode(hashlib.sha1(f"{key}{_GUID}".encode()).digest())


class _Session:
    def __init__(self, connection: socket.socket, frames: Any, client: SpeechClient) -> None:
        self._connection = connection
        self._frames = frames
        self._client = client
        self._lock = threading.Lock()  # of _frames' writing side and the socket
        self._audio: queue.Queue[bytes | None] = queue.Queue(_QUEUED)
        self._call: SpeechStream | None = None
        self._over = threading.Event()
        self._message: list[bytes | str] = []  # pieces of what is being received
        self._size = 0

    def run(self, credential: list[tuple[str, str]]) -> None:
        writer: threading.Thread | None = None
        try:
            for message in self._messages():
                if isinstance(message, bytes):
                    if self._call is None:
                        raise InvalidArgumentError("the first message must be JSON")
                    self._put(message)
                    continue
                said = _document(message)
                if said.get("end"):
                    self._put(None)
                elif self._call is None:
                    self._call = self._open(said, credential)
                    writer = threading.Thread(target=self._write, name="speech-web", daemon=True)
                    writer.start()
        except HeadraceError as error:
            self._fail(error)
        except OSError as error:
            _log.debug("a speech page left: %s", error)
        finally:
            self._over.set()
            if self._call is not None:
                self._call.cancel()
            with suppress(queue.Full):
                self._audio.put_nowait(None)
            if writer is not None:
                writer.join()

    def _open(self, said: dict[str, Any], credential: list[tuple[str, str]]) -> SpeechStream:
        rate, key = said.get("rate", 16000), said.get("key", "")
        if not isinstance(rate, int) or not 8000 <= rate <= 192000:
            raise InvalidArgumentError("'rate' must be 8000 to 192000 Hz")
        if key and isinstance(key, str):
            credential = [("authorization", f"Bearer {key}")]
        return self._client.stream(
            self._chunks(),
            model=str(said.get("model", "")),
            language=str(said.get("language") or "en-US"),
            rate=rate,
            metadata=credential,
        )

    def _put(self, piece: bytes | None) -> None:
        """Waits while the recogniser is behind: then the browser's buffers fill, not ours."""
        while not self._over.is_set():
            with suppress(queue.Full):
                self._audio.put(piece, timeout=0.5)
                return

    def _chunks(self) -> Iterator[bytes]:
        while (piece := self._audio.get()) is not None:
            if len(piece):
                yield piece

    def _messages(self) -> Iterator[bytes | str]:
        from wsproto import events

        while True:
            data = self._connection.recv(1 << 16)
            self._frames.receive_data(data or None)
            for event in self._frames.events():
                if isinstance(event, events.CloseConnection):
                    with suppress(OSError):
                        self._send(event.response())
                    return
                if isinstance(event, events.Ping):
                    self._send(event.response())
                elif isinstance(event, events.Message):
                    whole = self._gather(event)
                    if whole is not None:
                        yield whole
            if not data:
                return

    def _gather(self, event: Any) -> bytes | str | None:
        self._message.append(bytes(event.data) if not isinstance(event.data, str) else event.data)
        self._size += len(event.data)
        if self._size > _LARGEST:
            raise InvalidArgumentError(f"a message has more than {_LARGEST} bytes")
        if not event.message_finished:
            return None
        pieces, self._message, self._size = self._message, [], 0
        if isinstance(pieces[0], str):
            return "".join(piece for piece in pieces if isinstance(piece, str))
        return b"".join(piece for piece in pieces if isinstance(piece, bytes))

    def _write(self) -> None:
        """The other thread: results to the page."""
        assert self._call is not None
        try:
            for heard in self._call:
                self._say(
                    {
                        "text": heard.text,
                        "final": heard.final,
                        "stability": round(heard.stability, 3),
                        "end_s": round(heard.end_s, 3),
                    }
                )
            self._close(1000, "")
        except CancelledError:
            pass
        except HeadraceError as error:
            self._fail(error)
        except OSError as error:
            _log.debug("a speech page left: %s", error)
        finally:
            self._over.set()

    def _fail(self, error: HeadraceError) -> None:
        with suppress(OSError):
            self._say({"error": error.details, "status": error.status})
            self._close(1011, error.status)

    def _say(self, document: dict[str, Any]) -> None:
        from wsproto.events import TextMessage

        self._send(TextMessage(json.dumps(document, ensure_ascii=False)))

    def _close(self, code: int, reason: str) -> None:
        from wsproto.events import CloseConnection

        self._send(CloseConnection(code, reason))

    def _send(self, event: Any) -> None:
        from wsproto.utilities import LocalProtocolError

        with self._lock, suppress(LocalProtocolError):  # it was closed already
            self._connection.sendall(self._frames.send(event))


def _document(text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise InvalidArgumentError("a text message must be a JSON object")
    return document
