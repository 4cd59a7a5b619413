"""The page at /speech in a real Chromium whose microphone is a WAV file: samples leave the browser,
words come back. What hears them here is a service that counts samples (riva_peer.py)."""

from __future__ import annotations

import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from chromium import Chromium
from riva_peer import WORDS, RivaPeer

from headrace.monitoring.http import MonitoringServer
from headrace.speech_web import SpeechRoutes

pytest.importorskip("wsproto")


@pytest.fixture
def tone(tmp_path: Path) -> Path:
    path = tmp_path / "tone.wav"
    samples = 9000 * np.sin(2 * np.pi * 300 * np.arange(5 * 48000) / 48000)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(48000)
        file.writeframes(samples.astype("<i2").tobytes())
    return path


@pytest.fixture
def page(tone: Path) -> Iterator[Chromium]:
    arguments = [
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={tone}",
    ]
    with Chromium(width=900, height=700, arguments=arguments) as page:
        yield page


@pytest.fixture
def peer() -> Iterator[RivaPeer]:
    with RivaPeer() as peer:
        yield peer


@pytest.fixture
def url(peer: RivaPeer) -> Iterator[str]:
    speech = SpeechRoutes(peer.address)
    server = MonitoringServer("127.0.0.1", 0, dashboard=False, routes=speech.routes)
    server.start(None, [1], "test")  # type: ignore[arg-type]  # nobody asks for metrics
    try:
        yield f"http://127.0.0.1:{server.port}/speech"
    finally:
        server.stop()
        speech.close()


def test_words_appear_as_they_come(page: Chromium, url: str, peer: RivaPeer) -> None:
    page.open(url)
    page.wait_for("document.querySelector('#model').value === 'tiny'")
    page.evaluate("document.querySelector('#toggle').click()")
    page.wait_for(f"document.querySelector('#interim').innerText.startsWith('{WORDS[0]}')")
    page.wait_for("document.querySelector('#level').value > 0.02")  # it is the file that is heard
    first = page.text("#interim")
    page.wait_for(f"document.querySelector('#interim').innerText.length > {len(first)}")
    assert page.text("#toggle") == "Stop"
    page.evaluate("document.querySelector('#toggle').click()")
    page.wait_for("document.querySelector('#finals').innerText !== ''")
    said = page.text("#finals")
    assert " ".join(WORDS).startswith(said)
    page.wait_for("document.querySelector('#toggle').innerText === 'Listen'")
    assert page.text("#status") == "ready"
    assert peer.configs[-1].sample_rate_hertz == 16000
    page.evaluate("document.querySelector('#clear').click()")
    assert page.text("#finals") == ""
    assert page.console == []


def test_what_goes_wrong_is_shown(page: Chromium, url: str, peer: RivaPeer) -> None:
    page.open(url)
    page.wait_for("document.querySelector('#model').value === 'tiny'")
    peer.models = ["another"]  # the page does not know yet
    page.evaluate("document.querySelector('#toggle').click()")
    page.wait_for("document.querySelector('#status').innerText.includes(\"no model 'tiny'\")")
    page.wait_for("document.querySelector('#toggle').innerText === 'Listen'")
    peer.models = []
    page.open(f"{url}?again")
    page.wait_for("document.querySelector('#status').innerText.includes('headrace speech add')")
