"""The HTTP port's speech routes, with a service of Riva's protocol behind them."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from riva_peer import HALF_SECOND, WORDS, RivaPeer

from headrace.monitoring.http import MonitoringServer
from headrace.speech_web import SpeechRoutes, transcriptions

BOUNDARY = "x-boundary"


class Site(NamedTuple):
    port: int
    peer: RivaPeer

    def get(self, path: str, **headers: str) -> Any:
        return self.ask(urllib.request.Request(self.url(path), headers=headers))

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def post(self, fields: dict[str, bytes | str], **headers: str) -> tuple[int, str, bytes]:
        body = b""
        for name, value in fields.items():
            data = value.encode() if isinstance(value, str) else value
            name += '"; filename="a.wav' if name == "file" else ""
            body += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"'.encode()
            body += b"\r\n\r\n" + data + b"\r\n"
        body += f"--{BOUNDARY}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}", **headers}
        url = self.url("/v1/audio/transcriptions")
        return self.ask(urllib.request.Request(url, body, headers))

    @staticmethod
    def ask(request: urllib.request.Request) -> tuple[int, str, bytes]:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.headers["Content-Type"], answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers.get("Content-Type", ""), error.read()


@pytest.fixture
def site() -> Iterator[Site]:
    with RivaPeer() as peer:
        speech = SpeechRoutes(peer.address)
        server = MonitoringServer("127.0.0.1", 0, dashboard=False, routes=speech.routes)
        server.start(None, [1], "test")  # type: ignore[arg-type]  # nobody asks for metrics
        try:
            yield Site(server.port, peer)
        finally:
            server.stop()
            speech.close()


SAID = " ".join(WORDS)


@pytest.mark.parametrize(
    ("form", "kind", "expected"),
    [
        ("", "application/json", {"text": SAID}),
        ("json", "application/json", {"text": SAID}),
        ("text", "text/plain; charset=utf-8", SAID + "\n"),
        (
            "srt",
            "text/plain; charset=utf-8",
            "1\n00:00:00,000 --> 00:00:01,900\nnever mind the weather.\n\n"
            "2\n00:00:02,000 --> 00:00:03,900\nwe sail at noon\n\n",
        ),
        (
            "vtt",
            "text/vtt; charset=utf-8",
            "WEBVTT\n\n00:00:00.000 --> 00:00:01.900\nnever mind the weather.\n\n"
            "00:00:02.000 --> 00:00:03.900\nwe sail at noon\n\n",
        ),
    ],
)
def test_formats(site: Site, form: str, kind: str, expected: Any) -> None:
    fields = {"file": b"RIFF\0\r\n", "model": "whisper-1"}
    if form:
        fields["response_format"] = form
    status, found, body = site.post(fields, Authorization="Bearer k")
    assert (status, found) == (200, kind), body
    assert (json.loads(body) if "json" in kind else body.decode()) == expected
    assert site.peer.metadata[-1]["authorization"] == "Bearer k"
    assert site.peer.configs[-1].model == "tiny"


def test_verbose(site: Site) -> None:
    fields = {
        "file": b"RIFF",
        "model": "tiny",
        "response_format": "verbose_json",
        "timestamp_granularities[]": "word",
    }
    _, _, body = site.post(fields)
    document = json.loads(body)
    assert document["duration"] == 4.0
    assert document["segments"][1] == {"id": 1, "start": 2.0, "end": 3.9, "text": "we sail at noon"}
    assert document["words"][0] == {"word": "never", "start": 0.0, "end": 0.4}


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({"model": "tiny"}, 400, "'file'"),
        ({"file": b"", "model": "tiny"}, 400, "'file'"),
        ({"file": b"RIFF", "model": "gone"}, 404, "there are: tiny"),
        ({"file": b"RIFF", "response_format": "xml"}, 400, "response_format"),
        ({"file": b"ID3", "model": "tiny"}, 400, "neither WAV"),
        ({"file": b"RIFF", "language": b"\xff"}, 400, "UTF-8"),
    ],
)
def test_what_is_wrong(site: Site, fields: dict[str, Any], status: int, said: str) -> None:
    found, kind, body = site.post(fields)
    assert (found, kind) == (status, "application/json")
    error = json.loads(body)["error"]
    assert said in error["message"]
    assert error["type"] == "invalid_request_error"
    assert error["code"] == ("model_not_found" if status == 404 else None)


def test_keys_and_origins(site: Site) -> None:
    status, _, body = site.get("/v1/models", Authorization="Bearer wrong")
    assert (status, json.loads(body)["error"]["message"]) == (401, "no such key")
    status, _, body = site.get("/v1/models")
    assert [model["id"] for model in json.loads(body)["data"]] == ["tiny"]
    fields = {"file": b"RIFF", "model": "tiny"}
    assert site.post(fields, Origin="http://elsewhere.example")[0] == 403
    assert site.post(fields, Origin=f"http://127.0.0.1:{site.port}")[0] == 200


def test_sizes(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcriptions, "MAX_BYTES", 1000)
    status, _, body = site.post({"file": bytes(2000), "model": "tiny"})
    assert status == 413
    assert "1000 at most" in json.loads(body)["error"]["message"]
    headers = {"Content-Length": "many", "Content-Type": "multipart/form-data; boundary=x"}
    request = urllib.request.Request(site.url("/v1/audio/transcriptions"), b"x", headers)
    assert site.ask(request)[0] == 400


def test_other_paths(site: Site) -> None:
    assert site.ask(urllib.request.Request(site.url("/v1/other"), b"x"))[0] == 501
    assert site.get("/v1/audio/transcriptions")[0] == 404


def test_the_page(site: Site) -> None:
    with urllib.request.urlopen(site.url("/speech"), timeout=60) as answer:
        page = answer.read().decode()
        policy = answer.headers["Content-Security-Policy"]
    assert page.startswith("<!doctype html>")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "https://" not in page, "nothing comes from elsewhere"
    assert "innerHTML" not in page, "what was said is text, never markup"
    assert site.get("/speech/worklet.js")[1].startswith("text/javascript")


@pytest.fixture
def websocket(site: Site) -> Iterator[Any]:
    pytest.importorskip("wsproto")
    library = pytest.importorskip("websocket", reason="needs websocket-client")
    origin = f"http://127.0.0.1:{site.port}"
    address = f"ws://127.0.0.1:{site.port}/speech/stream"
    socket = library.create_connection(address, timeout=60, origin=origin)
    yield socket
    socket.shutdown()  # close() leaves the socket of a connection that the other side ended


def test_words_come_as_samples_go(site: Site, websocket: Any) -> None:
    websocket.send(json.dumps({"rate": 48000, "model": "tiny", "key": "k"}))
    for n in range(3):
        websocket.send_binary(bytes(HALF_SECOND))
        heard = json.loads(websocket.recv())
        assert heard == {
            "text": " ".join(WORDS[: n + 1]),
            "final": False,
            "stability": 0.5,
            "end_s": (n + 1) / 2,
        }
    websocket.ping("still there")
    websocket.send('{"end": true}')
    heard = json.loads(websocket.recv())
    assert (heard["text"], heard["final"]) == (" ".join(WORDS[:3]), True)
    assert websocket.recv() == ""  # closed
    assert site.peer.configs[-1].sample_rate_hertz == 48000
    assert site.peer.metadata[-1]["authorization"] == "Bearer k"


def test_a_page_that_vanishes_frees_its_stream(site: Site, websocket: Any) -> None:
    websocket.send("{}")
    websocket.send_binary(bytes(HALF_SECOND))
    assert json.loads(websocket.recv())["text"] == WORDS[0]
    websocket.sock.close()
    assert site.peer.ended.wait(60)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("[", "JSON object"),
        ("3", "JSON object"),
        ('{"rate": 5}', "'rate'"),
        (b"\0\0", "first message"),
        ('{"model": "gone"}', "no model 'gone'"),
    ],
)
def test_what_a_page_may_not_say(websocket: Any, message: str | bytes, said: str) -> None:
    websocket.send(message) if isinstance(message, str) else websocket.send_binary(message)
    assert said in json.loads(websocket.recv())["error"]
    assert websocket.recv() == ""


def test_no_websocket(site: Site) -> None:
    assert site.get("/speech/stream")[0] == 400
    upgrade = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "eA==",
        "Sec-WebSocket-Version": "13",
    }
    assert site.get("/speech/stream", Origin="http://elsewhere.example", **upgrade)[0] == 403
    assert site.get("/speech/stream", **{**upgrade, "Sec-WebSocket-Version": "8"})[0] == 400
