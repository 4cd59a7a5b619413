"""Where to clip activations before they become INT8: histograms of magnitudes and four ways to read
a threshold from them. Pure.

Activations are quantised symmetrically, per tensor: q = round(x / scale), scale = threshold / 127,
so only |x| counts. A small threshold wastes nothing on rare large values but clips them; which is
worse is what the methods judge differently:

- minmax: the largest magnitude seen, nothing is clipped;
- percentile: this share of the values is not clipped;
- mse: the least mean squared error between x and what its INT8 stands for;
- entropy: the least Kullback-Leibler divergence between the two distributions (Migacz 2017,
  "8-bit inference with TensorRT").
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.errors import InvalidArgumentError

__all__ = ["METHODS", "Histogram", "entropy", "minmax", "mse", "percentile", "threshold"]

Array = npt.NDArray[Any]
METHODS = ("minmax", "percentile", "mse", "entropy")
LEVELS = 127  # of a magnitude; -128 is not used
_BINS = 8192
# Entropy looks at coarser bins, as its authors do: with finer ones most are empty.
_ENTROPY_BINS = 2048


class Histogram:
    """Counts of |x| in equal bins from 0 to `top`, which doubles when larger values come."""

    def __init__(self) -> None:
        self.counts: Array = np.zeros(_BINS, np.int64)
        self.top = 0.0
        self.largest = 0.0  # exact

    def add(self, values: Array) -> None:
        """Raises InvalidArgumentError when a value is not finite."""
        magnitudes = np.abs(np.asarray(values, np.float32).ravel())
        if magnitudes.size == 0:
            return
        largest = float(magnitudes.max())
        if not np.isfinite(largest):
            raise InvalidArgumentError("the model computes NaN or infinity")
        self.largest = max(self.largest, largest)
        if largest == 0 and self.top == 0:
            return  # all-zero tensors have no scale yet
        if self.top == 0:
            self.top = largest
        while largest > self.top:
            self.counts = np.concatenate(
                [self.counts.reshape(-1, 2).sum(axis=1), np.zeros(_BINS // 2, np.int64)]
            )
            self.top *= 2
        # As numpy.histogram, several times as fast.
        at = np.minimum((magnitudes * (_BINS / self.top)).astype(np.int32), _BINS - 1)
        self.counts += np.bincount(at, minlength=_BINS)

    @property
    def width(self) -> float:
        return self.top / _BINS

    @property
    def centres(self) -> Array:
        return (np.arange(_BINS) + 0.5) * self.width


def threshold(histogram: Histogram, method: str, *, share: float = 99.99) -> float:
    """By the method's name; `share` is percentile's. 0 only for a tensor that is always 0."""
    if method == "minmax":
        return minmax(histogram)
    if method == "percentile":
        return percentile(histogram, share)
    if method == "mse":
        return mse(histogram)
    if method == "entropy":
        return entropy(histogram)
    raise InvalidArgumentError(f"calibration is '{method}'; say auto, {', '.join(METHODS)}")


def minmax(histogram: Histogram) -> float:
    return histogram.largest


def percentile(histogram: Histogram, share: float) -> float:
    """The least threshold that `share` percent of the values do not exceed (to a bin)."""
    if not 50 <= share <= 100:
        raise InvalidArgumentError(f"the percentile is {share}; expected 50 to 100, as 99.99")
    total = int(histogram.counts.sum())
    if total == 0 or share == 100:
        return histogram.largest
    above = np.searchsorted(np.cumsum(histogram.counts), total * share / 100)
    return min(float(above + 1) * histogram.width, histogram.largest)


def mse(histogram: Histogram) -> float:
    """Of 120 thresholds from an eighth of the largest value up, that of least squared error."""
    if histogram.largest == 0:
        return 0.0
    used = histogram.counts > 0
    counts, centres = histogram.counts[used], np.minimum(histogram.centres[used], histogram.largest)
    candidates = histogram.largest * np.linspace(1 / 8, 1.0, 120)
    errors = []
    for candidate in candidates:
        scale = candidate / LEVELS
        restored = np.minimum(np.rint(centres / scale), LEVELS) * scale
        errors.append(float(np.dot(counts, np.square(centres - restored))))
    # Of equals the widest: it clips least.
    best = len(errors) - 1 - int(np.argmin(errors[::-1]))
    return float(candidates[best])


def entropy(histogram: Histogram) -> float:
    """Of thresholds at every 16th of 2048 bins, that of least divergence."""
    if histogram.largest == 0:
        return 0.0
    counts = histogram.counts.reshape(_ENTROPY_BINS, -1).sum(axis=1).astype(np.float64)
    last = int(np.nonzero(counts)[0][-1]) + 1
    levels = LEVELS + 1
    best, least = last, np.inf
    for bins in range(levels, last + 1, 16):
        clipped = counts[:bins].copy()
        clipped[-1] += counts[bins:].sum()
        divergence = _divergence(clipped, _coarse(counts[:bins], levels))
        if divergence <= least:
            best, least = bins, divergence
    return min(best * histogram.top / _ENTROPY_BINS, histogram.largest)


def _coarse(counts: Array, levels: int) -> Array:
    """What is left of the distribution after `levels`: each level's mass, spread over those of its
    bins that had any."""
    level = np.arange(len(counts)) * levels // len(counts)
    mass = np.bincount(level, counts, levels)
    filled = np.bincount(level, counts > 0, levels)
    share = np.divide(mass, filled, out=np.zeros(levels), where=filled > 0)
    return np.where(counts > 0, share[level], 0.0)


def _divergence(p: Array, q: Array) -> float:
    if q.sum() == 0:
        return float(np.inf)
    p, q = p / p.sum(), q / q.sum()
    at = p > 0
    # A bin that only clipped values filled has no mass in q: as little as a float can tell.
    return float(np.sum(p[at] * np.log(p[at] / np.maximum(q[at], 1e-12))))
