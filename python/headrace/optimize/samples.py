"""Inputs to calibrate and measure with: read from .npz files, checked against the model's inputs,
divided into those for calibration and those held out.

A file holds an array for each input of the model. Where the model's first dimension is free, or a
fixed batch, the rows of the arrays are samples; otherwise the file is one sample. An array `labels`
(the right class of each row) is kept apart.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.errors import InvalidArgumentError, NotFoundError

__all__ = ["LABELS", "Chunk", "Division", "Input", "divide", "read_chunks"]

Array = npt.NDArray[Any]
LABELS = "labels"
# Rows that run together; fewer where a row is large, since all activations of a chunk are held.
_ROWS = 32
_ELEMENTS = 1 << 20
_SEARCH = 32


@dataclass(frozen=True)
class Input:
    """An input of the model; None is a free dimension."""

    name: str
    dtype: npt.DTypeLike
    dims: tuple[int | None, ...]

    @property
    def shape_text(self) -> str:
        return "[" + ", ".join("any" if d is None else str(d) for d in self.dims) + "]"


@dataclass(frozen=True)
class Chunk:
    """What runs at a time. `joinable`: rows may run together with others of their shape."""

    inputs: dict[str, Array]
    labels: Array | None = None
    rows: int = 1
    joinable: bool = False


@dataclass(frozen=True)
class Division:
    """`observe`: what scales come from. `search`: what variants are compared on, since on the
    samples that thresholds come from, those that clip most look best. `held_out`: what is reported,
    and how many layers stay in float comes from."""

    observe: list[Chunk]
    search: list[Chunk]
    held_out: list[Chunk]

    @staticmethod
    def rows(chunks: Sequence[Chunk]) -> int:
        return sum(chunk.rows for chunk in chunks)


def read_chunks(path: Path, inputs: Sequence[Input]) -> list[Chunk]:
    """A chunk a row (or a fixed batch of rows): `divide` joins them. Raises NotFoundError, or
    InvalidArgumentError for files without samples or that do not fit the model."""
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    if not files:
        raise NotFoundError(f"{path} has no .npz files; write them with numpy.savez(file, input=x)")
    chunks: list[Chunk] = []
    for file in files:
        chunks += _rows_of(file, _read(file), inputs)
    if not chunks:
        raise InvalidArgumentError(f"{path} has no samples: the arrays have no rows")
    return chunks


def divide(
    chunks: Sequence[Chunk], held_out: Sequence[Chunk] | None = None, *, most: int = 512
) -> Division:
    """At random, always the same way; at most `most` rows a part. `held_out` when it is given
    apart; else a quarter. Few samples serve several purposes."""
    order = [chunks[i] for i in np.random.default_rng(0).permutation(len(chunks))]
    if held_out is None:
        count = max(1, len(order) // 4)
        held_out, order = order[:count], order[count:] or order
    count = min(_SEARCH, max(1, len(order) // 4))
    search, observe = order[:count], order[count:] or order
    return Division(*(_join(part[:most]) for part in (observe, search, held_out)))


def _join(chunks: Sequence[Chunk]) -> list[Chunk]:
    joined: list[Chunk] = []
    waiting: list[Chunk] = []

    def flush() -> None:
        if waiting:
            first = waiting[0]
            labels = [c.labels for c in waiting if c.labels is not None]
            joined.append(
                Chunk(
                    {n: np.concatenate([c.inputs[n] for c in waiting]) for n in first.inputs},
                    np.concatenate(labels) if len(labels) == len(waiting) else None,
                    sum(c.rows for c in waiting),
                    True,
                )
                if len(waiting) > 1
                else first
            )
            waiting.clear()

    for chunk in chunks:
        size = max(1, sum(a.size for a in chunk.inputs.values()))
        limit = max(1, min(_ROWS, _ELEMENTS // size))
        full = len(waiting) >= limit
        if waiting and (not chunk.joinable or full or _shapes(chunk) != _shapes(waiting[0])):
            flush()
        if chunk.joinable:
            waiting.append(chunk)
        else:
            joined.append(chunk)
    flush()
    return joined


def _shapes(chunk: Chunk) -> list[tuple[int, ...]]:
    return [chunk.inputs[name].shape for name in sorted(chunk.inputs)]


def _read(path: Path) -> dict[str, Array]:
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise InvalidArgumentError(f"{path} is no .npz file; write it with numpy.savez")
            return {name: loaded[name] for name in loaded.files}
    except FileNotFoundError:
        raise NotFoundError(f"{path} does not exist") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InvalidArgumentError(f"{path} is no .npz file of numbers: {error}") from None


def _rows_of(file: Path, arrays: dict[str, Array], inputs: Sequence[Input]) -> list[Chunk]:
    labels = arrays.pop(LABELS, None) if all(i.name != LABELS for i in inputs) else None
    known = {i.name for i in inputs}
    if missing := sorted(known - set(arrays)):
        has = ", ".join(sorted(arrays)) or "nothing"
        raise InvalidArgumentError(
            f"{file} has no array '{missing[0]}', which the model takes; it has {has}"
        )
    if extra := sorted(set(arrays) - known):
        raise InvalidArgumentError(
            f"{file} has an array '{extra[0]}'; the model takes {', '.join(sorted(known))}"
        )
    for one in inputs:
        _check(file, one, arrays[one.name])
    steps = {one.dims[0] if one.dims else -1 for one in inputs}
    step = next(iter(steps)) if len(steps) == 1 else -1
    if step == -1:  # no batch dimension that all inputs share
        return [Chunk(arrays)]
    counts = {name: len(array) for name, array in arrays.items()}
    count = next(iter(counts.values()))
    if len(set(counts.values())) > 1:
        text = ", ".join(f"'{name}' {n}" for name, n in counts.items())
        raise InvalidArgumentError(f"{file}: the arrays have different numbers of rows: {text}")
    if labels is not None and (labels.dtype.kind not in "iu" or labels.reshape(-1).size != count):
        raise InvalidArgumentError(
            f"{file}: 'labels' are {labels.size} of {labels.dtype}; expected {count} class numbers"
        )
    labels = None if labels is None else labels.reshape(-1)
    rows = step or 1
    if count % rows:
        raise InvalidArgumentError(f"{file} has {count} rows; the model takes {rows} at a time")
    return [
        Chunk(
            {name: array[at : at + rows] for name, array in arrays.items()},
            None if labels is None else labels[at : at + rows],
            rows,
            step is None,
        )
        for at in range(0, count, rows)
    ]


def _check(file: Path, one: Input, array: Array) -> None:
    if array.dtype != one.dtype:
        dtype = np.dtype(one.dtype).name
        raise InvalidArgumentError(
            f"{file}: '{one.name}' is {array.dtype}; the model takes {dtype} (astype('{dtype}'))"
        )
    batch = one.dims[:1]
    fits = array.ndim == len(one.dims) and all(
        d is None or d == size
        for d, size in zip(one.dims[len(batch) :], array.shape[len(batch) :], strict=True)
    )
    if not fits:
        raise InvalidArgumentError(
            f"{file}: '{one.name}' has shape {list(array.shape)}; the model takes "
            f"{one.shape_text}, where the first dimension is the samples"
            if batch
            else f"{file}: '{one.name}' has shape {list(array.shape)}; the model takes a scalar"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        at = np.argwhere(~np.isfinite(array))[0].tolist()
        raise InvalidArgumentError(f"{file}: '{one.name}' has {array[tuple(at)]} at {at}")
