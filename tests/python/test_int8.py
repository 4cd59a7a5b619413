"""headrace.int8 on the CPU, and what it says where there is no CUDA."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from headrace import int8
from headrace.errors import InvalidArgumentError, UnavailableError

RANDOM = np.random.default_rng(5)


def floats(*shape: int) -> Any:
    return RANDOM.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("qmax", [127, 63])
def test_each_value_is_within_half_a_step(dtype: str, qmax: int) -> None:
    x = (floats(7, 33) * 10).astype(dtype)
    q, scale = int8.quantize_per_token(x, qmax=qmax)
    assert q.dtype == np.int8 and scale.dtype == np.float32 and np.abs(q).max() == qmax
    assert np.all(np.abs(q * scale[:, None] - x) <= 0.5001 * scale[:, None])


def test_odd_rows_quantise_as_documented() -> None:
    x = floats(5, 8)
    x[0] = 0
    x[1, 3] = math.nan
    x[2, 3] = -math.inf
    x[3] = 1e-35
    q, scale = int8.quantize_per_token(x)
    assert scale[0] == 0 and math.isnan(scale[1]) and math.isnan(scale[2]) and scale[3] == 0
    assert not q[:4].any() and scale[4] > 0


def gelu(x: Any) -> Any:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("none", lambda x: x),
        ("relu", lambda x: np.maximum(x, 0)),
        ("gelu", gelu),
        ("silu", lambda x: x / (1 + np.exp(-x))),
    ],
)
def test_a_layer_is_near_the_float_one(activation: str, function: Any) -> None:
    weights, bias, x = floats(40, 100) / 10, floats(40), floats(9, 100)
    y = int8.linear_w8a8(x, int8.pack(weights, bias, activation=activation))
    expected = function(x @ weights.T + bias)
    assert y.shape == (9, 40) and y.dtype == np.float32
    assert np.linalg.norm(y - expected) <= 0.03 * np.linalg.norm(expected)


def test_int8_weights_are_taken_as_they_are() -> None:
    weights = RANDOM.integers(-127, 128, (6, 20)).astype(np.int8)
    scales = np.abs(floats(6)) + 0.01
    x = np.repeat(np.eye(20, dtype=np.float32), 1, axis=0)
    y = int8.linear_w8a8(x, int8.pack(weights, scales=scales))
    assert np.allclose(y, (weights * scales[:, None]).T, rtol=1e-5)


class Foreign:
    """An array of another library: DLPack is all that it has."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        device: tuple[int, int] = self.array.__dlpack_device__()
        return device


def test_arrays_of_other_libraries_come_through_dlpack() -> None:
    weights, x = floats(5, 8), floats(3, 8)
    expected = int8.linear_w8a8(x, int8.pack(weights))
    assert np.array_equal(int8.linear_w8a8(Foreign(x), int8.pack(Foreign(weights))), expected)


def test_torch_tensors_give_torch_tensors() -> None:
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(floats(3, 8))
    y = int8.linear_w8a8(x, int8.pack(torch.from_numpy(floats(5, 8))))
    assert isinstance(y, torch.Tensor) and tuple(y.shape) == (3, 5)
    q, scale = int8.quantize_per_token(x)
    assert q.dtype == torch.int8 and scale.dtype == torch.float32


class OnCuda(Foreign):
    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def __dlpack__(self, **options: Any) -> Any:
        assert options == {"stream": 1}
        return self.array.__dlpack__()

    @property
    def shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.array.shape
        return shape


def test_cuda_arrays_of_unknown_libraries_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="only torch and cupy"):
        int8.quantize_per_token(OnCuda(floats(2, 16)))
    with pytest.raises(InvalidArgumentError, match="same device"):
        int8.linear_w8a8(OnCuda(floats(2, 16)), int8.pack(floats(3, 16)))


def test_without_the_library_cuda_arrays_are_told_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("HEADRACE_CUDA_LIBRARY", str(tmp_path / "none.so"))
    monkeypatch.setattr(int8, "_empty", lambda like, shape, dtype: np.empty(shape, dtype))
    with pytest.raises(UnavailableError, match="make cuda"):
        int8.quantize_per_token(OnCuda(floats(2, 16)))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: int8.pack([[1.0]]),
        lambda: int8.pack(floats(4)),
        lambda: int8.pack(floats(4, 4), floats(5)),
        lambda: int8.pack(floats(4, 4), activation="softplus"),
        lambda: int8.pack(np.zeros((4, 4), np.int8)),
        lambda: int8.pack(np.zeros((4, 4), np.int8), scales=floats(3)),
        lambda: int8.pack(np.full((2, 2), np.nan, np.float32)),
        lambda: int8.linear_w8a8(floats(2, 5), int8.pack(floats(4, 4))),
        lambda: int8.linear_w8a8(np.zeros((2, 4), np.int64), int8.pack(floats(4, 4))),
        lambda: int8.linear_w8a8(floats(4), int8.pack(floats(4, 4))),
        lambda: int8.quantize_per_token(floats(4)),
        lambda: int8.quantize_per_token(floats(4, 4), qmax=128),
    ],
)
def test_what_makes_no_sense_is_an_invalid_argument(wrong: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        wrong()


def test_no_rows_give_no_rows() -> None:
    assert int8.linear_w8a8(floats(0, 4), int8.pack(floats(3, 4))).shape == (0, 3)
    q, scale = int8.quantize_per_token(floats(0, 4))
    assert q.shape == (0, 4) and scale.shape == (0,)
