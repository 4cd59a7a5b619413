"""torch.export programs (.pt2): what they take and answer, and how they are called.

    program = TorchProgram(torch, "model.pt2")
    program.inputs, program.outputs     # runtime.TensorSpec, first dimension -1 where it is free
    program.run([tensor, ...])          # {output name: tensor}; tensors in the order of inputs

Inputs have the names of forward()'s arguments. Outputs have the keys of the mapping that forward()
answers (a dict, transformers' ModelOutput), else they are output__0, output__1, ...
"""

from __future__ import annotations

import importlib.util
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from headrace import runtime
from headrace.errors import InvalidArgumentError, UnimplementedError

__all__ = ["DATATYPES", "TorchProgram", "load_program"]

# torch.<name> -> KServe's word.
DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "bfloat16": "BF16",
}


class TorchProgram:
    def __init__(self, torch: Any, path: str, program: Any = None, *, device: str = "cpu") -> None:
        """`program`: what load_program() answered, where it is there already. Raises
        InvalidArgumentError for what is no program, UnimplementedError for one that takes what is
        no tensor."""
        self._path = path
        self._torch = torch
        program = program if program is not None else load_program(torch, path)
        if device != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
        self._module = program.module()
        self._tree = torch.utils._pytree
        self._in_spec = program.call_spec.in_spec
        values = {node.name: node.meta.get("val") for node in program.graph.nodes}
        # What run() is called with goes to these leaves of forward()'s arguments.
        self._leaves: list[Any] = []
        self._slots: list[int] = []
        self.inputs: list[runtime.TensorSpec] = []
        for spec in program.graph_signature.input_specs:
            if spec.kind.name != "USER_INPUT":
                continue
            kind = type(spec.arg).__name__
            if kind == "TensorArgument":
                self._slots.append(len(self._leaves))
                self.inputs.append(self._spec(spec.arg.name, values[spec.arg.name]))
                self._leaves.append(None)
            elif kind == "ConstantArgument":  # as it was when the program was exported
                self._leaves.append(spec.arg.value)
            else:
                raise UnimplementedError(
                    f"{path}: argument '{spec.arg.name}' is no tensor ({kind}); export the model "
                    "with tensors and constants only"
                )
        # None is an answer that forward() does not give.
        answers = [spec.arg for spec in program.graph_signature.output_specs]
        answers = answers[len(answers) - program.call_spec.out_spec.num_leaves :]
        keys = _keys(program.call_spec.out_spec)
        self.named = bool(keys)  # whether the outputs' names are the model's own
        self._answers: list[int] = []
        self.outputs: list[runtime.TensorSpec] = []
        for index, argument in enumerate(answers):
            if type(argument).__name__ != "TensorArgument":
                continue
            name = keys[index] if keys else f"output__{len(self.outputs)}"
            self._answers.append(index)
            self.outputs.append(self._spec(name, values[argument.name]))
        self.most_rows = self._most_rows(program, values)

    def run(self, tensors: Sequence[Any]) -> dict[str, Any]:
        leaves = list(self._leaves)
        for slot, tensor in zip(self._slots, tensors, strict=True):
            leaves[slot] = tensor
        args, kwargs = self._tree.tree_unflatten(leaves, self._in_spec)
        answer = self._tree.tree_leaves(self._module(*args, **kwargs))
        return {
            spec.name: answer[index]
            for spec, index in zip(self.outputs, self._answers, strict=True)
        }

    def _spec(self, name: str, value: Any) -> runtime.TensorSpec:
        datatype = DATATYPES.get(str(value.dtype).removeprefix("torch."))
        if datatype is None:
            raise UnimplementedError(
                f"{self._path}: '{name}' is {value.dtype}, for which there is no datatype"
            )
        return runtime.TensorSpec(
            name, datatype, [d if isinstance(d, int) else -1 for d in value.shape]
        )

    def _most_rows(self, program: Any, values: dict[str, Any]) -> int | None:
        """What the first dimension of the inputs may be at most. None: anything."""
        most: list[int] = []
        for spec in self.inputs:
            if not spec.dims or spec.dims[0] != -1:
                continue
            symbol = values[spec.name].shape[0].node.expr
            bounds = program.range_constraints.get(symbol)
            with suppress(TypeError, ValueError, OverflowError, AttributeError):  # infinite
                most.append(int(bounds.upper))
        return min(most, default=None)


def _keys(spec: Any) -> list[str]:
    """Names of the leaves, where the tree is one mapping of tensors."""
    context = getattr(spec, "context", None)
    if isinstance(context, (list, tuple)) and len(context) == spec.num_leaves:
        return [str(key) for key in context]
    return []


def load_program(torch: Any, path: str) -> Any:
    """A torch.export.ExportedProgram. Raises InvalidArgumentError."""
    try:
        return torch.export.load(path)
    except Exception as error:
        if not _mentions(path, b"transformers."):
            raise InvalidArgumentError(f"PyTorch cannot load {path}: {error}") from error
        # It answers a ModelOutput, which is known to PyTorch once transformers is.
        if importlib.util.find_spec("transformers") is None:
            raise InvalidArgumentError(
                f"PyTorch cannot load {path}: it answers a class of transformers, which is not "
                "installed: pip install transformers, or export the model with return_dict=False"
            ) from error
    import transformers.modeling_outputs  # noqa: F401

    try:
        return torch.export.load(path)
    except Exception as error:
        raise InvalidArgumentError(f"PyTorch cannot load {path}: {error}") from error


def _mentions(path: str, text: bytes) -> bool:
    with suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            small = entry.filename.endswith(".json") and entry.file_size < 64 << 20
            if small and text in archive.read(entry):
                return True
    return False
