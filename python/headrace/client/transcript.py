"""Transcripts as people and programs want them: text, SRT, WebVTT, JSON.

A cue is what is shown at once. With word times, cues end at sentences and before they become long;
without them, one cue an utterance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headrace.client.speech import Heard, Word

__all__ = ["FORMATS", "Cue", "cues_of", "render_srt", "render_vtt", "text_of"]

FORMATS = ("text", "srt", "vtt", "json")
_LONGEST_S = 6.0
_LONGEST_CHARACTERS = 84  # two lines of subtitles


@dataclass(frozen=True)
class Cue:
    text: str
    start_s: float
    end_s: float

    def as_json(self) -> dict[str, Any]:
        return {"start": round(self.start_s, 3), "end": round(self.end_s, 3), "text": self.text}


def cues_of(finals: Sequence[Heard]) -> list[Cue]:
    """In order, none empty, none ending before it starts."""
    cues: list[Cue] = []
    last = 0.0
    for heard in finals:
        if heard.words:
            cues.extend(_cue(line) for line in _lines(heard.words))
        elif heard.text:
            cues.append(Cue(heard.text, last, max(last, heard.end_s)))
        last = max(last, heard.words[-1].end_s if heard.words else heard.end_s)
    return cues


def _lines(words: Sequence[Word]) -> list[list[Word]]:
    lines: list[list[Word]] = [[]]
    for word in words:
        line = lines[-1]
        length = sum(len(part.text) + 1 for part in line) + len(word.text)
        full = length > _LONGEST_CHARACTERS or (line and word.end_s - line[0].start_s > _LONGEST_S)
        if line and (full or line[-1].text.endswith((".", "?", "!"))):
            lines.append([])
        lines[-1].append(word)
    return lines


def text_of(finals: Sequence[Heard]) -> str:
    return " ".join(heard.text for heard in finals if heard.text)


def _cue(words: Sequence[Word]) -> Cue:
    text = " ".join(word.text for word in words)
    return Cue(text, words[0].start_s, max(words[0].start_s, words[-1].end_s))


def _clock(seconds: float, point: str) -> str:
    ms = max(0, round(seconds * 1000))
    return f"{ms // 3600000:02}:{ms // 60000 % 60:02}:{ms // 1000 % 60:02}{point}{ms % 1000:03}"


def render_srt(cues: Sequence[Cue]) -> str:
    return "".join(
        f"{number}\n{_clock(cue.start_s, ',')} --> {_clock(cue.end_s, ',')}\n{cue.text}\n\n"
        for number, cue in enumerate(cues, 1)
    )


def render_vtt(cues: Sequence[Cue]) -> str:
    escaped = ((cue, cue.text.replace("&", "&amp;").replace("<", "&lt;")) for cue in cues)
    return "WEBVTT\n\n" + "".join(
        f"{_clock(cue.start_s, '.')} --> {_clock(cue.end_s, '.')}\n{text}\n\n"
        for cue, text in escaped
    )
