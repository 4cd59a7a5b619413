"""A headless Chromium, told what to do over its DevTools protocol."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest


def find_chromium() -> str:
    """Skips the test where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    return found


class Chromium:
    """One page in one browser. `with Chromium() as page: page.open(url)`."""

    def __init__(
        self,
        *,
        width: int = 1400,
        height: int = 1000,
        dark: bool = False,
        arguments: Sequence[str] = (),
    ) -> None:
        websocket = pytest.importorskip("websocket", reason="needs pip install websocket-client")
        program = find_chromium()
        self._size = (width, height)
        self._dark = dark
        self._connect = websocket.create_connection
        self._folder = tempfile.mkdtemp(prefix="headrace-chromium-")
        self._process = subprocess.Popen(
            [
                program,
                "--headless=new",
                "--no-sandbox",  # tests run as root
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--disable-background-networking",
                "--no-first-run",
                "--remote-debugging-port=0",
                "--remote-allow-origins=*",
                f"--user-data-dir={self._folder}",
                *arguments,
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._number = 0
        self.console: list[str] = []  # errors and warnings

    def __enter__(self) -> Chromium:
        try:
            self._socket = self._connect(self._page_address(), timeout=60)
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.send(f"{domain}.enable")
            self.resize(*self._size)
            scheme = "dark" if self._dark else "light"
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            self.send("Emulation.setEmulatedMedia", features=features)
        except BaseException:
            self._end()
            raise
        return self

    def _page_address(self) -> str:
        import urllib.request

        port_file = Path(self._folder) / "DevToolsActivePort"
        end = time.monotonic() + 90
        while time.monotonic() < end:
            assert self._process.poll() is None, "Chromium did not start"
            lines = port_file.read_text().split("\n") if port_file.exists() else []
            if len(lines) >= 2:
                url = f"http://127.0.0.1:{lines[0]}/json/list"
                with urllib.request.urlopen(url, timeout=30) as answer:
                    pages = [t for t in json.load(answer) if t["type"] == "page"]
                if pages:
                    return str(pages[0]["webSocketDebuggerUrl"])
            time.sleep(0.05)
        raise AssertionError("Chromium opened no page")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()
        self._end()

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)  # its children may still write

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == self._number:
                assert "error" not in message, message["error"]
                return dict(message["result"])
            self._note(message)

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event["method"] == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.console.append(params["entry"]["text"])
        elif event["method"] == "Runtime.exceptionThrown":
            self.console.append(str(params["exceptionDetails"].get("exception", params)))

    def open(self, url: str) -> None:
        answer = self.send("Page.navigate", url=url)
        assert not answer.get("errorText"), f"{url}: {answer['errorText']}"
        self.wait_for(f"document.readyState === 'complete' && location.href === {json.dumps(url)}")

    def evaluate(self, expression: str) -> Any:
        answer = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def text(self, selector: str) -> str:
        return str(
            self.evaluate(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")
        )

    def wait_for(self, expression: str, within_s: float = 60) -> Any:
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            value = self.evaluate(expression)
            if value:
                return value
            time.sleep(0.05)
        raise AssertionError(f"never true: {expression}; console: {self.console}")

    def resize(self, width: int, height: int) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def screenshot(self, path: Path) -> None:
        answer = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))


def number(text: str) -> float:
    """ "1,234" of a page."""
    return float(re.sub(r"[^0-9.]", "", text))
