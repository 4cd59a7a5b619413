"""KServe datatypes as NumPy arrays, and their raw bytes on the wire.

Dense datatypes are little-endian, row-major. BF16 is held as uint16 bit patterns (NumPy has no
bfloat16). BYTES is held as object arrays of `bytes`; on the wire each element is a uint32
little-endian length and then its bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.errors import InvalidArgumentError

__all__ = ["DATATYPES", "datatype_of", "decode", "dtype_of", "encode"]

Array = npt.NDArray[Any]

_DENSE: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BF16": np.dtype("<u2"),
}
DATATYPES: tuple[str, ...] = (*_DENSE, "BYTES")


def dtype_of(datatype: str) -> np.dtype[Any]:
    """The NumPy dtype that holds a KServe datatype; object for BYTES."""
    if datatype == "BYTES":
        return np.dtype(object)
    try:
        return _DENSE[datatype]
    except KeyError:
        raise InvalidArgumentError(
            f"unknown datatype '{datatype}'; known: {', '.join(DATATYPES)}"
        ) from None


def datatype_of(dtype: npt.DTypeLike) -> str:
    """The KServe datatype of a NumPy dtype; strings and objects are BYTES, uint16 is UINT16."""
    resolved = np.dtype(dtype)
    if resolved.kind in "OSU":
        return "BYTES"
    for name, dense in _DENSE.items():
        if dense == resolved.newbyteorder("<"):
            return name
    raise InvalidArgumentError(f"dtype '{resolved}' has no KServe datatype")


def encode(array: Array, datatype: str) -> bytes:
    """Raw wire bytes of `array`, converted to `datatype` where NumPy can."""
    if datatype != "BYTES":
        return np.ascontiguousarray(array, dtype=dtype_of(datatype)).tobytes()
    parts: list[bytes] = []
    for element in array.reshape(-1):
        data = element if isinstance(element, bytes) else str(element).encode("utf-8")
        parts.append(struct.pack("<I", len(data)))
        parts.append(data)
    return b"".join(parts)


def decode(data: bytes, datatype: str, shape: Sequence[int]) -> Array:
    """The array of raw wire bytes. Raises InvalidArgumentError when they do not fill `shape`."""
    count = math.prod(shape)
    if datatype != "BYTES":
        dtype = dtype_of(datatype)
        if len(data) != count * dtype.itemsize:
            raise InvalidArgumentError(
                f"{datatype} of shape {list(shape)} takes {count * dtype.itemsize} bytes, got "
                f"{len(data)}"
            )
        return np.frombuffer(data, dtype=dtype).reshape(shape)
    elements: list[bytes] = []
    at = 0
    while at < len(data):
        if at + 4 > len(data):
            raise InvalidArgumentError("BYTES tensor ends inside a length")
        (length,) = struct.unpack_from("<I", data, at)
        at += 4
        if at + length > len(data):
            raise InvalidArgumentError("BYTES tensor ends inside an element")
        elements.append(data[at : at + length])
        at += length
    if len(elements) != count:
        raise InvalidArgumentError(
            f"BYTES of shape {list(shape)} takes {count} elements, got {len(elements)}"
        )
    array = np.empty(count, dtype=object)
    array[:] = elements
    return array.reshape(shape)
