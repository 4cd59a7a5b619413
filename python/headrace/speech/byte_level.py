"""Whisper's vocabularies: GPT-2's byte-level tokens, spelt with one printable character a byte."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from pathlib import Path

from headrace.errors import InvalidArgumentError

__all__ = ["Vocabulary", "read_vocabulary"]

_SPECIAL = re.compile(r"<\|.*\|>")


def _bytes_of_characters() -> dict[str, int]:
    """GPT-2's table: printable bytes stand for themselves, the others for characters from 256
    on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    return table | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTES = _bytes_of_characters()


@dataclass(frozen=True)
class Vocabulary:
    tokens: dict[int, bytes]  # of text
    special: dict[str, int]  # "<|endoftext|>" and others

    def prompt(self, language: str) -> list[int]:
        """What a transcription without timestamps begins with. `language`: "en"."""
        start = self.id_of("<|startoftranscript|>")
        # English-only models are asked for nothing; theirs are 1 fewer tokens of text.
        multilingual = self.special.get("<|endoftext|>", 0) >= 50257
        asked = []
        if multilingual:
            if f"<|{language}|>" not in self.special:
                raise InvalidArgumentError(f"the model knows no language '{language}'")
            asked = [self.special[f"<|{language}|>"], self.id_of("<|transcribe|>")]
        return [start, *asked, self.id_of("<|notimestamps|>")]

    def id_of(self, name: str) -> int:
        if name not in self.special:
            raise InvalidArgumentError(f"the vocabulary has no token {name}")
        return self.special[name]


def read_vocabulary(path: Path) -> Vocabulary:
    """tokenizer.json, vocabulary.txt, vocabulary.json, vocab.json, or sherpa-onnx's *tokens.txt."""
    try:
        pieces = _pieces(path)
    except (UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidArgumentError(f"{path} is no vocabulary of Whisper: {error}") from None
    tokens, special = dict[int, bytes](), dict[str, int]()
    for number, piece in pieces.items():
        if isinstance(piece, bytes):
            tokens[number] = piece
        elif _SPECIAL.fullmatch(piece):
            special[piece] = number
        elif all(character in _BYTES for character in piece):
            tokens[number] = bytes(_BYTES[character] for character in piece)
    return Vocabulary(tokens, special)


def _pieces(path: Path) -> dict[int, str | bytes]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".txt":
        lines = text.split("\n")
        if lines and lines[-1] == "":
            lines.pop()
        if path.name.endswith("tokens.txt"):  # sherpa-onnx: base64, space, id
            pairs = (line.rpartition(" ") for line in lines)
            return {int(number): base64.b64decode(piece) for piece, _, number in pairs}
        return dict(enumerate(lines))
    document = json.loads(text)
    if isinstance(document, list):
        return dict(enumerate(document))
    if "model" in document:  # tokenizer.json
        found = {number: piece for piece, number in document["model"]["vocab"].items()}
        return found | {entry["id"]: entry["content"] for entry in document["added_tokens"]}
    return {number: piece for piece, number in document.items()}
