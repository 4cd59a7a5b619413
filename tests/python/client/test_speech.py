from __future__ import annotations

from collections.abc import Iterator

import pytest
from riva_peer import HALF_SECOND, WORDS, RivaPeer

from headrace.client.speech import SpeechClient
from headrace.errors import CancelledError, NotFoundError, UnavailableError


@pytest.fixture
def peer() -> Iterator[RivaPeer]:
    with RivaPeer() as peer:
        yield peer


def test_files(peer: RivaPeer) -> None:
    with SpeechClient(peer.address, metadata=[("authorization", "Bearer k")]) as client:
        assert [model.name for model in client.models()] == ["tiny"]
        finals = client.recognize(b"RIFF", model="tiny", words=True, metadata=[("x-test", "1")])
        assert [heard.text for heard in finals] == ["never mind the weather.", "we sail at noon"]
        assert finals[1].final
        assert finals[1].end_s == 4.0
        assert (finals[1].words[0].text, finals[1].words[0].start_s) == ("we", 2.0)
        assert peer.metadata[-1]["authorization"] == "Bearer k"
        assert peer.metadata[-1]["x-test"] == "1"
        assert client.recognize(b"RIFF")[0].words == ()
        with pytest.raises(NotFoundError, match="no model 'other'"):
            client.recognize(b"RIFF", model="other")


def test_streams(peer: RivaPeer) -> None:
    chunks = [bytes(HALF_SECOND // 2)] * 6
    with SpeechClient(peer.address) as client:
        heard = list(client.stream(chunks, stop_history_ms=320, rate=8000))
        assert [one.text for one in heard if not one.final] == [
            "never",
            "never mind",
            "never mind the",
        ]
        assert (heard[-1].text, heard[-1].final) == ("never mind the", True)
        config = peer.configs[-1]
        assert (config.sample_rate_hertz, config.encoding) == (8000, 1)
        assert config.endpointing_config.stop_history == 320
        assert [one.final for one in client.stream(chunks, interim=False)] == [True]
        with pytest.raises(NotFoundError):
            list(client.stream(chunks, model="other"))


def test_a_stream_that_is_cancelled(peer: RivaPeer) -> None:
    def endless() -> Iterator[bytes]:
        while not peer.ended.wait(0.001):
            yield bytes(HALF_SECOND)

    with SpeechClient(peer.address) as client:
        stream = client.stream(endless())
        results = iter(stream)
        assert next(results).text == WORDS[0]
        stream.cancel()
        with pytest.raises(CancelledError):
            list(results)
        assert peer.ended.wait(60)


def test_nobody_listens() -> None:
    with (
        SpeechClient("127.0.0.1:1") as client,
        pytest.raises(UnavailableError, match="headrace serve"),
    ):
        client.models()
