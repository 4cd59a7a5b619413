"""Python models: a `model.py` in the version folder.

    class Model:                                   # one object an instance
        inputs = {"x": ("FP32", [4])}              # or in config.pbtxt
        outputs = {"y": ("FP32", [4])}
        max_batch_size = 8                         # dims are then without the batch dimension

        def __init__(self, context: ModelContext): ...       # `context` is optional
        def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]: ...
        def close(self): ...                                 # optional, after the last request

An object that fails again and again is closed and replaced by a new one (docs/FALLBACK.md).

or a function `infer(inputs)` with the same attributes at module level. Arrays carry the batch
dimension first when max_batch_size > 0.
"""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import platform
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from headrace import runtime
from headrace.control.loaders import LoadedModel
from headrace.control.signature import datatype_number, declare, plan_text, tensor_specs
from headrace.errors import HeadraceError, InternalError, InvalidArgumentError
from headrace.logs import get_logger
from headrace.protocol import model_config

if TYPE_CHECKING:
    from headrace.control.loaders import Source

__all__ = ["ModelContext", "OpenedPythonModel", "import_model"]

_log = get_logger("control")
_import_lock = threading.Lock()  # guards sys.modules while a model's files are imported
_serial = itertools.count(1)


@dataclass(frozen=True)
class ModelContext:
    """What a Model's __init__ is given."""

    name: str
    version: int
    path: Path  # the version folder
    parameters: Mapping[str, str]  # config.pbtxt `parameters`
    max_batch_size: int
    instance: int  # 0 .. instances - 1
    threads: int  # cores planned for this instance


class _ModelFolder(threading.local):
    """Finds the modules beside a model.py, for the thread that imports it and nobody else: sys.path
    belongs to every thread, and one that imports while an entry comes or goes misses another."""

    folder: str | None = None

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if self.folder is None or path is not None:
            return None
        return PathFinder.find_spec(name, [self.folder], target)


_model_folder = _ModelFolder()
# Before the path finder, like the first entry of sys.path; after the interpreter's own modules.
sys.meta_path.insert(sys.meta_path.index(PathFinder), _model_folder)


def import_model(path: Path) -> ModuleType:
    """Imports a model.py under a name of its own. Modules beside it can be imported by it; they are
    taken out of sys.modules afterwards, so that models (and versions) never see each other's."""
    folder = str(path.parent)
    name = f"_headrace_model_{next(_serial)}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InvalidArgumentError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    with _import_lock:
        before = set(sys.modules)
        _model_folder.folder = folder
        importlib.invalidate_caches()
        sys.modules[name] = module  # dataclasses and pickle look there while it runs
        try:
            spec.loader.exec_module(module)
        except HeadraceError:
            raise
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            raise _failure(path, error) from error
        finally:
            _model_folder.folder = None
            for new in set(sys.modules) - before:
                origin = getattr(sys.modules.get(new), "__file__", None)
                if origin is not None and Path(origin).is_relative_to(folder):
                    del sys.modules[new]
    return module


def _failure(path: Path, error: BaseException) -> InternalError:
    """Names the file and, where it is the model's own, the line."""
    line = None
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == str(path):
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    if isinstance(error, SyntaxError) and error.filename == str(path):
        line = error.lineno
    where = f"{path}:{line}" if line is not None else str(path)
    return InternalError(f"{type(error).__name__}: {error} ({where})")


class OpenedPythonModel:
    """Imports the file and reads what it declares; load() makes the instances."""

    runs_user_code = True

    def __init__(self, source: Source) -> None:
        self._source = source
        self._path = Path(source.artifact.path)
        module = import_model(self._path)
        self._model: Any = getattr(module, "Model", None)
        self._function: Any = getattr(module, "infer", None)
        if not callable(self._model) and not callable(self._function):
            raise InvalidArgumentError(
                f"{self._path} must define a class `Model` with __call__(inputs), or a function "
                "`infer(inputs)`"
            )
        self.config = self._with_declarations(source.config, self._model or module)
        self.inputs = None
        self.outputs = None
        if not self.config.output:
            raise InvalidArgumentError(
                f"{self._path} does not tell its tensors: give `inputs` and `outputs`, as "
                "attributes "
                "of Model or in config.pbtxt"
            )

    def _with_declarations(
        self, written: model_config.ModelConfig, owner: Any
    ) -> model_config.ModelConfig:
        """The file's declarations, where the configuration says nothing."""
        config = model_config.ModelConfig()
        config.CopyFrom(written)
        if not config.HasField("max_batch_size") and hasattr(owner, "max_batch_size"):
            size = getattr(owner, "max_batch_size", 0)
            if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**31:
                raise InvalidArgumentError(
                    f"{self._path}: max_batch_size is {size!r}; it must be a number, 0 or more"
                )
            config.max_batch_size = size
            if size > 1 and config.WhichOneof("scheduling_choice") is None:
                config.dynamic_batching.SetInParent()
        for attribute, tensors in (("inputs", config.input), ("outputs", config.output)):
            declared = getattr(owner, attribute, None)
            if declared is None or tensors:
                continue
            for name, datatype, dims in declare(declared, f"{self._path}: {attribute}"):
                tensors.add(name=name, data_type=datatype_number(datatype), dims=dims)
        return config

    def load(
        self, config: model_config.ModelConfig, *, instances: int, threads: int
    ) -> LoadedModel:
        closers: dict[int, Callable[[], None]] = {}

        def make(index: int) -> Any:
            # Of a sick instance, which is gone but for this.
            if close := closers.pop(index, None):
                try:
                    close()
                except Exception as error:
                    _log.warning("%s: close() of a sick instance: %r", self._path, error)
            made = self._instantiate(config, index, threads)
            close = getattr(made, "close", None)
            if self._model is not None and callable(close):
                closers[index] = close
            return made

        def close_all() -> None:
            while closers:
                closers.popitem()[1]()

        def remake(index: int) -> Any:
            # What made it sick may be in its module.
            if self._model is None:
                self._function = import_model(self._path).infer
            return make(index)

        try:
            model = runtime.callback_model(
                [make(index) for index in range(instances)],
                tensor_specs(config.input, config.max_batch_size),
                tensor_specs(config.output, config.max_batch_size),
                description=f"Python {platform.python_version()} {self._path.name}, "
                + plan_text(instances, threads),
                remake=remake,
            )
        except BaseException:
            close_all()
            raise
        return LoadedModel(model, [close_all])

    def _instantiate(self, config: model_config.ModelConfig, index: int, threads: int) -> Any:
        if self._model is None:
            return self._function
        context = ModelContext(
            name=self._source.model,
            version=self._source.version,
            path=self._source.version_path,
            parameters={key: value.string_value for key, value in config.parameters.items()},
            max_batch_size=config.max_batch_size,
            instance=index,
            threads=threads,
        )
        try:
            wants_context = bool(inspect.signature(self._model).parameters)
            made = self._model(context) if wants_context else self._model()
        except Exception as error:
            raise _failure(self._path, error) from error
        if not callable(made):
            raise InvalidArgumentError(f"{self._path}: class Model has no __call__(inputs)")
        return made
