from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.client.speech import Heard, Word
from headrace.client.transcript import cues_of, render_srt, render_vtt, text_of


def heard(text: str, end_s: float, *times: tuple[float, float]) -> Heard:
    words = tuple(Word(word, *span) for word, span in zip(text.split(), times, strict=False))
    return Heard(text, True, end_s, words=words)


def test_sentences_are_cues() -> None:
    cues = cues_of([heard("one two. three", 3.0, (0.1, 0.4), (0.5, 1.0), (1.2, 2.0))])
    assert [(cue.text, cue.start_s, cue.end_s) for cue in cues] == [
        ("one two.", 0.1, 1.0),
        ("three", 1.2, 2.0),
    ]


def test_without_word_times_an_utterance_is_a_cue() -> None:
    cues = cues_of([heard("one", 1.5), heard("", 2.0), heard("two", 3.0)])
    assert [(cue.text, cue.start_s, cue.end_s) for cue in cues] == [
        ("one", 0.0, 1.5),
        ("two", 2.0, 3.0),
    ]
    assert text_of([heard("one", 1), heard("", 2), heard("two", 3)]) == "one two"


def test_formats() -> None:
    cues = cues_of([heard("a <b> & c", 3725.25)])
    assert render_srt(cues) == "1\n00:00:00,000 --> 01:02:05,250\na <b> & c\n\n"
    assert render_vtt(cues) == ("WEBVTT\n\n00:00:00.000 --> 01:02:05.250\na &lt;b> &amp; c\n\n")
    assert render_srt([]) == ""
    assert render_vtt([]) == "WEBVTT\n\n"


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(st.text("ab.?", min_size=1, max_size=30), st.floats(0, 3), st.floats(0, 2)),
        min_size=1,
    )
)
def test_no_word_is_lost_and_no_cue_is_long(parts: list[tuple[str, float, float]]) -> None:
    words, clock = [], 0.0
    for text, pause, length in parts:
        words.append(Word(text, clock + pause, clock + pause + length))
        clock = words[-1].end_s
    cues = cues_of([Heard("x", True, clock, words=tuple(words))])
    assert " ".join(cue.text for cue in cues).split(" ") == [word.text for word in words]
    for cue in cues:
        assert cue.start_s <= cue.end_s
        assert len(cue.text) <= 84
    assert [cue.start_s for cue in cues] == sorted(cue.start_s for cue in cues)
