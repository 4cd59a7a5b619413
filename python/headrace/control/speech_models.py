"""From a speech model's folder to a `runtime.SpeechRecognizer`.

    recognizer = load_speech(Path("models/moonshine-base-en/1"), "moonshine-base-en")

The folder holds `speech.yaml` and the files it names (docs/SPEECH.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml  # type: ignore[import-untyped, unused-ignore]

from headrace import runtime
from headrace.errors import HeadraceError, InvalidArgumentError, NotFoundError

__all__ = ["SpeechModelConfig", "load_speech", "read_speech_config"]

_TokenId = Annotated[int, pydantic.Field(ge=0, lt=1 << 20, strict=True)]


class _Part(pydantic.BaseModel):
    # Converters of later versions may write more than is known here.
    model_config = pydantic.ConfigDict(extra="ignore", frozen=True)


class _Files(_Part):
    """Names within the folder."""

    encoder: str = "encoder.onnx"
    decoder: str = "decoder.onnx"
    tokens: str = "tokens.txt"
    vad: str = "vad.onnx"


class SpeechModelConfig(_Part):
    """`speech.yaml`."""

    family: Literal["moonshine", "whisper"]
    language: str = pydantic.Field("en-US", min_length=1)
    files: _Files = _Files()
    prompt: list[_TokenId] = pydantic.Field(min_length=1)
    eos: _TokenId
    max_tokens_per_second: float = pydantic.Field(6.5, gt=0, le=100)
    min_context_s: float = pydantic.Field(0.5, ge=0, le=30)
    suppress: list[_TokenId] = []
    suppress_first: list[_TokenId] = []
    # OpenVINO properties of the networks.
    properties: dict[str, str] = {}
    max_streams: int = pydantic.Field(1024, ge=1)
    # Segments that one thread decodes at once when all are busy.
    max_batch: int = pydantic.Field(4, ge=1, le=64)
    # Finals that wait longer than this for a processor: no further streams are taken.
    max_wait_ms: int = pydantic.Field(1000, ge=1, le=60_000)


def read_speech_config(folder: Path) -> SpeechModelConfig:
    """Raises NotFoundError or InvalidArgumentError, naming the file and the key."""
    path = folder / "speech.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFoundError(f"'{path}' is missing: not a speech model") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"cannot read '{path}': {error}") from None
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidArgumentError(f"'{path}' is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise InvalidArgumentError(f"'{path}': expected keys and values")
    try:
        return SpeechModelConfig.model_validate(content)
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise InvalidArgumentError(f"'{path}': {key}: {problem['msg']}") from None


def _file_of(folder: Path, key: str, name: str) -> str:
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise InvalidArgumentError(f"files.{key}: '{name}' must lie in '{folder}'")
    if not path.is_file():
        raise NotFoundError(f"'{path}' (files.{key}) is missing")
    return str(path)


def _parameters(config: SpeechModelConfig, encoder: runtime.Model) -> dict[str, str]:
    return {
        "family": config.family,
        "sample_rate": "16000",
        "runtime": encoder.description,
    }


def load_speech(folder: Path, name: str, *, threads: int = 0) -> runtime.SpeechRecognizer:
    """Reads and compiles; blocks. `threads` decode, 0: one a core. Raises HeadraceError."""
    folder = Path(folder)
    try:
        return _load(folder, name, threads or runtime.available_cores())
    except HeadraceError as error:
        raise type(error)(f"speech model '{name}': {error.details}") from error


def _load(folder: Path, name: str, threads: int) -> runtime.SpeechRecognizer:
    config = read_speech_config(folder)
    files = {key: _file_of(folder, key, file) for key, file in config.files.model_dump().items()}
    backend = runtime.OpenVinoBackend()

    def load(key: str, instances: int, properties: dict[str, Any]) -> runtime.Model:
        # The engine gives networks shapes that fit, and a shape seldom comes twice.
        return backend.load(
            files[key], instances=instances, threads=1, trusted_shapes=True, properties=properties
        )

    encoder = load("encoder", threads, config.properties)
    return runtime.SpeechRecognizer(
        name=name,
        language_code=config.language,
        parameters=_parameters(config, encoder),
        encoder=encoder,
        decoder=load("decoder", threads, config.properties),
        vad=load("vad", 1, {}),
        tokens=files["tokens"],
        prompt=config.prompt,
        eos=config.eos,
        max_tokens_per_second=config.max_tokens_per_second,
        min_context_s=config.min_context_s,
        suppressed=config.suppress,
        suppressed_first=config.suppress_first,
        threads=threads,
        max_streams=config.max_streams,
        max_batch=config.max_batch,
        max_wait_ms=config.max_wait_ms,
    )
