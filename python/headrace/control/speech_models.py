"""From a speech model's folder to a `runtime.SpeechRecognizer`.

    recognizer = load_speech(Path("models/moonshine-base-en/1"), "moonshine-base-en")

The folder holds `speech.yaml` and the files it names (docs/SPEECH.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml  # type: ignore[import-untyped, unused-ignore]

from headrace import runtime
from headrace.errors import HeadraceError, InvalidArgumentError, NotFoundError

__all__ = [
    "SpeechModelConfig",
    "StreamingModelConfig",
    "load_speech",
    "read_speech_config",
]

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
    # auto: bf16 where the processor has AMX, where the encoder then takes half the time.
    encoder_precision: Literal["auto", "f32", "bf16"] = "auto"
    # OpenVINO properties of the networks.
    properties: dict[str, str] = {}
    max_streams: int = pydantic.Field(1024, ge=1)
    # Segments that one thread decodes at once when all are busy.
    max_batch: int = pydantic.Field(4, ge=1, le=64)
    # Finals that wait longer than this for a processor: no further streams are taken.
    max_wait_ms: int = pydantic.Field(1000, ge=1, le=60_000)


class _StreamingFiles(_Part):
    encoder: str = "encoder.onnx"
    # Of transducers.
    decoder: str | None = None
    joiner: str | None = None
    tokens: str = "tokens.txt"


class StreamingModelConfig(_Part):
    """`speech.yaml` of the streaming family."""

    family: Literal["zipformer", "nemo-ctc"]
    language: str = pydantic.Field("en-US", min_length=1)
    files: _StreamingFiles = _StreamingFiles()
    # Log-mel features: as Kaldi (icefall), NeMo, or sherpa-onnx for NeMo makes them.
    features: Literal["kaldi", "nemo", "librosa"]
    # Feature frames (10 ms) of a run of the encoder, and by which it moves on.
    chunk_frames: int = pydantic.Field(ge=1, le=4096)
    shift_frames: int = pydantic.Field(ge=1, le=4096)
    blank: _TokenId
    unknown: _TokenId | None = None
    # Shapes of caches that the graph leaves open, -1 for streams.
    caches: dict[str, list[int]] = {}
    # Hypotheses of a transducer that are followed; 1: greedy.
    beam: int = pydantic.Field(1, ge=1, le=64)
    # Without a token, that end an utterance, unless the client says.
    stop_history_ms: int = pydantic.Field(320, ge=1, le=60_000)
    # Silence that is heard after the end.
    tail_ms: int = pydantic.Field(800, ge=0, le=5_000)
    properties: dict[str, str] = {}
    max_streams: int = pydantic.Field(1024, ge=1)
    # Chunks of as many streams in one run.
    max_batch: int = pydantic.Field(8, ge=1, le=256)
    # Chunks that wait longer than this for a processor: no further streams are taken.
    max_wait_ms: int = pydantic.Field(1000, ge=1, le=60_000)


_STREAMING = ("zipformer", "nemo-ctc")


def read_speech_config(folder: Path) -> SpeechModelConfig | StreamingModelConfig:
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
    streaming = content.get("family") in _STREAMING
    try:
        return (StreamingModelConfig if streaming else SpeechModelConfig).model_validate(content)
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


def _parameters(
    config: SpeechModelConfig | StreamingModelConfig, encoder: runtime.Model
) -> dict[str, str]:
    return {
        "family": config.family,
        "sample_rate": "16000",
        "runtime": encoder.description,
    }


def has_amx(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor multiplies bf16 matrices in a unit of its own."""
    try:
        return "amx_bf16" in cpuinfo.read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return False


def load_speech(
    folder: Path, name: str, *, threads: int = 0, low_priority: bool = False
) -> runtime.SpeechRecognizer:
    """Reads, compiles and warms up; blocks. `threads` decode, 0: one a core. `low_priority`: the
    work leaves the processors to whoever serves. Raises HeadraceError."""
    folder = Path(folder)
    try:
        return _load(folder, name, threads or runtime.available_cores(), low_priority)
    except HeadraceError as error:
        raise type(error)(f"speech model '{name}': {error.details}") from error


def _load(folder: Path, name: str, threads: int, low_priority: bool) -> runtime.SpeechRecognizer:
    config = read_speech_config(folder)
    files = {
        key: _file_of(folder, key, file)
        for key, file in config.files.model_dump().items()
        if file is not None
    }
    backend = runtime.OpenVinoBackend()

    def load(key: str, instances: int, properties: dict[str, Any]) -> runtime.Model:
        # The engine gives networks shapes that fit, and a shape seldom comes twice.
        return backend.load(
            files[key],
            instances=instances,
            threads=1,
            low_priority=low_priority,
            trusted_shapes=True,
            properties=properties,
        )

    if isinstance(config, StreamingModelConfig):
        return _load_streaming(config, name, files, load, threads, low_priority)
    asked = config.encoder_precision
    # The decoder stays in f32: few rows at a time gain nothing.
    bf16 = asked == "bf16" or (asked == "auto" and has_amx())
    properties = {"INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32", **config.properties}
    encoder = load("encoder", threads, properties)
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
        low_priority=low_priority,
    )


def _load_streaming(
    config: StreamingModelConfig,
    name: str,
    files: Mapping[str, str],
    load: Callable[[str, int, dict[str, Any]], runtime.Model],
    threads: int,
    low_priority: bool,
) -> runtime.SpeechRecognizer:
    encoder = load("encoder", threads, config.properties)
    decoder, joiner = (
        load(key, threads, config.properties) if key in files else None
        for key in ("decoder", "joiner")
    )
    if (decoder is None) != (joiner is None):
        raise InvalidArgumentError("files: a transducer has a decoder and a joiner")
    try:
        return runtime.SpeechRecognizer.streaming(
            name=name,
            language_code=config.language,
            parameters=_parameters(config, encoder),
            encoder=encoder,
            decoder=decoder,
            joiner=joiner,
            tokens=files["tokens"],
            blank=config.blank,
            unknown=-1 if config.unknown is None else config.unknown,
            features=config.features,
            chunk_frames=config.chunk_frames,
            shift_frames=config.shift_frames,
            caches=config.caches,
            paths=config.beam,
            stop_ms=config.stop_history_ms,
            tail_ms=config.tail_ms,
            threads=threads,
            max_streams=config.max_streams,
            max_batch=config.max_batch,
            max_wait_ms=config.max_wait_ms,
            low_priority=low_priority,
        )
    except HeadraceError as error:
        # "encoder: why"
        key = error.details.partition(":")[0]
        if key not in files:
            raise
        raise type(error)(f"'{files[key]}': {error.details}") from error
