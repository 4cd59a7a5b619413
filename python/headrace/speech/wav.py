"""WAV files as samples."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from headrace.errors import InvalidArgumentError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["read_wav"]


def read_wav(path: Path, rate: int) -> NDArray[np.float32]:
    """Mono, in [-1, 1]. InvalidArgumentError for anything but 16-bit PCM of `rate` Hz; several
    channels are averaged."""
    try:
        with wave.open(str(path), "rb") as file:
            channels, width, found = file.getnchannels(), file.getsampwidth(), file.getframerate()
            data = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise InvalidArgumentError(f"{path} is no PCM WAV file: {error}") from None
    if width != 2 or found != rate:
        raise InvalidArgumentError(
            f"{path} has {8 * width} bits at {found} Hz; 16 bits at {rate} Hz are needed"
        )
    samples = np.frombuffer(data[: len(data) // (2 * channels) * 2 * channels], "<i2")
    mono: NDArray[np.float32] = (samples.reshape(-1, channels).mean(axis=1) / 32768.0).astype(
        np.float32
    )
    return mono
