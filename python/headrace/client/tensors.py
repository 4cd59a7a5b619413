"""Arrays from what people type or keep in files: `--input NAME=...` of `headrace infer`.

x=@image.npy     a NumPy file
x=@note.txt      the file's bytes, one BYTES element
x=[[1, 2, 3]]    JSON
x=hello          text, for BYTES inputs
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headrace.datatypes import Array, dtype_of
from headrace.errors import InvalidArgumentError, NotFoundError

__all__ = ["fit_shape", "parse_input", "readable"]


def parse_input(argument: str, datatype: str) -> Array:
    """The value part of NAME=VALUE as an array of `datatype`."""
    if argument.startswith("@"):
        return _from_file(Path(argument[1:]), datatype)
    try:
        value = json.loads(argument)
    except json.JSONDecodeError:
        if datatype == "BYTES":
            return _objects(argument)
        raise InvalidArgumentError(
            f"'{_short(argument)}' is neither JSON nor @file; {datatype} inputs are given like "
            "NAME=[[1, 2]] or NAME=@array.npy"
        ) from None
    return _from_json(value, datatype)


def _objects(value: Any) -> Array:
    array = np.asarray(value, dtype=object)
    encoded = np.empty(array.shape, dtype=object)
    for index, item in np.ndenumerate(array):
        encoded[index] = item if isinstance(item, bytes) else str(item).encode("utf-8")
    return encoded


def _from_json(value: Any, datatype: str) -> Array:
    if datatype == "BYTES":
        return _objects(value)
    try:
        plain = np.asarray(value)
        wanted = dtype_of(datatype)
        if plain.size and plain.dtype.kind not in "biuf":
            raise ValueError("not numbers in equally long rows")
        if wanted.kind in "iu" and plain.dtype.kind == "f" and plain.size:
            raise ValueError(f"fractions do not fit {datatype}")
        converted = plain.astype(wanted)
        if wanted.kind in "iu" and not np.array_equal(converted, plain):
            raise ValueError(f"a number does not fit {datatype}")
        return converted
    except (ValueError, OverflowError) as error:
        raise InvalidArgumentError(f"'{_short(json.dumps(value))}': {error}") from None


def _from_file(path: Path, datatype: str) -> Array:
    try:
        if path.suffix == ".npy":
            array: Array = np.load(path, allow_pickle=False)
            return _objects(array) if datatype == "BYTES" else array
        if path.suffix == ".json" and datatype != "BYTES":
            return _from_json(json.loads(path.read_text(encoding="utf-8")), datatype)
        data = path.read_bytes()
    except OSError as error:
        raise NotFoundError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise InvalidArgumentError(f"{path}: {error}") from None
    if datatype != "BYTES":
        raise InvalidArgumentError(f"{path}: {datatype} inputs are read from .npy or .json files")
    element = np.empty((), dtype=object)
    element[()] = data
    return element


def fit_shape(array: Array, shape: Sequence[int]) -> Array:
    """Adds leading dimensions of 1 that the signature has and the value lacks: one row for a model
    that batches. `shape` is the metadata's, -1 = any."""
    missing = len(shape) - array.ndim
    if missing > 0 and all(d in (-1, 1) for d in shape[:missing]):
        return array.reshape((1,) * missing + array.shape)
    return array


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def readable(array: Array) -> Any:
    """For JSON: nested lists; BYTES as text where they are UTF-8, else as "\\x.." escapes."""

    def item(value: Any) -> Any:
        if isinstance(value, list):
            return [item(v) for v in value]
        if isinstance(value, bytes):
            return value.decode("utf-8", "backslashreplace")
        if isinstance(value, float) and value != value:
            return None  # JSON has no NaN
        return value

    return item(array.tolist())
