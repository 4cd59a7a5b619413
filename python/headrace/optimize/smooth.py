"""SmoothQuant (Xiao et al. 2022, "Accurate and efficient post-training quantization for large
language models"): channels of large activations are divided by a factor that the weights are
multiplied with, x W = (x / s)(s W), so that one scale for the whole tensor serves all channels.

How much to move (the migration strength of the paper, which fixes it at 0.5) is measured for each
tensor, on rows of real activations: the strength whose INT8 product is nearest to the float one, or
none when nothing is gained. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Smoothing", "choose", "factors", "product_error", "quantize_weights"]

Array = npt.NDArray[Any]
STRENGTHS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
# Factors that cannot be folded into the layer before cost a multiplication at run time.
_WORTH = 0.9


@dataclass(frozen=True)
class Smoothing:
    """For one tensor: activations are divided by `divide_by`, (channels,) float32."""

    divide_by: Array
    strength: float
    error_before: float  # of the product, relative, on the rows that were looked at
    error_after: float


def quantize_weights(weights: Array, axis: int, bits: int) -> tuple[Array, Array]:
    """(int8 weights, float32 scales), symmetric, a scale for each index along `axis`. 7 bits use
    -63..63, so that two products of a u8 and a weight fit 16 bits (x86 without VNNI adds such
    pairs in 16 bits and saturates)."""
    limit = 127 if bits == 8 else 63
    others = tuple(i for i in range(weights.ndim) if i != axis)
    largest = np.abs(weights).max(axis=others)
    # Subnormal scales are 0 to hardware that flushes them.
    scales = np.where(largest > limit * 1e-30, largest / limit, 1.0).astype(np.float32)
    shape = [1] * weights.ndim
    shape[axis] = -1
    q = np.clip(np.rint(weights / scales.reshape(shape)), -limit, limit)
    return q.astype(np.int8), scales


def factors(x_max: Array, w_max: Array, strength: float) -> Array:
    """s of each channel: x_max^a / w_max^(1-a), scaled to a geometric mean of 1. Channels that are
    always 0 on either side keep 1."""
    s = np.ones(len(x_max), np.float64)
    live = (x_max > 0) & (w_max > 0)
    if not live.any():
        return s.astype(np.float32)
    logs = strength * np.log(x_max[live].astype(np.float64)) - (1 - strength) * np.log(
        w_max[live].astype(np.float64)
    )
    # A wider range than this would leave float32's for extreme channels.
    s[live] = np.exp(np.clip(logs - logs.mean(), -12, 12))
    return s.astype(np.float32)


def product_error(rows: Array, weights: Array, x_max: float, bits: int) -> float:
    """Error of the INT8 product: rows (n, k) with scale x_max / 127, weights (k, m). The root mean
    square of each row's relative L2 error: what follows a layer mostly normalises rows, so a few
    large ones must not decide for all."""
    exact = rows @ weights
    norms = np.linalg.norm(exact, axis=1)
    if x_max == 0 or not norms.any():
        return 0.0
    scale = x_max / 127
    q, scales = quantize_weights(weights, 1, bits)
    x = np.clip(np.rint(rows / scale), -127, 127).astype(np.float32)
    got = (x @ q.astype(np.float32)) * (scales * np.float32(scale))
    # Rows that are nearly 0 count as a tenth of the usual one.
    errors = np.linalg.norm(got - exact, axis=1) / np.maximum(norms, 0.1 * np.median(norms))
    return float(np.sqrt(np.square(errors).mean()))


def choose(
    rows: Array,
    x_max: Array,
    weights: Array,
    *,
    bits: int = 8,
    free: bool = False,
    strengths: tuple[float, ...] = STRENGTHS,
) -> Smoothing | None:
    """The best strength for activations whose channels reached `x_max` (k,) on the data that scales
    come from, judged on `rows` (n, k) of other data, and the weights (k, m) that read them.
    `free`: the factors cost nothing at run time, so any gain is taken. With one strength given,
    that one."""
    before = product_error(rows, weights, float(x_max.max()), bits)
    w_max = np.abs(weights).max(axis=1)
    found: list[Smoothing] = []
    for strength in strengths:
        s = factors(x_max, w_max, strength)
        after = product_error(rows / s, weights * s[:, None], float((x_max / s).max()), bits)
        found.append(Smoothing(s, strength, before, after))
    best = min(found, key=lambda one: one.error_after)
    if len(strengths) == 1:
        return best
    return best if best.error_after < before * (1.0 if free else _WORTH) else None
