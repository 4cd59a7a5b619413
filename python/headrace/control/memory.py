"""Giving memory back after an unload."""

from __future__ import annotations

import ctypes
import functools
import gc
from collections.abc import Callable

__all__ = ["return_memory"]


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        trim = ctypes.CDLL(None).malloc_trim  # glibc only
    except (AttributeError, OSError):
        return None
    trim.argtypes = [ctypes.c_size_t]
    trim.restype = ctypes.c_int
    return trim


def return_memory() -> None:
    """Collects garbage cycles (models' Python objects) and hands free heap pages back to the
    system: glibc keeps them otherwise, and load/unload cycles look like a leak."""
    gc.collect()
    trim = _malloc_trim()
    if trim is not None:
        trim(0)
