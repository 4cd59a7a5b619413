"""The monitoring port: paths, headers, slow clients, a crowd."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from headrace.app import Server
from headrace.config import ServerConfig
from headrace.monitoring import http


def serve(**options: Any) -> Server:
    return Server(
        ServerConfig(host="127.0.0.1", grpc_port=0, metrics_port=0, cache_dir="", **options)
    )


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as server:
        yield server


def get(server: Server, path: str, **headers: str) -> Any:
    url = f"http://127.0.0.1:{server.metrics_port}{path}"
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60)


def test_the_page_allows_only_itself(server) -> None:
    for path in ("/", "/dashboard", "/dashboard?x=1"):
        with get(server, path) as answer:
            page = answer.read().decode()
            headers = answer.headers
        assert page.startswith("<!doctype html>")
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "Python" not in headers["Server"]
        assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in page, "nothing comes from elsewhere"
        assert "innerHTML" not in page, "names and reasons are text, never markup"


def test_every_answer_has_the_strict_headers(server) -> None:
    for path in ("/metrics", "/api/state", "/"):
        with get(server, path) as answer:
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
            assert answer.headers["Cache-Control"] == "no-store"
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(server, "/../../etc/passwd")
    assert caught.value.code == 404
    assert caught.value.headers["X-Frame-Options"] == "DENY"
    caught.value.close()


def test_answers_are_compressed_for_who_takes_it(server) -> None:
    with (
        get(server, "/api/state") as plain,
        get(server, "/api/state", **{"Accept-Encoding": "gzip"}) as packed,
    ):
        assert packed.headers["Content-Encoding"] == "gzip"
        assert json.loads(gzip.decompress(packed.read())).keys() == json.loads(plain.read()).keys()


def test_no_dashboard() -> None:
    with serve(dashboard=False) as server:
        for path in ("/", "/dashboard", "/api/state"):
            with pytest.raises(urllib.error.HTTPError) as caught:
                get(server, path)
            assert caught.value.code == 404
            caught.value.close()
        with get(server, "/metrics") as answer:
            assert b"headrace_ready" in answer.read()


def test_other_methods_are_refused(server) -> None:
    url = f"http://127.0.0.1:{server.metrics_port}/api/state"
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(url, data=b"{}"), timeout=60)
    assert caught.value.code == 501
    caught.value.close()


def test_clients_that_say_nothing_keep_nobody_out(server, monkeypatch) -> None:
    monkeypatch.setattr(http, "MAX_CONNECTIONS", 4)
    before = threading.active_count()
    silent = [socket.create_connection(("127.0.0.1", server.metrics_port)) for _ in range(20)]
    try:
        for _ in range(3):
            with get(server, "/metrics") as answer:
                assert answer.status == 200
        while threading.active_count() > before + 10:
            time.sleep(0.01)  # the ended ones are on their way out; the test's timeout bounds this
        silent[0].settimeout(60)
        assert silent[0].recv(1) == b"", "the oldest were ended"
    finally:
        for connection in silent:
            connection.close()


def test_stopping_does_not_wait_for_them() -> None:
    server = serve()
    server.start()
    with socket.create_connection(("127.0.0.1", server.metrics_port)) as silent:
        silent.sendall(b"GET /metr")
        server.stop()
        silent.settimeout(60)
        with suppress(ConnectionResetError):  # when what it sent was never read
            assert silent.recv(1) == b""


def test_a_server_without_metrics_says_so_and_stops(monkeypatch, caplog) -> None:
    def broken(*_: Any) -> None:
        raise ModuleNotFoundError("no such library")

    monkeypatch.setattr(http, "make_registry", broken)
    with serve():
        pass  # the stop waits for nothing
    assert "no metrics" in caplog.text
    assert "no such library" in caplog.text
