"""PyTorch models as Python callables: TorchScript (model.pt) and torch.export programs (model.pt2).

Neither file tells datatypes, so config.pbtxt must give `input` and `output`. Inputs go to arguments
of their own name, to position i when they are called `<text>__<i>` (Triton's convention), else in
the order of the configuration. Outputs are taken by key (a dict) or by position.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace import runtime
from headrace.control.loaders import LoadedModel
from headrace.control.signature import plan_text, tensor_specs
from headrace.errors import (
    InternalError,
    InvalidArgumentError,
    UnavailableError,
    UnimplementedError,
)
from headrace.protocol import model_config

if TYPE_CHECKING:
    from headrace.control.loaders import Source

__all__ = ["OpenedTorchModel", "input_positions"]


class OpenedTorchModel:
    """Reads the signature from the configuration; torch is imported by load()."""

    runs_user_code = False

    def __init__(self, source: Source) -> None:
        self._source = source
        self._path = str(source.artifact.path)
        self.config = source.config
        self.inputs = None
        self.outputs = None
        if not source.config.input or not source.config.output:
            raise InvalidArgumentError(
                f"{self._path} does not tell its datatypes: give `input` and `output` in "
                "config.pbtxt"
            )

    def load(
        self, config: model_config.ModelConfig, *, instances: int, threads: int
    ) -> LoadedModel:
        inputs = tensor_specs(config.input, config.max_batch_size)
        outputs = tensor_specs(config.output, config.max_batch_size)
        for spec in (*inputs, *outputs):
            if spec.datatype == "BYTES":
                raise UnimplementedError(
                    f"{self._source}: '{spec.name}' is BYTES; PyTorch has no strings"
                )
        torch = _import_torch(self._path)
        module, arguments = _load_module(torch, self._path)
        names = [spec.name for spec in inputs]
        order = input_positions(names, arguments, str(self._source))
        answers = [spec.name for spec in outputs]

        def remake(_: int) -> _Instance:
            # With weights of its own: those that the others share may be what is broken.
            fresh, _arguments = _load_module(torch, self._path)
            return _Instance(torch, fresh, order, names, answers, threads)

        # A module in eval mode may be called from several threads at once: instances share weights.
        callables = [
            _Instance(torch, module, order, names, answers, threads) for _ in range(instances)
        ]
        plan = plan_text(instances, threads)
        model = runtime.callback_model(
            callables,
            inputs,
            outputs,
            description=f"PyTorch {torch.__version__} CPU, {plan}",
            remake=remake,
        )
        return LoadedModel(model)


def _import_torch(path: str) -> Any:
    try:
        import torch  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise UnavailableError(
            f"{path} needs PyTorch, which is not installed: pip install headrace[torch]"
        ) from error
    return torch


def _load_module(torch: Any, path: str) -> tuple[Any, list[str]]:
    """The callable module and the names of its forward() arguments."""
    try:
        if path.endswith(".pt2"):
            program = torch.export.load(path)
            return program.module(), list(program.graph_signature.user_inputs)
        module = torch.jit.load(path, map_location="cpu")
        module.eval()
        arguments = [a.name for a in module.forward.schema.arguments][1:]  # the first is self
        return module, arguments
    except Exception as error:
        raise InvalidArgumentError(f"PyTorch cannot load {path}: {error}") from error


def input_positions(names: list[str], arguments: list[str], what: str) -> list[int]:
    """For each argument position, which input goes there.

    Raises InvalidArgumentError when `<text>__<i>` names do not number 0..n-1 exactly.
    """
    if set(names) <= set(arguments) and arguments[: len(names)] != names:
        ordered = [a for a in arguments if a in names]
        return [names.index(a) for a in ordered]
    suffixes = [name.rpartition("__")[2] if "__" in name else "" for name in names]
    if names and all(s.isascii() and s.isdigit() for s in suffixes):
        numbers = [int(s) for s in suffixes]
        if sorted(numbers) != list(range(len(names))):
            raise InvalidArgumentError(
                f"{what}: inputs {names} must be numbered __0 to __{len(names) - 1}, each once"
            )
        return [numbers.index(i) for i in range(len(names))]
    return list(range(len(names)))


class _Instance:
    def __init__(
        self,
        torch: Any,
        module: Any,
        order: list[int],
        inputs: list[str],
        outputs: list[str],
        threads: int,
    ) -> None:
        self._torch = torch
        self._module = module
        self._names = [inputs[i] for i in order]
        self._outputs = outputs
        self._threads = threads
        self._prepared = threading.local()

    def __call__(self, inputs: dict[str, runtime.Array]) -> Mapping[str, runtime.Array]:
        torch = self._torch
        if not getattr(self._prepared, "done", False):
            torch.set_num_threads(self._threads)  # of the calling thread's OpenMP team
            self._prepared.done = True
        with torch.inference_mode():
            # Inputs are overwritten after the call; torch may only read them during it.
            arguments = [torch.from_numpy(np.ascontiguousarray(inputs[n])) for n in self._names]
            answer = self._module(*arguments)
        return dict(zip(self._outputs, self._tensors(answer), strict=True))

    def _tensors(self, answer: Any) -> list[runtime.Array]:
        if isinstance(answer, Mapping):
            missing = [name for name in self._outputs if name not in answer]
            if missing:
                raise InternalError(f"the model answered {list(answer)}, without {missing}")
            found = [answer[name] for name in self._outputs]
        else:
            found = list(answer) if isinstance(answer, (list, tuple)) else [answer]
            if len(found) != len(self._outputs):
                raise InternalError(
                    f"the model answered {len(found)} tensors, config.pbtxt names {self._outputs}"
                )
        return [tensor.detach().cpu().contiguous().numpy() for tensor in found]
