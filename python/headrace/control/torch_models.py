"""PyTorch models as Python callables: torch.export programs (model.pt2), TorchScript (model.pt).

A program tells its signature. TorchScript does not tell datatypes, so config.pbtxt must give
`input` and `output`. Inputs go to arguments of their own name, to position i when they are called
`<text>__<i>` (Triton's convention), else in the order of the configuration. Outputs are taken by
key (a dict) or by position.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace import runtime
from headrace.control.loaders import LoadedModel
from headrace.control.signature import plan_text, tensor_specs
from headrace.control.torch_programs import TorchProgram
from headrace.errors import (
    InternalError,
    InvalidArgumentError,
    UnavailableError,
    UnimplementedError,
)
from headrace.protocol import model_config

if TYPE_CHECKING:
    from headrace.control.loaders import Source

__all__ = ["OpenedTorchModel", "import_torch", "input_positions"]

# Programs that take fewer rows say so; others are as the server's default has it.
_USUAL = 32


class OpenedTorchModel:
    runs_user_code = False

    def __init__(self, source: Source) -> None:
        self._source = source
        self._path = str(source.artifact.path)
        self._first: TorchProgram | None = None
        self.config = source.config
        self.inputs: list[runtime.TensorSpec] | None = None
        self.outputs: list[runtime.TensorSpec] | None = None
        if self._path.endswith(".pt2"):
            self._first = TorchProgram(import_torch(self._path), self._path)
            self._read_signature(self._first)
        elif not source.config.input or not source.config.output:
            raise InvalidArgumentError(
                f"{self._path} does not tell its datatypes: give `input` and `output` in "
                "config.pbtxt"
            )

    def _read_signature(self, program: TorchProgram) -> None:
        """As far as the configuration speaks of the same names; it may have others, which are taken
        by position."""
        config = model_config.ModelConfig()
        config.CopyFrom(self.config)
        if {tensor.name for tensor in config.input} <= {spec.name for spec in program.inputs}:
            self.inputs = program.inputs
        if {tensor.name for tensor in config.output} <= {spec.name for spec in program.outputs}:
            self.outputs = program.outputs
        every = [*program.inputs, *program.outputs]
        batches = all(spec.dims and spec.dims[0] == -1 for spec in every)
        most = program.most_rows
        if not config.HasField("max_batch_size") and batches and most is not None and most < _USUAL:
            config.max_batch_size = most
            if config.WhichOneof("scheduling_choice") is None:
                config.dynamic_batching.SetInParent()
        self.config = config

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
        torch = import_torch(self._path)
        device = _device(torch, config, str(self._source))
        call, arguments = self._call(torch, device, self._first if device == "cpu" else None)
        self._first = None
        order = input_positions([spec.name for spec in inputs], arguments, str(self._source))
        given = [inputs[i] for i in order]

        def remake(_: int) -> _Instance:
            # With weights of its own: those that the others share may be what is broken.
            fresh, _arguments = self._call(torch, device)
            return _Instance(torch, fresh, given, outputs, threads, device)

        # A module in eval mode may be called from several threads at once: instances share weights.
        callables = [
            _Instance(torch, call, given, outputs, threads, device) for _ in range(instances)
        ]
        plan = plan_text(instances, threads)
        model = runtime.callback_model(
            callables,
            inputs,
            outputs,
            description=f"PyTorch {torch.__version__} {device.upper()}, {plan}",
            remake=remake,
        )
        return LoadedModel(model, on_cpu=device == "cpu")

    def _call(
        self, torch: Any, device: str, program: TorchProgram | None = None
    ) -> tuple[Callable[[list[Any]], Any], list[str]]:
        """What is called with a list of tensors, and the names of its arguments."""
        if self._path.endswith(".pt2"):
            program = program or TorchProgram(torch, self._path, device=device)
            arguments = [spec.name for spec in program.inputs]
            if program.named:
                return program.run, arguments
            run = program.run
            return lambda tensors: [*run(tensors).values()], arguments
        try:
            module = torch.jit.load(self._path, map_location=device)
            module.eval()
            arguments = [a.name for a in module.forward.schema.arguments][1:]  # the first is self
        except Exception as error:
            raise InvalidArgumentError(f"PyTorch cannot load {self._path}: {error}") from error
        return lambda tensors: module(*tensors), arguments


def import_torch(path: str) -> Any:
    try:
        import torch  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise UnavailableError(
            f"{path} needs PyTorch, which is not installed: pip install headrace[torch]"
        ) from error
    return torch


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


def _device(torch: Any, config: model_config.ModelConfig, what: str) -> str:
    """ "cpu", or what instance groups of KIND_GPU ask for. Raises UnavailableError without one."""
    kind = model_config.ModelInstanceGroup.KIND_GPU
    groups = [group for group in config.instance_group if group.kind == kind]
    if not groups:
        return "cpu"
    if not torch.cuda.is_available():
        raise UnavailableError(
            f"{what}: an instance group has kind KIND_GPU, and PyTorch {torch.__version__} finds "
            "no GPU: set kind: KIND_CPU in config.pbtxt"
        )
    wanted = {gpu for group in groups for gpu in group.gpus}
    if len(wanted) > 1 or len(groups) < len(config.instance_group):
        raise UnimplementedError(f"{what}: all instances of a PyTorch model are on one GPU")
    return f"cuda:{min(wanted)}" if wanted else "cuda"


class _Instance:
    def __init__(
        self,
        torch: Any,
        call: Callable[[list[Any]], Any],
        inputs: list[runtime.TensorSpec],
        outputs: list[runtime.TensorSpec],
        threads: int,
        device: str,
    ) -> None:
        """`inputs`: in the order of the arguments."""
        self._torch = torch
        self._call = call
        # BF16 arrives and leaves as bit patterns, for NumPy has none.
        self._inputs = [(spec.name, spec.datatype == "BF16") for spec in inputs]
        self._outputs = [spec.name for spec in outputs]
        self._threads = threads
        self._device = device
        self._prepared = threading.local()

    def __call__(self, inputs: dict[str, runtime.Array]) -> Mapping[str, runtime.Array]:
        torch = self._torch
        if not getattr(self._prepared, "done", False):
            torch.set_num_threads(self._threads)  # of the calling thread's OpenMP team
            self._prepared.done = True
        with torch.inference_mode():
            # Inputs are overwritten after the call; torch may only read them during it.
            arguments = []
            for name, bits in self._inputs:
                tensor = torch.from_numpy(np.ascontiguousarray(inputs[name]))
                tensor = tensor.view(torch.bfloat16) if bits else tensor
                arguments.append(tensor.to(self._device))  # the same tensor on the CPU
            answer = self._call(arguments)
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
        return [self._array(tensor) for tensor in found]

    def _array(self, tensor: Any) -> runtime.Array:
        """Shares the tensor's memory where it can."""
        torch = self._torch
        dense = tensor.detach().cpu().contiguous()
        if dense.dtype == torch.bfloat16:
            dense = dense.view(torch.uint16)
        array: runtime.Array = dense.numpy()
        return array
