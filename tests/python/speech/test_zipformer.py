"""A streaming zipformer transducer, token for token as sherpa-onnx recognises with it."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from streaming_models import (
    RATE,
    ZIPFORMER,
    add,
    answer,
    load,
    noises,
    open_stream,
    recognize,
    sherpa_transducer,
    spell_ids,
)

from headrace import runtime
from headrace.control.speech_models import load_speech
from headrace.errors import HeadraceError, InvalidArgumentError

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("onnx")

pytestmark = pytest.mark.timeout(300)

CLIP = Path(__file__).parents[2] / "e2e" / "speech_clips" / "austen_0880.flac"
SPEECH = soundfile.read(str(CLIP), dtype="float32")[0]
SOUNDS = {"speech": SPEECH, "noises": noises(1, 6.37), "again": noises(2, 3.111)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = add(ZIPFORMER, tmp_path_factory.mktemp("models"), "zipformer")
    spell_ids(folder)
    return folder


@pytest.fixture(scope="module")
def recognizer(folder: Path) -> runtime.SpeechRecognizer:
    return load(folder)


@pytest.fixture(scope="module")
def beam(folder: Path) -> runtime.SpeechRecognizer:
    return load(folder, beam=4)


@pytest.mark.parametrize("sound", SOUNDS)
def test_greedy_as_sherpa_onnx(recognizer: runtime.SpeechRecognizer, sound: str) -> None:
    pytest.importorskip("sherpa_onnx")
    expected = sherpa_transducer(ZIPFORMER, SOUNDS[sound])
    assert len(expected) > 3
    assert recognize(recognizer, SOUNDS[sound]) == expected


@pytest.mark.parametrize("sound", SOUNDS)
def test_beam_as_sherpa_onnx(beam: runtime.SpeechRecognizer, sound: str) -> None:
    pytest.importorskip("sherpa_onnx")
    expected = sherpa_transducer(
        ZIPFORMER, SOUNDS[sound], decoding_method="modified_beam_search", max_active_paths=4
    )
    assert recognize(beam, SOUNDS[sound]) == expected


def test_the_beam_finds_something_else(
    recognizer: runtime.SpeechRecognizer, beam: runtime.SpeechRecognizer
) -> None:
    assert any(recognize(beam, s) != recognize(recognizer, s) for s in SOUNDS.values())


def test_together_as_alone(
    recognizer: runtime.SpeechRecognizer, beam: runtime.SpeechRecognizer
) -> None:
    sounds = [*SOUNDS.values(), noises(5, 2.0), noises(6, 4.4), np.zeros(RATE, np.float32)]
    for one in (recognizer, beam):
        alone = [recognize(one, samples) for samples in sounds]
        before = one.statistics()
        streams = [open_stream(one) for _ in sounds]
        # Together for as long as both have something to say.
        for stream, samples in zip(streams, sounds, strict=True):
            stream.push(samples)
        for stream in streams:
            stream.finish()
        assert [answer(stream) for stream in streams] == alone
        after = one.statistics()
        runs = after["decoder_steps"] - before["decoder_steps"]
        assert after["decoder_tokens"] - before["decoder_tokens"] > runs


def test_silence_says_nothing(recognizer: runtime.SpeechRecognizer) -> None:
    assert recognize(recognizer, np.zeros(3 * RATE, np.float32)) == []
    assert recognize(recognizer, np.zeros(0, np.float32)) == []
    assert recognize(recognizer, np.zeros(50, np.float32)) == []


def test_pieces_of_any_size(recognizer: runtime.SpeechRecognizer) -> None:
    whole = recognize(recognizer, SPEECH)
    stream = open_stream(recognizer, interim_results=True)
    sizes = itertools.cycle([1, 7, 160, 4999, 12_345])
    at = 0
    while at < len(SPEECH):
        size = next(sizes)
        stream.push(SPEECH[at : at + size])
        at += size
    stream.finish()
    assert answer(stream) == whole


def test_a_forced_end_begins_anew(recognizer: runtime.SpeechRecognizer) -> None:
    alone = recognize(recognizer, SPEECH)
    stream = open_stream(recognizer)
    for _ in range(2):
        stream.push(SPEECH)
        stream.force_end_of_utterance()
    stream.finish()
    length = 1000 * len(SPEECH) / RATE
    later = [(token, round(ms + length)) for token, ms in alone]
    said = answer(stream)
    assert [token for token, _ in said] == [token for token, _ in alone + later]
    assert all(abs(a[1] - b[1]) <= 1 for a, b in zip(said, alone + later, strict=True))


def test_utterances_end_in_silence_and_partials_come_before(folder: Path) -> None:
    recognizer = load(folder)
    stream = recognizer.open(interim_results=True, stop_history_ms=320, stop_history_eou_ms=80)
    for _ in range(2):
        stream.push(SPEECH)
        stream.push(np.zeros(2 * RATE, np.float32))
    # Nothing says that the stream is over.
    results = []
    while sum(result["is_final"] for result in results) < 2:
        result = stream.next(120)
        assert result is not None
        results.append(result)
    for before, after in itertools.pairwise(results):
        if not before["is_final"] and not after["is_final"]:
            assert after["transcript"].startswith(before["transcript"])
    partials = [result for result in results if not result["is_final"]]
    assert partials
    assert all(0 < result["stability"] <= 1 for result in partials)
    stream.finish()
    while stream.next(120) is not None:
        pass
    assert stream.ended
    statistics = recognizer.statistics()
    assert statistics["finals"] >= 2
    assert statistics["audio_seconds"] > 8


def test_hotwords_as_sherpa_onnx(tmp_path: Path) -> None:
    pytest.importorskip("sherpa_onnx")
    folder = add(ZIPFORMER, tmp_path, "hotwords")
    recognizer = load(folder, beam=4)
    phrases = ["HERE", "CLING ON", "GIN"]
    options = {"decoding_method": "modified_beam_search", "max_active_paths": 4}
    spelling = {"modeling_unit": "bpe", "bpe_vocab": str(ZIPFORMER / "bpe.vocab")}
    lines = (ZIPFORMER / "tokens.txt").read_text(encoding="utf-8").splitlines()
    pieces = {int(n): piece.replace("\u2581", " ") for piece, n in map(str.split, lines)}
    changed = 0
    for boost, samples in ((0.7, SPEECH), (2.0, SOUNDS["noises"])):
        plain = sherpa_transducer(ZIPFORMER, samples, **options)
        expected = sherpa_transducer(
            ZIPFORMER,
            samples,
            hotwords="/".join(f"{phrase} :{boost}" for phrase in phrases),
            **options,
            **spelling,
        )
        changed += plain != expected
        stream = recognizer.open(
            stop_history_ms=60_000, phrases=[(phrase.lower(), boost) for phrase in phrases]
        )
        stream.push(samples)
        stream.finish()
        result = stream.next(120)
        assert result is not None
        assert result["transcript"] == "".join(pieces[token] for token, _ in expected).strip()
    assert changed


def test_phrases_that_cannot_be_spelled(recognizer: runtime.SpeechRecognizer) -> None:
    with pytest.raises(InvalidArgumentError, match="'\u00fc' has letters"):
        recognizer.open(phrases=[("\u00fc", 1.0)])


def test_a_stream_that_is_closed_is_forgotten(recognizer: runtime.SpeechRecognizer) -> None:
    before = recognizer.statistics()["open_streams"]
    stream = open_stream(recognizer)
    stream.push(noises(9, 20))
    assert recognizer.statistics()["open_streams"] == before + 1
    stream.close()
    assert recognizer.statistics()["open_streams"] == before


def test_streams_beyond_the_bound_are_refused(folder: Path) -> None:
    recognizer = load(folder, max_streams=1)
    first = open_stream(recognizer)
    with pytest.raises(HeadraceError, match="too many streams"):
        open_stream(recognizer)
    first.close()
    open_stream(recognizer).close()


def test_it_is_warmed_up_in_the_background(folder: Path) -> None:
    recognizer = load_speech(folder, "background", threads=1, low_priority=True)
    assert recognizer.statistics()["decoder_steps"] == 0
    assert recognizer.statistics()["open_streams"] == 0


def test_settings_that_do_not_fit(folder: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"joiner\.onnx': joiner: has .* tokens"):
        load(folder, blank=50_000)
    with pytest.raises(InvalidArgumentError, match="but chunk_frames is 44"):
        load(folder, chunk_frames=44)
    with pytest.raises(InvalidArgumentError, match="shift_frames"):
        load(folder, shift_frames=46)
