"""Clips with transcripts, where speech ends in them, and what counts as an error.

A folder: NAME.wav (16 kHz, mono, 16 bits) and transcripts.tsv with the columns id and transcript.
"""

from __future__ import annotations

import csv
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

RATE = 16000


@dataclass(frozen=True)
class Clip:
    name: str
    path: Path
    transcript: str
    samples: Any  # int16

    @property
    def seconds(self) -> float:
        return len(self.samples) / RATE


def read_clips(folder: Path, most: int = 0) -> list[Clip]:
    clips = []
    with (folder / "transcripts.tsv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            path = folder / f"{row['id']}.wav"
            with wave.open(str(path)) as audio:
                form = (audio.getframerate(), audio.getnchannels(), audio.getsampwidth())
                if form != (RATE, 1, 2):
                    raise SystemExit(f"{path}: {form}; 16 kHz, mono, 16 bits are expected")
                samples = np.frombuffer(audio.readframes(audio.getnframes()), "<i2")
            clips.append(Clip(row["id"], path, row["transcript"], samples))
    return clips[:most] if most else clips


def word_errors(expected: Sequence[str], heard: Sequence[str]) -> dict[str, float]:
    """Of texts as Whisper's normaliser leaves them: both are libraries."""
    import jiwer
    from whisper_normalizer.english import EnglishTextNormalizer

    normal = EnglishTextNormalizer()
    found = jiwer.process_words([normal(t) for t in expected], [normal(t) for t in heard])
    return {
        "wer": round(found.wer, 5),
        "words": found.hits + found.substitutions + found.deletions,
        "substitutions": found.substitutions,
        "deletions": found.deletions,
        "insertions": found.insertions,
    }


class SpeechEnd:
    """Where the last speech of a clip ends, by Silero's network in onnxruntime."""

    def __init__(self) -> None:
        import onnxruntime

        from headrace.speech.sources import find_vad

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(find_vad().files["vad"]), options, providers=["CPUExecutionProvider"]
        )

    def of(self, samples: Any) -> float:
        """Seconds; 0 when nobody speaks."""
        audio = np.concatenate([np.zeros(64), samples / 32768.0, np.zeros(512)]).astype(np.float32)
        state = np.zeros((2, 1, 128), np.float32)
        last = 0.0
        for at in range(0, len(samples), 512):
            frame = audio[None, at : at + 576]
            probability, state = self._session.run(None, {"input": frame, "state": state})
            if probability[0, 0] > 0.5:
                last = min(at + 512, len(samples)) / RATE
        return last
