"""`backend: "tensorrt"`: engines (model.plan), and ONNX files whose engine is built for this GPU
while another backend serves.

A plan that is not of this GPU or TensorRT is built again from the model.onnx beside it. Where there
is no TensorRT or no GPU, an ONNX file is served by its fallback, and `headrace models` says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from headrace import runtime
from headrace.control.engine_builds import Device, EngineBuilds, EngineJob, key_of
from headrace.control.loaders import LoadedModel, OpenedModel, Source
from headrace.errors import HeadraceError, InvalidArgumentError, NotFoundError, UnavailableError
from headrace.logs import get_logger
from headrace.optimize.engines import FREE, MAX_PROFILES, EngineSpec
from headrace.protocol import model_config

__all__ = ["EngineRuntime", "OpenedPlan", "OpenedTensorRt", "TensorRt", "engine_spec"]

_log = get_logger("control")


class EngineRuntime(Protocol):
    """What executes engines."""

    def device(self) -> Device:
        """Raises UnavailableError saying what is missing."""

    def load(self, path: Path) -> runtime.Model:
        """Raises InvalidArgumentError for an engine of another GPU or version."""


class TensorRt:
    """An EngineRuntime: libheadrace_tensorrt.so."""

    def __init__(self, library: str = "") -> None:
        beside = Path(__file__).parents[1] / "libheadrace_tensorrt.so"  # where the wheel has it
        name = library or (str(beside) if beside.exists() else beside.name)
        self._backend = runtime.TensorRtBackend(name)

    def device(self) -> Device:
        return Device(**self._backend.device())

    def load(self, path: Path) -> runtime.Model:
        return self._backend.load(str(path))


def engine_spec(
    config: model_config.ModelConfig, inputs: Sequence[runtime.TensorSpec] | None
) -> EngineSpec:
    """Of a completed configuration: a profile up to 1, to each preferred batch size and to
    max_batch_size. Raises InvalidArgumentError for parameters that make no sense."""
    most = config.max_batch_size
    sizes = sorted({1, most, *config.dynamic_batching.preferred_batch_size}) if most > 0 else []
    sizes = [size for size in sizes if 0 < size <= most]
    if len(sizes) > MAX_PROFILES:  # the smallest, and the largest
        sizes = [*sizes[: MAX_PROFILES - 1], most]
    dims: dict[str, tuple[int, ...]] = {}
    known = {spec.name: list(spec.dims) for spec in inputs or ()}
    for tensor in config.input:
        said = list(tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims)
        whole = ([-1] if most > 0 else []) + said
        if known.get(tensor.name) not in (None, whole):
            dims[tensor.name] = tuple(whole)
    return EngineSpec(tuple(sizes), _free(config), dims)


def _free(config: model_config.ModelConfig) -> tuple[int, int, int]:
    if "engine_free_dims" not in config.parameters:
        return FREE
    text = config.parameters["engine_free_dims"].string_value
    try:
        least, usual, most = (int(part) for part in text.split(","))
    except ValueError:
        raise InvalidArgumentError(
            f'model \'{config.name}\': parameters["engine_free_dims"] is "{text}"; it must be '
            'least, usual and most, as "1,64,256"'
        ) from None
    return least, usual, most


class OpenedPlan:
    """An engine that somebody built."""

    runs_user_code = False

    def __init__(self, source: Source, engines: EngineRuntime) -> None:
        """Raises UnavailableError (no TensorRT, no GPU) and InvalidArgumentError (not of these)."""
        engines.device()
        self._model = engines.load(source.artifact.path)
        self.config = source.config
        self.inputs = self._model.inputs
        self.outputs = self._model.outputs

    def load(
        self, config: model_config.ModelConfig, *, instances: int, threads: int
    ) -> LoadedModel:
        return LoadedModel(self._model, why="its own plan", on_cpu=False, on_engine=True)


class OpenedTensorRt:
    """An ONNX file. Its signature is the fallback's."""

    runs_user_code = False

    def __init__(
        self,
        source: Source,
        engines: EngineRuntime,
        builds: EngineBuilds,
        fallback: Callable[[Source], OpenedModel],
    ) -> None:
        self._source = source
        self._engines = engines
        self._builds = builds
        self._fallback = fallback(source)
        self.config = source.config
        self.inputs = self._fallback.inputs
        self.outputs = self._fallback.outputs

    def load(
        self, config: model_config.ModelConfig, *, instances: int, threads: int
    ) -> LoadedModel:
        spec = engine_spec(config, self.inputs)
        try:
            device = self._engines.device()
        except UnavailableError as error:
            return self._without(config, instances, threads, error.details)
        key = key_of(self._source.artifact.path, spec, device)
        plan = self._builds.cache.find(key)
        if plan is not None:
            try:
                model = self._engines.load(plan)
            except InvalidArgumentError as error:
                if self._builds.built_here(key):  # the next one would be no better
                    return self._without(config, instances, threads, error.details)
                _log.warning("%s: %s; it is built again", self._source, error.details)
                self._builds.cache.drop(key)
            except NotFoundError:
                pass  # another process has built it anew, or dropped it
            except HeadraceError as error:  # a good one, and no memory: the next load may take it
                return self._without(config, instances, threads, error.details)
            else:
                why = (
                    f"the engine for {device.gpu} was built from {self._source.artifact.path.name}"
                )
                return LoadedModel(model, why=why, on_cpu=False, on_engine=True)
        if failure := self._builds.failure(key):
            return self._without(config, instances, threads, failure)
        job = EngineJob(
            self._source.model,
            self._source.version,
            self._source.artifact.path,
            spec,
            device,
            key,
        )
        loaded = self._fallback.load(config, instances=instances, threads=threads)
        why = f"until its engine for {device.gpu} is built"
        return replace(loaded, why=why, engine=job)

    def _without(
        self, config: model_config.ModelConfig, instances: int, threads: int, reason: str
    ) -> LoadedModel:
        reason = " ".join(reason.split())
        loaded = self._fallback.load(config, instances=instances, threads=threads)
        _log.warning("%s runs without TensorRT: %s", self._source, reason)
        return replace(loaded, why=f"no TensorRT engine: {reason}", no_engine=reason)
