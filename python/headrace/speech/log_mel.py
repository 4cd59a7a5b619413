"""Whisper's features: log-mel energies of 25 ms windows every 10 ms, as transformers computes
them."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["log_mel"]

_RATE, _WINDOW, _HOP = 16000, 400, 160


def log_mel(samples: NDArray[np.float32], bands: int = 80) -> NDArray[np.float32]:
    """(bands, len(samples) // 160)."""
    padded = np.pad(samples.astype(np.float64), _WINDOW // 2, mode="reflect")
    count = len(samples) // _HOP
    starts = np.arange(count)[:, None] * _HOP + np.arange(_WINDOW)[None, :]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / _WINDOW)
    power = np.abs(np.fft.rfft(padded[starts] * window, axis=1)) ** 2
    energies = np.log10(np.maximum(_filters(bands) @ power.T, 1e-10))
    energies = np.maximum(energies, energies.max() - 8.0)
    scaled: NDArray[np.float32] = ((energies + 4.0) / 4.0).astype(np.float32)
    return scaled


@lru_cache(maxsize=2)
def _filters(bands: int) -> NDArray[np.float64]:
    """(bands, 201): slaney's mel scale from 0 to 8 kHz, triangles of equal area."""
    edges = _hertz(np.linspace(0.0, _mel(8000.0), bands + 2))
    bins = np.linspace(0, _RATE / 2, _WINDOW // 2 + 1)
    rising = (bins[None, :] - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins[None, :]) / np.diff(edges)[1:, None]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    scaled: NDArray[np.float64] = triangles * (2.0 / (edges[2:] - edges[:-2]))[:, None]
    return scaled


_LINEAR = 200.0 / 3  # Hz a mel below 1 kHz
_STEP = np.log(6.4) / 27.0


def _mel(hertz: float) -> float:
    return float(15.0 + np.log(hertz / 1000.0) / _STEP) if hertz >= 1000 else hertz / _LINEAR


def _hertz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mels < 15.0, mels * _LINEAR, 1000.0 * np.exp(_STEP * (mels - 15.0)))
