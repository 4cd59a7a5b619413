"""Which file of a version is the model, and what runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from headrace.errors import InvalidArgumentError
from headrace.protocol import model_config
from headrace.repository.names import check_inner_path
from headrace.repository.scan import ModelEntry

Backend = Literal["openvino", "onnxruntime", "pytorch", "tensorrt", "callback", "speech"]
OnnxEngine = Literal["auto", "openvino", "onnxruntime"]


@dataclass(frozen=True)
class Artifact:
    """A model on disk. `backend` is what config.pbtxt calls it: "openvino" (IR, or ONNX when the
    configuration says so), "onnxruntime" (.onnx), "pytorch" (.pt2, .pt), "tensorrt" (.plan, or the
    .onnx that one is built from), "callback" (.py), "speech" (speech.yaml and the files that it
    names). What executes it is another question: see `engines`."""

    backend: Backend
    path: Path


# In order of how they are looked for; the first one names what a missing file should be called.
_FILENAMES: Mapping[Backend, tuple[str, ...]] = {
    "onnxruntime": ("model.onnx",),
    "openvino": ("model.xml", "model.onnx"),
    "pytorch": ("model.pt2", "model.pt"),
    "tensorrt": ("model.plan", "model.onnx"),
    "callback": ("model.py",),
    "speech": ("speech.yaml",),
}
_BY_SUFFIX: Mapping[str, Backend] = {
    ".onnx": "onnxruntime",
    ".xml": "openvino",
    ".pt2": "pytorch",
    ".pt": "pytorch",
    ".pth": "pytorch",
    ".plan": "tensorrt",
    ".engine": "tensorrt",
    ".py": "callback",
    ".yaml": "speech",
}
PLATFORMS: Mapping[str, Backend] = {
    "onnxruntime_onnx": "onnxruntime",
    "openvino": "openvino",
    "pytorch_libtorch": "pytorch",
    "tensorrt_plan": "tensorrt",
}
_UNSUPPORTED = frozenset(
    {
        *("tensorflow", "tensorflow_graphdef"),
        *("tensorflow_savedmodel", "ensemble", "dali", "fil", "vllm", "tensorrtllm", "repeat"),
        *("identity", "square"),
    }
)


def _refusal(field: str, value: str) -> InvalidArgumentError:
    if value == "python":
        return InvalidArgumentError(
            'backend "python" (class TritonPythonModel) is not supported yet; a model.py with a '
            'class Model is served by backend: "callback"'
        )
    known = _FILENAMES if field == "backend" else PLATFORMS
    state = "is not supported yet" if value in _UNSUPPORTED else "is unknown"
    names = [*known, "auto"] if field == "backend" else list(known)
    return InvalidArgumentError(f'{field} "{value}" {state}; it must be one of {", ".join(names)}')


def backend_of(config: model_config.ModelConfig) -> Backend | None:
    """What `backend` and `platform` of a configuration say; None when they say nothing, or "auto".

    Raises InvalidArgumentError for others than ours and for two that contradict each other.
    """
    backend: Backend | None = None
    if config.backend and config.backend != "auto":
        backend = next((known for known in _FILENAMES if known == config.backend), None)
        if backend is None:
            raise _refusal("backend", config.backend)
    if config.platform and config.platform != config.backend:
        platform = PLATFORMS.get(config.platform)
        if platform is None:
            raise _refusal("platform", config.platform)
        if backend not in (None, platform):
            raise InvalidArgumentError(
                f'backend "{config.backend}" and platform "{config.platform}" contradict: '
                "remove one of them"
            )
        backend = platform
    return backend


def _listing(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir() if path.name != "__pycache__")
    except OSError as error:
        raise InvalidArgumentError(f"cannot read {folder}: {error.strerror}") from None


def _describe(names: list[str]) -> str:
    shown = ", ".join(name.encode("utf-8", "backslashreplace").decode() for name in names[:10])
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"it holds {shown}{more}" if names else "it is empty"


def _checked(backend: Backend, path: Path) -> Artifact:
    if path.is_dir() and path.suffix == ".onnx":  # a directory, when weights lie beside the graph
        inner = path / "model.onnx"
        if not inner.is_file():
            raise InvalidArgumentError(
                f"{path} is a directory without a model.onnx in it; {_describe(_listing(path))}"
            )
        path = inner
    if path.suffix == ".xml" and not path.with_suffix(".bin").is_file():
        raise InvalidArgumentError(
            f"{path} has no weights beside it: {path.with_suffix('.bin').name} is missing; "
            "copy both files of the model"
        )
    return Artifact(backend, path)


def _measurable(config: model_config.ModelConfig, artifact: Artifact) -> Artifact:
    if config.backend == "auto" and artifact.backend in ("tensorrt", "callback", "speech"):
        raise InvalidArgumentError(
            f'backend "auto" measures what can execute .onnx, .xml, .pt2 and .pt files; what '
            f'executes {artifact.path} is no choice: set backend: "{artifact.backend}"'
        )
    return artifact


def find_artifact(entry: ModelEntry, version: int, config: model_config.ModelConfig) -> Artifact:
    """The model file of a version: by `backend`, `platform` and `default_model_filename` of the
    configuration, else by what the version's directory holds.

    Raises InvalidArgumentError saying what was looked for and what is there.
    """
    folder = entry.path / str(version)
    backend = backend_of(config)
    names = _listing(folder)

    if config.default_model_filename:
        inner = check_inner_path(config.default_model_filename, "default_model_filename")
        if backend is None:
            backend = _BY_SUFFIX.get(inner.suffix)
            if backend is None:
                raise InvalidArgumentError(
                    f'default_model_filename "{inner}" does not tell what runs it; set `backend` '
                    f"to one of {', '.join(_FILENAMES)}"
                )
        path = folder / inner
        if not path.exists():
            raise InvalidArgumentError(
                f'{folder} has no "{inner}", the default_model_filename of the configuration; '
                f"{_describe(names)}"
            )
        return _measurable(config, _checked(backend, path))

    if backend is not None:
        wanted = _FILENAMES[backend]
        found = [(backend, name) for name in wanted if name in names][:1]
    else:
        # "openvino" reads ONNX too, but an .onnx file alone speaks for "onnxruntime".
        wanted = tuple(dict.fromkeys(name for files in _FILENAMES.values() for name in files))
        found = [(_BY_SUFFIX[Path(name).suffix], name) for name in wanted if name in names]
    if len({kind for kind, _ in found}) > 1:
        several = ", ".join(name for _, name in found)
        raise InvalidArgumentError(
            f"{folder} holds more than one model: {several}; say which in config.pbtxt, for "
            f'example backend: "{found[0][0]}"'
        )
    if not found:
        candidates = [n for n in names if Path(n).suffix in _BY_SUFFIX]
        fix = (
            f"rename {candidates[0]} to model{Path(candidates[0]).suffix}, or set "
            f'default_model_filename: "{candidates[0]}" in config.pbtxt'
            if len(candidates) == 1
            else "put the model file there"
        )
        raise InvalidArgumentError(
            f"{folder} has no model file: looked for {', '.join(wanted)}; {_describe(names)}; {fix}"
        )
    return _measurable(config, _checked(found[0][0], folder / found[0][1]))


def engines(
    artifact: Artifact, config: model_config.ModelConfig, onnx_engine: OnnxEngine = "auto"
) -> tuple[str, ...]:
    """What may execute an artifact, in the order to try: names out of "openvino", "onnxruntime",
    "pytorch", "callback".

    .onnx files run in OpenVINO's C++ path whatever backend their configuration names; "auto" lets
    onnxruntime take what OpenVINO cannot compile. A configuration decides for its model with
    `parameters { key: "onnx_engine" value { string_value: "onnxruntime" } }`.
    """
    if artifact.backend != "onnxruntime":
        return (artifact.backend,)
    choice: str = onnx_engine
    if "onnx_engine" in config.parameters:
        choice = config.parameters["onnx_engine"].string_value
        if choice not in ("auto", "openvino", "onnxruntime"):
            raise InvalidArgumentError(
                f'parameters["onnx_engine"] is "{choice}"; it must be "auto", "openvino" or '
                '"onnxruntime"'
            )
    return ("openvino", "onnxruntime") if choice == "auto" else (choice,)
