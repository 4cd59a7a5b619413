"""A file's bytes as magika's model reads them.

The feature extraction of magika's standard_v3 models: up to 4096 bytes of each end, stripped of
white space, 1024 tokens of each; 256 pads.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

BLOCK = 4096
TOKENS = 1024
PADDING = 256


def features(path: Path) -> npt.NDArray[np.int32]:
    """(1, 2048) INT32: 1024 tokens of the file's start, 1024 of its end."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        start = file.read(BLOCK).lstrip()[:TOKENS]
        file.seek(max(0, size - BLOCK))
        end = file.read(BLOCK).rstrip()[-TOKENS:]
    tokens = np.full((1, 2 * TOKENS), PADDING, np.int32)
    tokens[0, : len(start)] = np.frombuffer(start, np.uint8)
    tokens[0, 2 * TOKENS - len(end) :] = np.frombuffer(end, np.uint8)
    return tokens
