"""Warm-up: what a version runs before it serves, so that no client pays for first-time work.

Samples of config.pbtxt `model_warmup`; without any, batches of zeros at 1, at the preferred sizes
and at max_batch_size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headrace import runtime
from headrace.control.signature import datatype_name
from headrace.datatypes import decode, dtype_of
from headrace.errors import InvalidArgumentError, NotFoundError
from headrace.protocol import model_config

__all__ = ["Sample", "configured_samples", "default_samples", "telling_samples"]

# A default warm-up must not be what runs a machine out of memory.
_DEFAULT_BYTES = 64 << 20

# What unknown sizes are set to, in turn: anything goes; then what image and text networks are built
# for, which cannot shrink below their strides.
_GUESSES = (1, 32, 48, 224)
# Where times are compared: the usual first.
_LIKELY = (64, 224, 32, 48, 1)


@dataclass(frozen=True)
class Sample:
    """One run. `guessed`: it may be no input the model can take (unknown sizes were set to 1, or a
    string is empty), so its failure says nothing."""

    name: str
    inputs: dict[str, runtime.Array]  # with the batch dimension
    count: int = 1
    guessed: bool = False


def default_samples(config: model_config.ModelConfig) -> list[list[Sample]]:
    """Zeros at batch 1, at the preferred sizes and at max_batch_size (halved until the inputs fit
    64 MiB; larger preferred ones are left out). Several such lists when sizes are unknown, one a
    guess: the first that the model takes is enough."""
    unknown = any(d < 0 for tensor in config.input for d in tensor.dims)
    return [_zero_samples(config, guess) for guess in (_GUESSES if unknown else _GUESSES[:1])]


def telling_samples(
    config: model_config.ModelConfig, model_path: Path | None
) -> list[list[Sample]]:
    """Inputs whose answers tell something, at the sizes of default_samples(): `model_warmup`'s,
    repeated to those; else random ones (numbers around 0, integers 0 or 1, always the same).
    Several lists as there."""
    configured = list(configured_samples(config, model_path))
    if configured:
        sizes = _batch_sizes(config, 1)
        if sizes == [None]:
            return [configured]
        rows = {len(next(iter(s.inputs.values()), ())) for s in configured}
        more = [_repeated(configured[0], size) for size in sizes if size and size not in rows]
        return [configured + more]
    random = np.random.default_rng(0)
    unknown = any(d < 0 for tensor in config.input for d in tensor.dims)
    return [
        [_random(config, size, guess, random) for size in _batch_sizes(config, guess)]
        for guess in (_LIKELY if unknown else _LIKELY[:1])
    ]


def _repeated(sample: Sample, rows: int) -> Sample:
    arrays = {
        name: np.ascontiguousarray(np.take(array, np.arange(rows), axis=0, mode="wrap"))
        for name, array in sample.inputs.items()
    }
    return Sample(f"{sample.name}, {rows} rows", arrays)


def _random(
    config: model_config.ModelConfig, batch: int | None, guess: int, random: np.random.Generator
) -> Sample:
    zeros = _zeros(config, batch, guess)
    arrays: dict[str, runtime.Array] = {}
    for tensor in config.input:
        datatype = datatype_name(tensor.data_type)
        zero = zeros.inputs[tensor.name]
        if datatype == "BYTES":
            arrays[tensor.name] = zero
        elif datatype == "BF16":
            bits = random.standard_normal(zero.shape).astype("<f4").view("<u4")
            arrays[tensor.name] = (bits >> 16).astype(zero.dtype)
        elif zero.dtype.kind == "f":
            arrays[tensor.name] = random.standard_normal(zero.shape).astype(zero.dtype)
        else:  # token ids and masks stay in range; no row is masked as a whole
            ones = random.integers(0, 2, zero.shape)
            ones[..., :1] = 1
            arrays[tensor.name] = ones.astype(zero.dtype)
    return Sample(zeros.name.replace("zeros", "random numbers"), arrays, guessed=zeros.guessed)


def _zero_samples(config: model_config.ModelConfig, guess: int) -> list[Sample]:
    return [_zeros(config, size, guess) for size in _batch_sizes(config, guess)]


def _batch_sizes(config: model_config.ModelConfig, guess: int) -> list[int | None]:
    """[None] for a model that does not batch."""
    largest = config.max_batch_size
    if largest <= 0:
        return [None]
    one = sum(_row_bytes(tensor, guess) for tensor in config.input)
    while largest > 1 and largest * one > _DEFAULT_BYTES:
        largest //= 2
    preferred = config.dynamic_batching.preferred_batch_size
    sizes = {1, largest, *(size for size in preferred if 0 < size <= largest)}
    return [*sorted(sizes)]


def _dims(tensor: model_config.ModelInput, guess: int) -> list[int]:
    return [guess if d < 0 else d for d in tensor.dims]


def _row_bytes(tensor: model_config.ModelInput, guess: int) -> int:
    datatype = datatype_name(tensor.data_type)
    item = 8 if datatype == "BYTES" else dtype_of(datatype).itemsize
    return math.prod(_dims(tensor, guess)) * item


def _filled(datatype: str, shape: list[int]) -> runtime.Array:
    return (
        np.full(shape, b"", dtype=object)
        if datatype == "BYTES"
        else np.zeros(shape, dtype_of(datatype))
    )


def _zeros(config: model_config.ModelConfig, batch: int | None, guess: int) -> Sample:
    lead = [] if batch is None else [batch]
    inputs = {
        tensor.name: _filled(datatype_name(tensor.data_type), lead + _dims(tensor, guess))
        for tensor in config.input
    }
    guessed = any(
        datatype_name(tensor.data_type) == "BYTES" or any(d < 0 for d in tensor.dims)
        for tensor in config.input
    )
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
    return Sample(f"zeros of {shapes}", inputs, guessed=guessed)


def configured_samples(
    config: model_config.ModelConfig, model_path: Path | None
) -> Iterator[Sample]:
    """`model_warmup`, in order. `input_data_file` is raw wire bytes in the folder `warmup` of the
    model.

    Raises InvalidArgumentError or NotFoundError naming the sample and the input.
    """
    inputs = {tensor.name: tensor for tensor in config.input}
    for index, warmup in enumerate(config.model_warmup):
        name = warmup.name or f"model_warmup[{index}]"
        batch = int(warmup.batch_size)
        if batch > max(config.max_batch_size, 1):
            raise InvalidArgumentError(
                f"model '{config.name}': warm-up '{name}': batch_size {batch} is more than "
                f"max_batch_size {config.max_batch_size}"
            )
        arrays: dict[str, runtime.Array] = {}
        for key, given in warmup.inputs.items():
            where = f"model '{config.name}': warm-up '{name}': input '{key}'"
            if key not in inputs:
                raise InvalidArgumentError(f"{where}: the model has {', '.join(sorted(inputs))}")
            datatype = datatype_name(given.data_type)
            if datatype != datatype_name(inputs[key].data_type):
                raise InvalidArgumentError(
                    f"{where}: data_type is {datatype or 'missing'}, the model expects "
                    f"{datatype_name(inputs[key].data_type)}"
                )
            if any(d < 0 for d in given.dims):
                raise InvalidArgumentError(
                    f"{where}: dims must be known sizes, not {list(given.dims)}"
                )
            lead = [max(batch, 1)] if config.max_batch_size > 0 else []
            arrays[key] = _data(given, datatype, lead, where, model_path)
        yield Sample(name, arrays, count=max(1, int(warmup.count)))


def _data(
    given: model_config.ModelWarmup.Input,
    datatype: str,
    lead: list[int],
    where: str,
    model_path: Path | None,
) -> runtime.Array:
    dims = list(given.dims)
    shape = lead + dims
    kind = given.WhichOneof("input_data_type")
    if kind is None or (kind == "zero_data" and given.zero_data):
        return _filled(datatype, shape)
    if kind == "random_data":
        # Seeded: a warm-up that fails fails every time.
        random = np.random.default_rng(0)
        if datatype == "BYTES":
            return np.array(
                [b"%d" % n for n in random.integers(0, 10, math.prod(shape))], object
            ).reshape(shape)
        dtype = dtype_of(datatype)
        if dtype.kind == "f":
            return random.random(shape).astype(dtype)
        if datatype == "BF16":
            return (random.random(shape).astype("<f4").view("<u4") >> 16).astype(dtype)
        # Small numbers: indices and token ids stay in range.
        return random.integers(0, 2, shape).astype(dtype)
    if kind != "input_data_file" or not given.input_data_file:
        raise InvalidArgumentError(f"{where}: give zero_data, random_data or input_data_file")
    if model_path is None:
        raise InvalidArgumentError(
            f"{where}: there is no folder to take '{given.input_data_file}' from"
        )
    path = model_path / "warmup" / given.input_data_file
    try:
        row = decode(path.read_bytes(), datatype, dims)
    except OSError as error:
        raise NotFoundError(f"{where}: {path}: {error.strerror or error}") from error
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{where}: {path}: {error.details}") from error
    # Triton's rule: the file holds one item, repeated over the batch.
    return np.ascontiguousarray(np.broadcast_to(row, shape))
