"""POST /v1/audio/transcriptions, as OpenAI's API has it: what its clients send and expect."""

from __future__ import annotations

import json
from collections.abc import Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from headrace.client.speech import Heard, SpeechClient
from headrace.client.transcript import cues_of, render_srt, render_vtt, text_of
from headrace.errors import HeadraceError, InvalidArgumentError, NotFoundError
from headrace.logs import get_logger
from headrace.speech_web.multipart import Part, parse_form
from headrace.speech_web.routes import check_origin, credential_of, http_status_of

if TYPE_CHECKING:
    import threading

    from headrace.speech_web.routes import Exchange

__all__ = ["MAX_BYTES", "error_body", "render", "transcribe"]

_log = get_logger("speech-web")

MAX_BYTES = 25 << 20  # of a request, as OpenAI's
_FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
_DEFAULT_MODEL = "whisper-1"  # what clients ask for when nobody told them otherwise


def error_body(error: HeadraceError, code: str | None = None) -> bytes:
    status = http_status_of(error)
    kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
    kind = "rate_limit_error" if status == 429 else kind
    document = {"message": error.details, "type": kind, "param": None, "code": code}
    return json.dumps({"error": document}).encode()


def transcribe(exchange: Exchange, client: SpeechClient, slots: threading.BoundedSemaphore) -> None:
    """`slots`: how many files at a time."""
    headers = {"Content-Type": "application/json"}
    try:
        check_origin(exchange.headers)
        length = _length(exchange)
        if length > MAX_BYTES:
            message = f"the request has {length} bytes, {MAX_BYTES} at most"
            _refuse(exchange, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, InvalidArgumentError(message))
            return
        if not slots.acquire(blocking=False):
            error = InvalidArgumentError("as many files as can be are being transcribed; try again")
            _refuse(exchange, HTTPStatus.TOO_MANY_REQUESTS, error, {"Retry-After": "1"})
            return
        try:
            kind, body = _answer(exchange, client, length)
        finally:
            slots.release()
    except HeadraceError as error:
        code = "model_not_found" if isinstance(error, NotFoundError) else None
        exchange.close_connection = True  # some of the body may not have been read
        exchange.send(http_status_of(error), headers, error_body(error, code))
        return
    exchange.send(HTTPStatus.OK, {"Content-Type": kind}, body)


def _refuse(
    exchange: Exchange,
    status: HTTPStatus,
    error: HeadraceError,
    more: dict[str, str] | None = None,
) -> None:
    exchange.close_connection = True
    kind = "rate_limit_error" if status == 429 else "invalid_request_error"
    document = {"message": error.details, "type": kind, "param": None, "code": None}
    headers = {"Content-Type": "application/json", **(more or {})}
    exchange.send(status, headers, json.dumps({"error": document}).encode())


def _length(exchange: Exchange) -> int:
    text = exchange.headers.get("Content-Length", "")
    if not text.isascii() or not text.isdigit():
        raise InvalidArgumentError("the request needs a Content-Length")
    return int(text[:20])


def _answer(exchange: Exchange, client: SpeechClient, length: int) -> tuple[str, bytes]:
    body = exchange.rfile.read(length)
    if len(body) < length:
        raise InvalidArgumentError("the request's body ended early")
    fields: dict[str, list[Part]] = {}
    for part in parse_form(exchange.headers.get("Content-Type", ""), body):
        fields.setdefault(part.name.removesuffix("[]"), []).append(part)
    if "file" not in fields or not fields["file"][0].data:
        raise InvalidArgumentError("field 'file' is missing or empty")

    def text(name: str, default: str) -> str:
        return fields[name][0].text if name in fields else default

    form = text("response_format", "json")
    if form not in _FORMATS:
        raise InvalidArgumentError(
            f"response_format is '{form[:40]}'; say one of {', '.join(_FORMATS)}"
        )
    granularities = {part.text for part in fields.get("timestamp_granularities", [])}
    credential = credential_of(exchange.headers)
    model = _model(client, text("model", _DEFAULT_MODEL), credential)
    finals = client.recognize(
        fields["file"][0].data,
        model=model,
        language=_language(text("language", "en")),
        words=form in ("srt", "vtt", "verbose_json"),
        metadata=credential,
    )
    return render(finals, form, words="word" in granularities, language=text("language", "en"))


def _model(client: SpeechClient, asked: str, credential: Sequence[tuple[str, str]]) -> str:
    names = [model.name for model in client.models(metadata=credential)]
    if asked in names:
        return asked
    if asked == _DEFAULT_MODEL and names:
        return names[0]
    raise NotFoundError(
        f"there is no speech model '{asked[:100]}'; there are: {', '.join(names) or 'none'}"
    )


def _language(text: str) -> str:
    """Riva's codes have a region."""
    return "en-US" if text == "en" else text


def render(finals: Sequence[Heard], form: str, *, words: bool, language: str) -> tuple[str, bytes]:
    """(content type, body)."""
    plain = "text/plain; charset=utf-8"
    if form == "text":
        return plain, (text_of(finals) + "\n").encode()
    if form == "srt":
        return plain, render_srt(cues_of(finals)).encode()
    if form == "vtt":
        return "text/vtt; charset=utf-8", render_vtt(cues_of(finals)).encode()
    document: dict[str, Any] = {"text": text_of(finals)}
    if form == "verbose_json":
        segments = [{"id": n, **cue.as_json()} for n, cue in enumerate(cues_of(finals))]
        duration = max((heard.end_s for heard in finals), default=0.0)
        document = {
            "task": "transcribe",
            "language": language,
            "duration": round(duration, 3),
            **document,
            "segments": segments,
        }
        if words:
            document["words"] = [
                {"word": word.text, "start": word.start_s, "end": word.end_s}
                for heard in finals
                for word in heard.words
            ]
    return "application/json", json.dumps(document, ensure_ascii=False).encode()
