"""Entries from exported streaming models: icefall's zipformer2 transducers as sherpa-onnx has them,
NeMo's cache-aware FastConformer CTC models as sherpa-onnx exports them.

Their graphs stay as they are; speech.yaml says what their metadata says.
"""

from __future__ import annotations

import base64
import math
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped, unused-ignore]

from headrace.errors import InvalidArgumentError
from headrace.speech.sources import Found

__all__ = ["STREAMING_LAYOUTS", "read_symbols", "write_streaming"]

STREAMING_LAYOUTS = ("zipformer", "nemo-ctc")
_BLANKS = ("<blk>", "<eps>", "<blank>")
_SPECIAL = {*_BLANKS, "<unk>", "<sos/eos>", "<sos>", "<eos>", "<s>", "</s>", "<pad>"}
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# Of the lexicon's graph, not of the network: prepare_lang_bpe appends them.
_DISAMBIGUATION = re.compile(r"#\d+")
# sentencepiece takes bytes only where no other piece will do, but lists them with 0, the best.
_BYTE_SCORE = -10_000


def write_streaming(
    folder: Path, found: Found, language: str, sources: list[dict[str, Any]]
) -> str:
    """Fills a version's folder; the family. InvalidArgumentError: what is not as it must be."""
    symbols = read_symbols(found.files["tokens"])
    networks = {
        role: f"{role}.onnx" for role in ("encoder", "decoder", "joiner") if role in found.files
    }
    models = {role: _open(found.files[role]) for role in networks}
    if found.layout == "zipformer":
        symbols = _without_disambiguation(symbols, models["decoder"])
        described = _zipformer(found.files, models, symbols)
    else:
        described = _nemo(found.files["encoder"], models["encoder"], symbols)
    if any(_scales_together(model.graph) for model in models.values()):
        described["max_batch"] = 1
    for role, name in networks.items():
        shutil.copyfile(found.files[role], folder / name)
    scores = read_scores(found.files["scores"]) if "scores" in found.files else {}
    _write_tokens(folder / "tokens.txt", symbols, scores)
    document = {
        "family": found.layout,
        "language": language,
        "files": {**networks, "tokens": "tokens.txt"},
        **described,
        "source": sources,
    }
    text = yaml.dump(document, sort_keys=False, default_flow_style=None, width=88)
    (folder / "speech.yaml").write_text(text, encoding="utf-8")
    return found.layout


def _zipformer(
    files: Mapping[str, Path], models: Mapping[str, Any], symbols: dict[int, str]
) -> dict[str, Any]:
    metadata = _metadata(models["encoder"])
    kind = metadata.get("model_type", "")
    if kind != "zipformer2":
        raise InvalidArgumentError(
            f"{files['encoder']}: its metadata's model_type is '{kind}'; of streaming transducers "
            "zipformer2 is known here"
        )
    if metadata.get("feature", ""):
        raise InvalidArgumentError(
            f"{files['encoder']}: hears '{metadata['feature']}' features; fbank is known here"
        )
    described = {
        "features": "kaldi",
        "chunk_frames": _number(files["encoder"], metadata, "T"),
        "shift_frames": _number(files["encoder"], metadata, "decode_chunk_len"),
        "blank": 0,
    }
    unknown = [number for number, piece in symbols.items() if piece == "<unk>"]
    if unknown:
        described["unknown"] = unknown[0]
    _check_vocabulary(files, models["decoder"], symbols)
    return described


def _nemo(path: Path, model: Any, symbols: dict[int, str]) -> dict[str, Any]:
    metadata = _metadata(model)
    if metadata.get("normalize_type", "") not in ("", "NA"):
        raise InvalidArgumentError(
            f"{path}: wants features normalised by '{metadata['normalize_type']}', which takes the "
            "whole audio; models that stream have none"
        )
    blank = next((number for number, piece in symbols.items() if piece in _BLANKS), None)
    if blank is None:
        raise InvalidArgumentError(f"tokens.txt has none of {', '.join(_BLANKS)}")
    dims = {
        name: [-1, *(_number(path, metadata, f"{name}_dim{i}") for i in (1, 2, 3))]
        for name in ("cache_last_channel", "cache_last_time")
    }
    return {
        "features": "nemo",
        "chunk_frames": _number(path, metadata, "window_size"),
        "shift_frames": _number(path, metadata, "chunk_shift"),
        "blank": blank,
        "caches": dims,
    }


def _without_disambiguation(symbols: dict[int, str], decoder: Any) -> dict[int, str]:
    size = _metadata(decoder).get("vocab_size", "")
    if not size.isdigit():
        return symbols
    return {
        number: piece
        for number, piece in symbols.items()
        if number < int(size) or not _DISAMBIGUATION.fullmatch(piece)
    }


def _check_vocabulary(files: Mapping[str, Path], decoder: Any, symbols: dict[int, str]) -> None:
    size = _metadata(decoder).get("vocab_size", "")
    if size.isdigit() and int(size) != max(symbols) + 1:
        raise InvalidArgumentError(
            f"{files['tokens']} ends at token {max(symbols)}, but {files['decoder'].name} has "
            f"{size} tokens: they are of different models"
        )


def _open(path: Path) -> Any:
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's
        raise InvalidArgumentError(f"{path} is no ONNX model: {error}") from None
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise InvalidArgumentError(f"{path} keeps weights in other files; export it as one file")
    return model


def _metadata(model: Any) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def _scales_together(graph: Any) -> bool:
    """Whether a scale is found over the rows of all streams of a batch, as int8 exports do: a
    stream's tokens would depend on the others."""
    return any(node.op_type == "DynamicQuantizeLinear" for node in _nodes(graph))


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _number(path: Path, metadata: dict[str, str], key: str) -> int:
    value = metadata.get(key, "")
    if not value.isdigit() or int(value) < 1:
        raise InvalidArgumentError(
            f"{path}: its metadata has no {key}: not exported for sherpa-onnx, or not streaming"
        )
    return int(value)


def read_symbols(path: Path) -> dict[int, str]:
    """sherpa-onnx's tokens.txt: a piece and its id a line. InvalidArgumentError."""
    symbols: dict[int, str] = {}
    for number, line in _lines(path):
        piece, _, digits = line.rstrip(" ").rpartition(" ")
        if not (digits.isascii() and digits.isdigit()):
            raise InvalidArgumentError(f"{path}, line {number}: expected a piece and its id")
        symbols[int(digits)] = piece.strip(" ") or " "
    if not symbols:
        raise InvalidArgumentError(f"{path} has no tokens")
    return symbols


def read_scores(path: Path) -> dict[str, float]:
    """sentencepiece's list of pieces (bpe.vocab): piece, tab, score."""
    scores: dict[str, float] = {}
    for number, line in _lines(path):
        piece, tab, digits = line.rpartition("\t")
        try:
            score = float(digits) if tab else math.nan
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise InvalidArgumentError(
                f"{path}, line {number}: expected a piece, a tab and its score"
            )
        scores[piece] = score
    return scores


def _lines(path: Path) -> Iterable[tuple[int, str]]:
    """Those with something in them, and their numbers. Pieces may hold what Python takes for the
    end of a line, or for a space."""
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"{path} is no UTF-8: {error}") from None
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip(" \t\r"):
            yield number, line.removesuffix("\r")


def _write_tokens(path: Path, symbols: dict[int, str], scores: dict[str, float]) -> None:
    lines = []
    for number, piece in sorted(symbols.items()):
        if piece in _SPECIAL:
            continue
        byte = _BYTE.fullmatch(piece)
        text = bytes([int(byte[1], 16)]) if byte else piece.replace("\u2581", " ").encode()
        line = f"{base64.b64encode(text).decode('ascii')} {number}"
        score = _BYTE_SCORE if byte else scores.get(piece)
        lines.append(f"{line}\n" if score is None else f"{line} {score:g}\n")
    path.write_text("".join(lines), encoding="ascii")
