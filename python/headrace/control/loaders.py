"""From an artifact on disk to a `runtime.Model`. One loader a backend; each reads the signature
first (so that the configuration can be completed from it) and then loads.

    opened = Loaders(engine="auto", cache_dir="").open(source)
    loaded = opened.load(config, instances=1, threads=2)     # loaded.model

Runtimes are imported when a model needs them, never before.
"""

from __future__ import annotations

import importlib.util
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from headrace import runtime
from headrace.errors import (
    HeadraceError,
    InvalidArgumentError,
    UnavailableError,
)
from headrace.logs import get_logger
from headrace.protocol import model_config
from headrace.repository.artifact import Artifact, OnnxEngine, engines

if TYPE_CHECKING:
    from headrace.control.engine_builds import EngineBuilds, EngineJob
    from headrace.control.tensorrt_models import EngineRuntime

__all__ = ["LoadedModel", "Loaders", "OpenedModel", "Source"]

_log = get_logger("control")

_INT8_MODES = ("off", "exact", "dynamic", "auto")  # csrc/backends/openvino/int8_rewrite.h

# config.pbtxt `parameters` that are for others.
_OURS = frozenset(
    {
        "INFERENCE_NUM_THREADS",
        "auto_tolerance",
        "engine_free_dims",
        "int8",
        "intra_op_thread_count",
        "onnx_engine",
    }
)

# config.pbtxt `parameters` that are handed to OpenVINO as they are.
_OPENVINO_PROPERTIES = frozenset(
    {
        "CPU_DENORMALS_OPTIMIZATION",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE",
        "ENABLE_CPU_PINNING",
        "ENABLE_HYPER_THREADING",
        "EXECUTION_MODE_HINT",
        "INFERENCE_PRECISION_HINT",
        "KV_CACHE_PRECISION",
        "MODEL_DISTRIBUTION_POLICY",
        "PERFORMANCE_HINT",
        "SCHEDULING_CORE_TYPE",
    }
)


@dataclass(frozen=True)
class Source:
    """What is to be loaded: a version's artifact and where it lives."""

    model: str
    version: int
    artifact: Artifact
    model_path: Path
    version_path: Path
    config: model_config.ModelConfig  # as written, not completed
    low_priority: bool = False  # others serve meanwhile

    def __str__(self) -> str:
        return f"model '{self.model}' version {self.version}"


@dataclass(frozen=True)
class LoadedModel:
    """`closers` are called after the version has closed. `why` says to people why it runs on what
    it runs on, where that was a choice. `on_cpu`: threads may make it faster. `engine`: what is to
    be built and to take its place. `on_engine`: it is one. `no_engine`: why it is to be one and is
    none."""

    model: runtime.Model
    closers: list[Callable[[], None]] = field(default_factory=list)
    why: str = ""
    on_cpu: bool = True
    engine: EngineJob | None = None
    on_engine: bool = False
    no_engine: str = ""


class OpenedModel(Protocol):
    """An artifact whose signature was read."""

    @property
    def inputs(self) -> list[runtime.TensorSpec] | None:
        """With the batch dimension, -1 = dynamic. None: the artifact does not tell, `config`
        must."""

    @property
    def outputs(self) -> list[runtime.TensorSpec] | None: ...

    @property
    def config(self) -> model_config.ModelConfig:
        """The configuration as written, with what the artifact itself declares filled in."""

    @property
    def runs_user_code(self) -> bool:
        """True for Python models: zeros may mean nothing to them, so they get no default
        warm-up."""

    def load(
        self, config: model_config.ModelConfig, *, instances: int, threads: int
    ) -> LoadedModel:
        """Compiles or instantiates."""


class Loaders:
    """Opens artifacts with the right runtime. Thread-safe.

    `engine` is who runs .onnx files: "openvino", "onnxruntime", or "auto": OpenVINO, and
    onnxruntime (where installed) for what OpenVINO cannot read or compile.
    """

    def __init__(
        self,
        *,
        engine: OnnxEngine = "auto",
        cache_dir: str = "",
        builds: EngineBuilds | None = None,
    ) -> None:
        """`builds`: builds TensorRT's engines; without, there is no `backend: "tensorrt"`."""
        self._builds = builds
        self._tensorrt: EngineRuntime | None = None  # made at first use
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._engine = engine
        self._cache_dir = cache_dir
        self._lock = threading.Lock()
        self._openvino: runtime.OpenVinoBackend | None = None  # made at first use

    def open(self, source: Source) -> OpenedModel:
        """Raises InvalidArgumentError, NotFoundError or UnavailableError, naming the file and the
        fix."""
        if source.artifact.backend == "tensorrt":
            return self._open_tensorrt(source)
        candidates = engines(source.artifact, source.config, self._engine)
        if source.config.backend == "auto":
            return self._open_measured(source, candidates)
        if "openvino" in candidates:
            _int8(source, source.config)  # here, since onnxruntime would take what fails later
        if candidates == ("openvino", "onnxruntime"):
            return self._open_onnx_auto(source)
        (engine,) = candidates
        if engine == "openvino":
            return self._open_openvino(source)
        if engine == "onnxruntime":
            return self._open_onnxruntime(source)
        if engine == "pytorch":
            from headrace.control.torch_models import OpenedTorchModel

            return OpenedTorchModel(source)
        from headrace.control.python_models import OpenedPythonModel

        return OpenedPythonModel(source)

    def openvino(self) -> runtime.OpenVinoBackend:
        with self._lock:
            if self._openvino is None:
                self._openvino = runtime.OpenVinoBackend()
            return self._openvino

    def _open_tensorrt(self, source: Source) -> OpenedModel:
        from headrace.control import tensorrt_models

        if self._builds is None:
            raise UnavailableError(f"{source}: nobody builds engines here")
        with self._lock:
            if self._tensorrt is None:
                self._tensorrt = tensorrt_models.TensorRt()
        path = source.artifact.path
        onnx = path if path.suffix == ".onnx" else path.with_name("model.onnx")
        if path != onnx:
            try:
                return tensorrt_models.OpenedPlan(source, self._tensorrt)
            except (InvalidArgumentError, UnavailableError) as error:
                if not onnx.is_file():
                    raise type(error)(
                        f"{source}: {path} cannot be executed: {error.details}. The model.onnx "
                        "that it was built from, beside it, would be served instead"
                    ) from error
                _log.warning("%s: %s is not used: %s", source, path, error.details)
        source = replace(source, artifact=Artifact("tensorrt", onnx))
        return tensorrt_models.OpenedTensorRt(
            source, self._tensorrt, self._builds, self._open_instead
        )

    def _open_instead(self, source: Source) -> OpenedModel:
        """Who serves an ONNX file while there is no engine."""
        as_onnx = replace(source, artifact=Artifact("onnxruntime", source.artifact.path))
        try:
            return self.open(as_onnx)
        except HeadraceError as error:
            raise type(error)(
                f"{error.details}; nothing else can serve it until it has an engine: make its "
                "model.plan with `headrace build --place`"
            ) from error

    def _open_openvino(self, source: Source, int8: str = "") -> OpenedModel:
        """`int8`: instead of what the configuration says."""
        return _OpenedOpenVino(source, self.openvino(), self._cache_dir, int8)

    def _open_converted(self, source: Source) -> OpenedModel:
        """A torch.export program on OpenVINO."""
        from headrace.control.torch_models import import_torch
        from headrace.control.torch_openvino import convert

        with self._lock:
            if not self._cache_dir and self._temporary is None:
                self._temporary = tempfile.TemporaryDirectory(prefix="headrace-converted-")
            folder = self._temporary.name if self._temporary is not None else self._cache_dir
        path = source.artifact.path
        xml = convert(import_torch(str(path)), path, Path(folder) / "converted")
        return self._open_openvino(replace(source, artifact=Artifact("openvino", xml)), "exact")

    def _open_onnxruntime(self, source: Source) -> OpenedModel:
        if importlib.util.find_spec("onnxruntime") is None:
            raise UnavailableError(
                f"{source}: {source.artifact.path} is to run on onnxruntime, which is not "
                "installed: "
                "pip install onnxruntime"
            )
        from headrace.control.onnxruntime_models import OpenedOnnxRuntime

        return OpenedOnnxRuntime(source)

    def _open_onnx_auto(self, source: Source) -> OpenedModel:
        fallback = importlib.util.find_spec("onnxruntime") is not None
        try:
            opened = self._open_openvino(source)
        except HeadraceError as error:
            if (
                not fallback or error.code == 5
            ):  # NOT_FOUND: nobody can read a file that is not there
                raise
            try:
                other = self._open_onnxruntime(source)
            except HeadraceError:
                raise error from None  # broken for both: OpenVINO's word is the first choice's
            _warn_fallback(source, "read", error)
            return other
        return _WithFallback(source, opened, self._open_onnxruntime) if fallback else opened

    def _open_measured(self, source: Source, engines: tuple[str, ...]) -> OpenedModel:
        """`backend: "auto"`. The first candidate is the reference."""
        from headrace.control.auto_backend import Candidate, OpenedAuto, tolerance
        from headrace.control.decisions import Decisions

        given = tolerance(source)
        said = "int8" in source.config.parameters
        int8 = _int8(source, source.config)
        if int8 in ("dynamic", "auto") and given is None:
            raise InvalidArgumentError(
                f'{source}: backend "auto" and parameters["int8"] "{int8}": give "auto_tolerance", '
                "the relative error that INT8 may have"
            )
        candidates: list[Candidate] = []
        if "openvino" in engines:
            base = int8 if int8 == "off" else "exact"
            candidates.append(Candidate("openvino", lambda: self._open_openvino(source, base)))
        if "onnxruntime" in engines and (
            importlib.util.find_spec("onnxruntime") is not None or len(engines) == 1
        ):
            candidates.append(Candidate("onnxruntime", lambda: self._open_onnxruntime(source)))
        if "openvino" in engines and given is not None and (not said or int8 != base):
            mode = int8 if said else "dynamic"
            candidates.append(
                Candidate(f"openvino int8 {mode}", lambda: self._open_openvino(source, mode))
            )
        if "pytorch" in engines:
            from headrace.control.torch_models import OpenedTorchModel

            candidates.append(Candidate("pytorch", lambda: OpenedTorchModel(source)))
            if source.artifact.path.suffix == ".pt2":
                candidates.append(
                    Candidate("openvino converted", lambda: self._open_converted(source))
                )
        return OpenedAuto(source, candidates, Decisions(self._cache_dir), given)


def _warn_fallback(source: Source, verb: str, error: HeadraceError) -> None:
    _log.warning(
        "%s: OpenVINO cannot %s it (%s); it runs on onnxruntime instead",
        source,
        verb,
        " ".join(error.details.split())[:300],
    )


class _OpenedOpenVino:
    runs_user_code = False

    def __init__(
        self, source: Source, backend: runtime.OpenVinoBackend, cache_dir: str, int8: str = ""
    ) -> None:
        self._source = source
        self._mode = int8
        self._backend = backend
        self._cache_dir = cache_dir
        self.config = source.config
        self.inputs, self.outputs = backend.inspect(
            str(source.artifact.path), low_priority=source.low_priority
        )

    def load(
        self, config: model_config.ModelConfig, *, instances: int, threads: int
    ) -> LoadedModel:
        model = self._backend.load(
            str(self._source.artifact.path),
            device="CPU",
            instances=instances,
            threads=threads,
            cache_dir=self._cache_dir,
            low_priority=self._source.low_priority,
            int8=self._mode or _int8(self._source, config),
            properties=_openvino_properties(self._source, config),
        )
        return LoadedModel(model)


def _openvino_properties(source: Source, config: model_config.ModelConfig) -> dict[str, str]:
    properties: dict[str, str] = {}
    for key, value in config.parameters.items():
        if key in _OPENVINO_PROPERTIES:
            properties[key] = value.string_value
        elif key not in _OURS and not key.startswith("headrace."):
            _log.warning("%s: parameter '%s' is not used by the OpenVINO backend", source, key)
    return properties


def _int8(source: Source, config: model_config.ModelConfig) -> str:
    """Which linear layers run on our INT8 kernels, after `parameters { key: "int8" }`."""
    if "int8" not in config.parameters:
        return "exact"
    choice: str = config.parameters["int8"].string_value
    if choice not in _INT8_MODES:
        raise InvalidArgumentError(
            f'{source}: parameters["int8"] is "{choice}"; it must be '
            + ", ".join(f'"{mode}"' for mode in _INT8_MODES[:-1])
            + f' or "{_INT8_MODES[-1]}"'
        )
    return choice


class _WithFallback:
    """OpenVINO, then onnxruntime when OpenVINO cannot compile what it could read."""

    runs_user_code = False

    def __init__(
        self, source: Source, first: OpenedModel, other: Callable[[Source], OpenedModel]
    ) -> None:
        self._source = source
        self._first = first
        self._other = other
        self.config = source.config
        self.inputs = first.inputs
        self.outputs = first.outputs

    def load(
        self, config: model_config.ModelConfig, *, instances: int, threads: int
    ) -> LoadedModel:
        try:
            return self._first.load(config, instances=instances, threads=threads)
        except HeadraceError as error:
            try:
                other = self._other(self._source)
                loaded = other.load(config, instances=instances, threads=threads)
            except HeadraceError:
                raise error from None
            _warn_fallback(self._source, "compile", error)
            return loaded
