"""ONNX models on onnxruntime, as Python callables: one InferenceSession an instance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from headrace import runtime
from headrace.control.loaders import LoadedModel
from headrace.control.signature import plan_text
from headrace.errors import InternalError, InvalidArgumentError, UnimplementedError
from headrace.protocol import model_config

if TYPE_CHECKING:
    from headrace.control.loaders import Source

__all__ = ["OpenedOnnxRuntime"]

_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


def _session(path: str, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning workers of an idle model would take the cores of a busy one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class but this
        raise InvalidArgumentError(f"onnxruntime cannot load {path}: {error}") from error


def _spec(argument: Any, path: str) -> runtime.TensorSpec:
    datatype = _DATATYPES.get(argument.type)
    if datatype is None:
        raise UnimplementedError(
            f"{path}: '{argument.name}' is {argument.type}, which cannot be served through "
            "onnxruntime"
        )
    # Symbolic and unknown sizes are strings and None.
    dims = [d if isinstance(d, int) and d >= 0 else -1 for d in argument.shape]
    return runtime.TensorSpec(argument.name, datatype, dims)


class OpenedOnnxRuntime:
    """Opening it loads the model once; that session becomes the first instance when its thread
    count is the one that load() asks for."""

    runs_user_code = False

    def __init__(self, source: Source) -> None:
        self._path = str(source.artifact.path)
        self.config = source.config
        self._first: Any = _session(self._path, 1)
        self.inputs = [_spec(a, self._path) for a in self._first.get_inputs()]
        self.outputs = [_spec(a, self._path) for a in self._first.get_outputs()]

    def load(
        self, config: model_config.ModelConfig, *, instances: int, threads: int
    ) -> LoadedModel:
        sessions = [self._first] if threads == 1 and self._first is not None else []
        self._first = None
        while len(sessions) < instances:
            sessions.append(_session(self._path, threads))
        callables = [_Instance(session, self.inputs, self.outputs) for session in sessions]
        plan = plan_text(instances, threads)
        model = runtime.callback_model(
            callables,
            self.inputs,
            self.outputs,
            description=f"onnxruntime {onnxruntime.__version__} CPU, {plan}",
            remake=lambda _: _Instance(_session(self._path, threads), self.inputs, self.outputs),
        )
        return LoadedModel(model)


class _Instance:
    def __init__(
        self, session: Any, inputs: list[runtime.TensorSpec], outputs: list[runtime.TensorSpec]
    ) -> None:
        self._session = session
        self._text = frozenset(spec.name for spec in inputs if spec.datatype == "BYTES")
        self._outputs = [spec.name for spec in outputs]

    def __call__(self, inputs: dict[str, runtime.Array]) -> Mapping[str, runtime.Array]:
        feed = {
            name: _decoded(array, name) if name in self._text else array
            for name, array in inputs.items()
        }
        return dict(zip(self._outputs, self._session.run(self._outputs, feed), strict=True))


def _decoded(array: runtime.Array, name: str) -> runtime.Array:
    """onnxruntime's strings are UTF-8 text."""
    decoded = np.empty(array.size, dtype=object)
    try:
        decoded[:] = [item.decode("utf-8") for item in array.reshape(-1)]
    except UnicodeDecodeError as error:
        raise InternalError(f"input '{name}': not UTF-8 text, which onnxruntime needs") from error
    return decoded.reshape(array.shape)
