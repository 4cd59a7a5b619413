"""Tensors of tickets as NumPy arrays, and whether an answer is what its ticket asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.datatypes import datatype_of, decode, dtype_of, encode
from headrace.errors import InvalidArgumentError
from headrace.human.tickets import Tensor

__all__ = ["arrays_of", "check_answer", "from_json", "tensors_of", "to_json"]

Array = npt.NDArray[Any]


def tensors_of(arrays: Mapping[str, Array]) -> tuple[Tensor, ...]:
    tensors: list[Tensor] = []
    for name, array in arrays.items():
        datatype = datatype_of(array.dtype)
        tensors.append(Tensor(name, datatype, tuple(array.shape), encode(array, datatype)))
    return tuple(tensors)


def arrays_of(tensors: Sequence[Tensor]) -> dict[str, Array]:
    return {t.name: decode(t.data, t.datatype, t.shape) for t in tensors}


def check_answer(outputs: Sequence[Tensor], answer: Sequence[Tensor]) -> None:
    """Raises InvalidArgumentError naming the output."""
    given = {tensor.name: tensor for tensor in answer}
    if len(given) != len(answer) or given.keys() != {o.name for o in outputs}:
        raise InvalidArgumentError(
            f"an answer has the outputs {', '.join(o.name for o in outputs)}, each once"
        )
    for wanted in outputs:
        tensor = given[wanted.name]
        fits = tensor.datatype == wanted.datatype and len(tensor.shape) == len(wanted.shape)
        if not fits or any(
            n < 0 or (w != -1 and w != n) for w, n in zip(wanted.shape, tensor.shape, strict=True)
        ):
            raise InvalidArgumentError(
                f"output '{wanted.name}' is to be {wanted.datatype} {list(wanted.shape)}, got "
                f"{tensor.datatype} {list(tensor.shape)}"
            )
        decode(tensor.data, tensor.datatype, tensor.shape)


def to_json(tensors: Sequence[Tensor]) -> dict[str, Any]:
    """{name: nested lists}, for people to read; BYTES as text."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(element) for element in value]
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else value

    return {name: plain(array.tolist()) for name, array in arrays_of(tensors).items()}


def from_json(outputs: Sequence[Tensor], answer: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """What a person wrote, as the ticket's outputs. Raises InvalidArgumentError."""
    known = {output.name: output for output in outputs}
    tensors: list[Tensor] = []
    for name, value in answer.items():
        if name not in known:
            raise InvalidArgumentError(
                f"the ticket asks for no output '{name}', only {', '.join(known)}"
            )
        wanted = known[name]
        try:
            array = np.array(value, dtype=dtype_of(wanted.datatype))
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidArgumentError(f"output '{name}': {error}") from None
        shape = tuple(array.shape)
        if len(shape) + 1 == len(wanted.shape) and wanted.shape[0] == 1:
            shape = (1, *shape)  # the one row that there is
        tensors.append(Tensor(name, wanted.datatype, shape, encode(array, wanted.datatype)))
    return tuple(tensors)
