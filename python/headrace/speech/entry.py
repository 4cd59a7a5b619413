"""An entry of a model repository from what sources.py found.

    models/NAME/config.pbtxt          backend: "speech"
    models/NAME/VERSION/speech.yaml   what the networks are and where they are from
    models/NAME/VERSION/{encoder,decoder,vad}.onnx, tokens.txt    (streaming: no vad, but a joiner)

tokens.txt has a line a token: base64 of its bytes, a space, its id, perhaps a space and its score;
ids that print nothing lack.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped, unused-ignore]

from headrace.errors import AlreadyExistsError, FailedPreconditionError, InvalidArgumentError
from headrace.speech import moonshine, whisper
from headrace.speech.byte_level import Vocabulary, read_vocabulary
from headrace.speech.ct2 import read_ct2, whisper_from_ct2
from headrace.speech.moonshine_export import (
    read_bin_tokens,
    read_moonshine,
    read_sentence_pieces,
)
from headrace.speech.network import Networks
from headrace.speech.sources import Found
from headrace.speech.streaming import STREAMING_LAYOUTS, write_streaming
from headrace.speech.whisper_export import read_whisper

__all__ = ["Written", "write_entry"]

_MODEL_FILES = {
    "encoder": "encoder.onnx",
    "decoder": "decoder.onnx",
    "tokens": "tokens.txt",
    "vad": "vad.onnx",
}
_LINE = 88


@dataclass(frozen=True)
class Written:
    folder: Path  # of the version
    family: str
    int8: bool
    files: dict[str, int]  # name -> bytes
    sources: list[dict[str, Any]]


@dataclass(frozen=True)
class _Model:
    """What speech.yaml says beside files and sources."""

    networks: Networks
    tokens: dict[int, bytes]
    family: str
    prompt: list[int]
    eos: int
    max_tokens_per_second: float
    min_context_s: float
    suppress: list[int]
    suppress_first: list[int]


def write_entry(
    repository: Path,
    name: str,
    found: Found,
    vad: Found | None,
    *,
    version: int = 1,
    precision: str = "auto",
    language: str = "en-US",
    overwrite: bool = False,
    on_step: Callable[[str], None] = lambda step: None,
) -> Written:
    """Builds in a hidden folder beside the version and renames it: a server that follows the
    repository sees the whole version or none.

    `precision`: f32, int8 (weights only) or auto: int8 where the weights come quantized
    (Moonshine); streaming models stay as they are. `vad`: of all but these.
    Errors: AlreadyExistsError, InvalidArgumentError, DataLossError (a checksum), and
    FailedPreconditionError for libraries that lack.
    """
    # Streaming models are only read.
    streaming = found.layout in STREAMING_LAYOUTS
    _need_libraries(*(["onnx"] if streaming else ["onnx", "onnxruntime"]))
    if precision not in ("auto", "f32", "int8"):
        raise InvalidArgumentError(f"--precision is '{precision}'; say auto, f32 or int8")
    target = repository / name / str(version)
    if target.exists() and not overwrite:
        raise AlreadyExistsError(
            f"{target} exists; choose another --name or --model-version, or --overwrite it"
        )
    on_step("checking the weights' checksums")
    sources = [_source(one) for one in (found, vad) if one is not None]
    if streaming and precision == "int8":
        raise InvalidArgumentError("--precision int8: streaming models stay as they are")
    int8 = precision == "int8" or (precision == "auto" and found.layout == "moonshine")
    model = None if streaming else _convert(found, language, int8, on_step)

    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f".{version}.partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        on_step("writing")
        if model is None or vad is None:
            family = write_streaming(partial, found, language, sources)
        else:
            family = model.family
            _write_files(partial, model, vad, sources, language)
        files = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
        (target.parent / "config.pbtxt").write_text(
            f'name: "{name}"\nbackend: "speech"\n', encoding="utf-8"
        )
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Written(target, family, int8, files, sources)


def _need_libraries(*modules: str) -> None:
    for module in modules:
        try:
            __import__(module)
        except ImportError as error:
            raise FailedPreconditionError(
                f"converting needs {module} ({error}): pip install 'headrace[speech]', or "
                f"pip install {' '.join(modules)}"
            ) from None


def _source(found: Found) -> dict[str, Any]:
    return {
        "package": found.package,
        "version": found.version,
        "license": found.license,
        "sha256": {found.files[role].name: value for role, value in found.checksums().items()},
    }


def _convert(found: Found, language: str, int8: bool, on_step: Callable[[str], None]) -> _Model:
    on_step("reading the weights")
    metadata = {
        "headrace.source": f"{found.package} {found.version}".strip(),
        "headrace.license": found.license,
        "headrace.layout": found.layout,
    }
    files = found.files
    if found.layout == "moonshine":
        weights = read_moonshine(files["encoder"], files["decoder"])
        binary = files["tokens"].suffix == ".bin"
        tokens = (read_bin_tokens if binary else read_sentence_pieces)(files["tokens"])
        config = _read_json(files["config"]) if "config" in files else {}
        start, end = config.get("decoder_start_token_id", 1), config.get("eos_token_id", 2)
        on_step("building the networks")
        networks = moonshine.build(weights, int8=int8, metadata=metadata)
        return _Model(networks, tokens, "moonshine", [int(start)], int(end), 6.5, 0.5, [], [])
    vocabulary = read_vocabulary(files["tokens"])
    config = _read_json(files["config"]) if "config" in files else {}
    if "generation" in files:
        config |= _read_json(files["generation"])
    heads = tuple((int(a), int(b)) for a, b in config.get("alignment_heads") or ())
    if found.layout == "whisper-ct2":
        whole = whisper_from_ct2(read_ct2(files["model"]), heads)
    else:
        count = int(config.get("encoder_attention_heads", 0))
        whole = read_whisper(files["encoder"], files["decoder"], count, heads)
    on_step("building the networks")
    networks = whisper.build(whole, int8=int8, metadata=metadata)
    return _whisper_model(networks, vocabulary, config, language)


def _whisper_model(
    networks: Networks, vocabulary: Vocabulary, config: dict[str, Any], language: str
) -> _Model:
    end = vocabulary.special.get("<|endoftext|>")
    if end is None:  # sherpa-onnx lists tokens of text only; these precede the special ones
        end = max(vocabulary.tokens) + 1
        vocabulary = Vocabulary(vocabulary.tokens, _special_after(end))
    suppress = config.get("suppress_ids", config.get("suppress_tokens"))
    first = config.get("suppress_ids_begin", config.get("begin_suppress_tokens"))
    # None: what no transcript begins with, a space and nothing at all.
    space = next((number for number, piece in vocabulary.tokens.items() if piece == b" "), None)
    first = [*([space] if space is not None else []), end] if first is None else first
    never = {number for number in (suppress or []) if number >= 0}
    never |= {number for name, number in vocabulary.special.items() if name != "<|endoftext|>"}
    return _Model(
        networks,
        vocabulary.tokens,
        "whisper",
        vocabulary.prompt(language.split("-")[0].lower()),
        end,
        8.0,
        10.0,
        sorted(never),
        sorted(first),
    )


def _special_after(end: int) -> dict[str, int]:
    """Whisper's special tokens from <|endoftext|> = `end` on (openai/whisper's tokenizer.py). Only
    English-only models: their order is fixed."""
    if end != 50256:
        raise InvalidArgumentError(
            "tokens.txt of a multilingual model lists no special tokens; export the model with "
            "Optimum, or add its tokenizer.json"
        )
    names = ("startoftranscript", "translate", "transcribe", "startoflm", "startofprev")
    numbers = (50257, 50357, 50358, 50359, 50360)
    special = {f"<|{name}|>": number for name, number in zip(names, numbers, strict=True)}
    return special | {"<|endoftext|>": end, "<|nospeech|>": 50361, "<|notimestamps|>": 50362}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidArgumentError(f"{path} is no JSON: {error}") from None
    if not isinstance(document, dict):
        raise InvalidArgumentError(f"{path} is no JSON object")
    return document


def _write_files(
    folder: Path, model: _Model, vad: Found, sources: list[dict[str, Any]], language: str
) -> None:
    import onnx

    onnx.save(model.networks.encoder, str(folder / _MODEL_FILES["encoder"]))
    onnx.save(model.networks.decoder, str(folder / _MODEL_FILES["decoder"]))
    onnx.save(_batched(vad.files["vad"]), str(folder / _MODEL_FILES["vad"]))
    lines = (
        f"{base64.b64encode(piece).decode('ascii')} {number}\n"
        for number, piece in sorted(model.tokens.items())
    )
    (folder / _MODEL_FILES["tokens"]).write_text("".join(lines), encoding="ascii")
    description = {
        "family": model.family,
        "language": language,
        "files": _MODEL_FILES,
        "prompt": model.prompt,
        "eos": model.eos,
        "max_tokens_per_second": model.max_tokens_per_second,
        "min_context_s": model.min_context_s,
        "suppress": model.suppress,
        "suppress_first": model.suppress_first,
        "source": sources,
    }
    text = yaml.dump(description, sort_keys=False, default_flow_style=None, width=_LINE)
    (folder / "speech.yaml").write_text(text, encoding="utf-8")


def _batched(vad: Path) -> Any:
    """Silero's network, which computes rows alike, for any number of them instead of one."""
    import onnx

    try:
        model = onnx.load(str(vad))
    except Exception as error:  # protobuf's
        raise InvalidArgumentError(f"{vad} is no ONNX model: {error}") from None
    for value in [*model.graph.input, *model.graph.output]:
        sizes = value.type.tensor_type.shape.dim
        rows = sizes[1 if len(sizes) == 3 else 0]  # the state is (2, rows, 128)
        rows.ClearField("dim_value")
        rows.dim_param = "N"
    del model.graph.value_info[:]
    return model
