"""The speech routes of a whole server: they reach its own gRPC service."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from harness import Server

Start = Callable[..., Server]


def get(server: Server, path: str, **headers: str) -> tuple[int, bytes]:
    url = f"http://127.0.0.1:{server.metrics_port}{path}"
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=60
        ) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_a_server_without_speech_models_says_so(start: Start, repository: Path) -> None:
    server = start()
    status, page = get(server, "/speech")
    assert (status, page[:15]) == (200, b"<!doctype html>")
    status, body = get(server, "/v1/models")
    assert (status, json.loads(body)) == (200, {"object": "list", "data": []})


def test_keys_are_the_servers(start: Start, repository: Path, tmp_path: Path) -> None:
    access = tmp_path / "access.yaml"
    access.write_text("anonymous: [probe]\n")
    server = start("--auth-file", str(access))
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        status, body = get(server, "/v1/models", **headers)
        assert status in (401, 403)
        assert json.loads(body)["error"]["type"] == "invalid_request_error"
