"""INT8 linear layers (W8A8) for arrays that are in this process already: NumPy, torch, cupy, or
anything with DLPack.

    layer = pack(weights, bias, activation="gelu")     # weights (outputs, inputs), once
    y = linear_w8a8(x, layer)                          # x (rows, inputs) -> y (rows, outputs)
    q, scale = quantize_per_token(x)                   # int8 (rows, columns), float32 (rows,)

Arrays on the CPU run on the kernels of csrc/kernels (the best instruction set that is there), those
on a CUDA device (torch or cupy) on csrc/kernels/cuda, queued on `stream` (a cudaStream_t as an
int). A layer computes where its weights are; `x` must be there too. Answers are of the library and
on the device of `x`. Weights and activations are symmetric int8 with a scale an output channel and
a row (on the CPU activations have a zero point, and 7 bits with AVX2); sums are exact.

Errors: InvalidArgumentError; UnavailableError for CUDA arrays where the kernels were not built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from headrace import cuda_kernels
from headrace.errors import InvalidArgumentError
from headrace.runtime import Int8Linear

__all__ = ["PackedLinear", "linear_w8a8", "pack", "quantize_per_token"]

Tensor: TypeAlias = Any  # whatever has __dlpack__

# The smallest magnitude that counts (csrc/kernels/cuda/reduce.cuh).
_TINY = np.float32(2.0**-100)
_FLOATS = ("float32", "float16")


@dataclass(frozen=True)
class PackedLinear:
    """A layer's weights, where and how its kernels want them. Made by `pack`."""

    inputs: int
    outputs: int
    activation: str
    cpu: Int8Linear | None = None
    # On CUDA: int8 (outputs, inputs rounded up to 16), float32 (outputs,), float32 (outputs,).
    weights: Tensor | None = None
    scales: Tensor | None = None
    bias: Tensor | None = None

    @property
    def on_cuda(self) -> bool:
        return self.cpu is None


def _on_cuda(array: Tensor, what: str) -> bool:
    if not hasattr(array, "__dlpack_device__"):
        raise InvalidArgumentError(f"{what}: {type(array).__name__} has no __dlpack__")
    kind = int(array.__dlpack_device__()[0])
    if kind not in (cuda_kernels.CPU, cuda_kernels.CUDA):
        raise InvalidArgumentError(f"{what}: neither on the CPU nor on a CUDA device")
    return kind == cuda_kernels.CUDA


def _numpy(array: Tensor, what: str, dtypes: tuple[str, ...]) -> Any:
    found = array if isinstance(array, np.ndarray) else np.from_dlpack(array)
    if found.dtype.name not in dtypes:
        raise InvalidArgumentError(f"{what}: expected {' or '.join(dtypes)}, not {found.dtype}")
    return found


def _like(array: Tensor, answer: Any) -> Tensor:
    """A NumPy array as what the caller uses."""
    if type(array).__module__.startswith("torch"):
        import torch

        return torch.from_dlpack(answer)
    return answer


def _empty(like: Tensor, shape: tuple[int, ...], dtype: str) -> Tensor:
    """Uninitialised memory on the CUDA device of `like`."""
    library = type(like).__module__.split(".")[0]
    if library == "torch":
        import torch

        return torch.empty(shape, dtype=getattr(torch, dtype), device=like.device)
    if library == "cupy":
        import cupy

        with like.device:
            return cupy.empty(shape, dtype=dtype)
    raise InvalidArgumentError(f"arrays of {library} on CUDA devices: only torch and cupy")


def _round_up(columns: int) -> int:
    return (columns + 15) // 16 * 16


def quantize_per_token(x: Tensor, *, qmax: int = 127, stream: int = 0) -> tuple[Tensor, Tensor]:
    """x (rows, columns) of float32 or float16 -> int8 of the same shape and a float32 scale a row:
    x ~ q * scale, |q| <= qmax (1 to 127), ties to even. A row with NaN or an infinity has the scale
    NaN and q = 0."""
    if not 1 <= qmax <= 127:
        raise InvalidArgumentError(f"qmax: expected 1 to 127, not {qmax}")
    if _on_cuda(x, "x"):
        columns = cuda_kernels.view(x, stream=stream).shape[-1]
        return _quantize_on_cuda(x, columns, qmax, stream)
    values = _numpy(x, "x", _FLOATS).astype(np.float32, copy=False)
    if values.ndim != 2:
        raise InvalidArgumentError(f"x: expected two dimensions, not {values.ndim}")
    limit = np.float32(qmax)
    largest = np.abs(values).max(axis=1, initial=0)
    usable = np.isfinite(largest) & (largest >= _TINY)
    safe = np.where(usable, largest, np.float32(1))
    scale = np.where(usable, safe / limit, np.float32(0))
    scale[~np.isfinite(largest)] = np.nan
    kept = np.where(usable[:, None], values, np.float32(0))
    q = np.clip(np.rint(kept * (limit / safe)[:, None]), -limit, limit).astype(np.int8)
    return _like(x, q), _like(x, scale.astype(np.float32, copy=False))


def _quantize_on_cuda(x: Tensor, width: int, qmax: int, stream: int) -> tuple[Tensor, Tensor]:
    """q has `width` columns; those past x's are not written."""
    from_x = cuda_kernels.view(x, stream=stream)
    ldx = from_x.rows("x")
    if from_x.dtype not in _FLOATS:
        raise InvalidArgumentError(f"x: expected float32 or float16, not {from_x.dtype}")
    rows, columns = from_x.shape
    q = _empty(x, (rows, width), "int8")
    scale = _empty(x, (rows,), "float32")
    parameters = cuda_kernels.QuantizeRows(
        x=from_x.data,
        ldx=ldx,
        q=cuda_kernels.view(q, stream=stream).data,
        ldq=width,
        scale=cuda_kernels.view(scale, stream=stream).data,
        rows=rows,
        k=columns,
        dtype=cuda_kernels.DTYPES[from_x.dtype],
        qmax=qmax,
    )
    cuda_kernels.call("quantize_rows", parameters, stream)
    return q, scale


def pack(
    weights: Tensor,
    bias: Tensor | None = None,
    *,
    scales: Tensor | None = None,
    activation: str = "none",
    stream: int = 0,
) -> PackedLinear:
    """weights (outputs, inputs): floats, or int8 with `scales` (outputs,); bias
    (outputs,) float32. activation: none, relu, gelu (with erf), silu, and on the CPU gelu_tanh,
    sigmoid and tanh."""
    if _on_cuda(weights, "weights"):
        return _pack_on_cuda(weights, bias, scales, activation, stream)
    by_channel = None if bias is None else _numpy(bias, "bias", ("float32",))
    try:
        if scales is None:
            values = _numpy(weights, "weights", _FLOATS)
            layer = Int8Linear(values, by_channel, activation=activation)
        else:
            layer = Int8Linear.from_quantized(
                _numpy(weights, "weights", ("int8",)),
                _numpy(scales, "scales", ("float32",)),
                by_channel,
                activation=activation,
            )
    except ValueError as error:
        raise InvalidArgumentError(str(error)) from error
    return PackedLinear(layer.inputs, layer.outputs, activation, cpu=layer)


def _pack_on_cuda(
    weights: Tensor, bias: Tensor | None, scales: Tensor | None, activation: str, stream: int
) -> PackedLinear:
    if activation not in cuda_kernels.ACTIVATIONS:
        raise InvalidArgumentError(f"activation: {activation} is not one of CUDA's kernels")
    if len(weights.shape) != 2:
        raise InvalidArgumentError(f"weights: expected two dimensions, not {len(weights.shape)}")
    outputs, inputs = (int(dim) for dim in weights.shape)
    width = _round_up(inputs)
    if scales is None:
        # A row of weights is an output channel: quantised like a token.
        values, scales = _quantize_on_cuda(weights, width, 127, stream)
    else:
        values = _empty(weights, (outputs, width), "int8")
        values[:, :inputs] = weights
    for what, array in (("scales", scales), ("bias", bias)):
        if array is None:
            continue
        seen = cuda_kernels.view(array, stream=stream)
        if seen.device[0] != cuda_kernels.CUDA or seen.dtype != "float32":
            raise InvalidArgumentError(f"{what}: expected float32 on the device of the weights")
        if seen.shape != (outputs,) or (outputs > 1 and seen.strides != (1,)):
            raise InvalidArgumentError(f"{what}: expected {outputs} values side by side")
    return PackedLinear(inputs, outputs, activation, weights=values, scales=scales, bias=bias)


def linear_w8a8(x: Tensor, layer: PackedLinear, *, qmax: int = 127, stream: int = 0) -> Tensor:
    """activation(x W^T + bias) for x (rows, inputs) of float32 or float16; y (rows, outputs) is
    float32 on the CPU, of x's dtype on CUDA. `qmax` is CUDA's."""
    if _on_cuda(x, "x") != layer.on_cuda:
        raise InvalidArgumentError("x and the layer are not on the same device")
    if layer.cpu is not None:
        try:
            return _like(x, layer.cpu.run(_numpy(x, "x", _FLOATS)))
        except ValueError as error:
            raise InvalidArgumentError(str(error)) from error
    at = cuda_kernels.view(x, stream=stream)
    ldx = at.rows("x")
    if at.shape[1] != layer.inputs or at.dtype not in _FLOATS:
        raise InvalidArgumentError(f"x: expected (rows, {layer.inputs}) of float32 or float16")
    rows = at.shape[0]
    width = _round_up(layer.inputs)
    y = _empty(x, (rows, layer.outputs), at.dtype)
    held = [y, _empty(x, (rows, width), "int8"), _empty(x, (rows,), "float32")]

    def address(array: Tensor) -> int:
        return cuda_kernels.view(array, stream=stream).data

    parameters = cuda_kernels.LinearW8A8(
        x=at.data,
        ldx=ldx,
        x_dtype=cuda_kernels.DTYPES[at.dtype],
        qmax=qmax,
        linear=cuda_kernels.Linear(
            a=address(held[1]),
            lda=width,
            row_scale=address(held[2]),
            w=address(layer.weights),
            ldw=width,
            column_scale=address(layer.scales),
            bias=None if layer.bias is None else address(layer.bias),
            y=address(y),
            ldy=layer.outputs,
            m=rows,
            n=layer.outputs,
            k=layer.inputs,
            dtype=cuda_kernels.DTYPES[at.dtype],
            activation=cuda_kernels.ACTIVATIONS[layer.activation],
        ),
    )
    cuda_kernels.call("linear_w8a8", parameters, stream)
    return y
