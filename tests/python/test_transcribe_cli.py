"""`headrace transcribe` against a service of Riva's protocol."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from riva_peer import HALF_SECOND, RivaPeer

from headrace import cli


@pytest.fixture
def peer() -> Iterator[RivaPeer]:
    with RivaPeer() as peer:
        yield peer


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.wav"
    path.write_bytes(bytes(4 * HALF_SECOND))
    return path


def run(*arguments: object) -> None:
    try:
        cli.main(["transcribe", *(str(argument) for argument in arguments)])
    except SystemExit as end:
        if end.code:
            raise


def test_a_file(peer: RivaPeer, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(clip, "--server", peer.address)
    assert capsys.readouterr().out == "never mind the weather.\n"
    config = peer.configs[-1]
    assert (config.model, config.encoding, config.sample_rate_hertz) == ("tiny", 0, 0)


def test_several_files(
    peer: RivaPeer, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.flac"
    other.write_bytes(bytes(2 * HALF_SECOND))
    run(clip, other, "--server", peer.address)
    assert capsys.readouterr().out.count("never mind") == 2
    out = tmp_path / "out"
    for form in ("srt", "json"):
        peer.heard = 0
        run(clip, "--server", peer.address, "--format", form, "--output-dir", out)
    assert (out / "clip.srt").read_text().startswith("1\n00:00:00,000 --> 00:00:01,900\nnever")
    document = json.loads((out / "clip.json").read_text())
    assert document["text"] == "never mind the weather."
    assert len(document["words"]) == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give files, or --mic"),
        (["nowhere.wav"], "nowhere.wav does not exist"),
        (["CLIP", "--format", "xml"], "text, srt, vtt, json"),
        (["CLIP", "--server", "127.0.0.1:1"], "no server answers"),
        (["CLIP", "--model-repository", "nowhere"], "headrace speech add"),
        (["CLIP", "--server", "PEER", "--model", "gone"], "no model 'gone'"),
    ],
)
def test_what_is_wrong_is_said(
    peer: RivaPeer, clip: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    names = {"CLIP": str(clip), "PEER": peer.address}
    with pytest.raises(SystemExit):
        run(*(names.get(argument, argument) for argument in arguments))
    assert said in capsys.readouterr().err


def test_which_model(peer: RivaPeer, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peer.models = ["tiny", "base"]
    with pytest.raises(SystemExit):
        run(clip, "--server", peer.address)
    assert "--model: one of tiny, base" in capsys.readouterr().err
    peer.models = []
    with pytest.raises(SystemExit):
        run(clip, "--server", peer.address)
    assert "headrace speech add" in capsys.readouterr().err


def test_no_microphone(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(SystemExit):
        run("--mic", "--server", "127.0.0.1:1")
    assert "pip install sounddevice" in capsys.readouterr().err
