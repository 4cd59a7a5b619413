from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from headrace.errors import InvalidArgumentError
from headrace.speech.byte_level import read_vocabulary
from headrace.speech.moonshine_export import read_bin_tokens, read_sentence_pieces


def test_byte_level_spelling(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.txt"
    path.write_text("!\n\u0120the\n\u00c3\u00a9\n\u010a\n<|endoftext|>\n", encoding="utf-8")
    vocabulary = read_vocabulary(path)
    assert vocabulary.tokens == {0: b"!", 1: b" the", 2: "é".encode(), 3: b"\n"}
    assert vocabulary.special == {"<|endoftext|>": 4}
    with pytest.raises(InvalidArgumentError, match="startoftranscript"):
        vocabulary.prompt("en")


def test_prompts(tmp_path: Path) -> None:
    def write(end: int) -> Path:
        names = ["startoftranscript", "en", "de", "transcribe", "notimestamps"]
        added = [{"id": end, "content": "<|endoftext|>"}]
        added += [{"id": end + 1 + n, "content": f"<|{name}|>"} for n, name in enumerate(names)]
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps({"model": {"vocab": {"a": 0}}, "added_tokens": added}))
        return path

    assert read_vocabulary(write(50256)).prompt("en") == [50257, 50261]
    several = read_vocabulary(write(50257))
    assert several.prompt("de") == [50258, 50260, 50261, 50262]
    with pytest.raises(InvalidArgumentError, match="'xx'"):
        several.prompt("xx")


def test_sherpa_tokens(tmp_path: Path) -> None:
    path = tmp_path / "tiny.en-tokens.txt"
    path.write_text(
        f"{base64.b64encode(b' a').decode()} 0\n{base64.b64encode(bytes([195])).decode()} 7\n"
    )
    assert read_vocabulary(path).tokens == {0: b" a", 7: b"\xc3"}


@pytest.mark.parametrize("content", ["[", "3", '{"model": 1}', '{"model": {"vocab": {}}}'])
def test_no_vocabulary(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(InvalidArgumentError, match=r"tokenizer\.json"):
        read_vocabulary(path)


def test_moonshine_pieces(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.bin"
    long = b"x" * 130
    pieces = [b"<unk>", b"<s>", b"</s>", b"\x00", "\u2581a".encode(), b"b"]
    data = b"".join(bytes([len(piece)]) + piece for piece in pieces)
    path.write_bytes(data + bytes([130, 1]) + long + b"\x00")
    assert read_bin_tokens(path) == {3: b"\x00", 4: b" a", 5: b"b", 6: long}
    for cut in (1, 3, len(data) + 1, len(data) + 5):
        path.write_bytes((data + bytes([130, 1]) + long)[:cut])
        with pytest.raises(InvalidArgumentError, match="ends inside"):
            read_bin_tokens(path)


def test_sentence_pieces(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    vocabulary = {"<s>": 1, "<0x0A>": 3, "\u2581a": 4, "b": 5}
    added = [{"id": 1, "content": "<s>", "special": True}]
    path.write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": added}))
    assert read_sentence_pieces(path) == {3: b"\n", 4: b" a", 5: b"b"}
    path.write_text("[]")
    with pytest.raises(InvalidArgumentError, match=r"tokenizer\.json"):
        read_sentence_pieces(path)
