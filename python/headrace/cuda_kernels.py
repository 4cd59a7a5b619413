"""The door to libheadrace_cuda.so (csrc/kernels/cuda/int8_cuda.h): its structs, its functions, and
arrays of any library as addresses, through DLPack.

Found beside this file, or where HEADRACE_CUDA_LIBRARY says; wheels have it when nvcc was there at
build time. Nothing here allocates: outputs are the caller's arrays."""

from __future__ import annotations

import ctypes
import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from headrace.errors import InvalidArgumentError, UnavailableError

__all__ = [
    "ACTIVATIONS",
    "CUDA",
    "DTYPES",
    "Linear",
    "LinearW8A8",
    "QuantizeRows",
    "View",
    "call",
    "library_path",
    "view",
]

# DLPack's device types, HeadraceDtype, HeadraceActivation.
CPU = 1
CUDA = 2
DTYPES = {"float32": 0, "float16": 1, "int32": 2, "uint8": 3, "int16": 4, "int8": 5}
ACTIVATIONS = {"none": 0, "relu": 1, "gelu": 2, "silu": 3}

_P, _I32, _I64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64


class QuantizeRows(ctypes.Structure):
    """HeadraceQuantizeRows."""

    _fields_: ClassVar[Any] = [
        ("x", _P),
        ("ldx", _I64),
        ("q", _P),
        ("ldq", _I64),
        ("scale", _P),
        ("rows", _I32),
        ("k", _I32),
        ("dtype", _I32),
        ("qmax", _I32),
    ]


class Linear(ctypes.Structure):
    """HeadraceLinear."""

    _fields_: ClassVar[Any] = [
        ("a", _P),
        ("lda", _I64),
        ("row_scale", _P),
        ("w", _P),
        ("ldw", _I64),
        ("column_scale", _P),
        ("bias", _P),
        ("y", _P),
        ("ldy", _I64),
        ("m", _I32),
        ("n", _I32),
        ("k", _I32),
        ("dtype", _I32),
        ("activation", _I32),
    ]


class LinearW8A8(ctypes.Structure):
    """HeadraceLinearW8A8."""

    _fields_: ClassVar[Any] = [
        ("x", _P),
        ("ldx", _I64),
        ("x_dtype", _I32),
        ("qmax", _I32),
        ("linear", Linear),
    ]


def library_path() -> Path:
    """Where the library is looked for."""
    beside = Path(__file__).with_name("libheadrace_cuda.so")
    return Path(os.environ.get("HEADRACE_CUDA_LIBRARY", beside))


@functools.cache
def _load(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise UnavailableError(
            f"the array is on a CUDA device, and Headrace's CUDA kernels cannot be loaded: {error}."
            " They are built where nvcc is found (`make cuda`, or a wheel built with it);"
            " HEADRACE_CUDA_LIBRARY names another place"
        ) from error
    for name in ("quantize_rows", "linear", "linear_w8a8"):
        function = getattr(library, f"headrace_cuda_{name}")
        function.argtypes = [_P, _P]
        function.restype = ctypes.c_char_p
    return library


def call(function: str, parameters: ctypes.Structure, stream: int) -> None:
    """Queues headrace_cuda_<function> on `stream` (a cudaStream_t, 0: the default stream)."""
    library = _load(library_path())
    wrong = getattr(library, f"headrace_cuda_{function}")(ctypes.addressof(parameters), stream)
    if wrong is not None:
        raise InvalidArgumentError(f"{function}: {wrong.decode()}")


class _DlTensor(ctypes.Structure):
    _fields_: ClassVar[Any] = [
        ("data", _P),
        ("device_type", _I32),
        ("device_id", _I32),
        ("ndim", _I32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(_I64)),
        ("strides", ctypes.POINTER(_I64)),
        ("byte_offset", ctypes.c_uint64),
    ]


_DL_CODES = {0: "int", 1: "uint", 2: "float", 4: "bfloat"}
_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
_capsule_pointer.restype = _P


@dataclass(frozen=True)
class View:
    """An array's memory, borrowed: `owner` keeps it there. Strides in elements."""

    data: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    device: tuple[int, int]
    owner: Any

    def rows(self, what: str) -> int:
        """The distance of rows in elements; raises unless it is a matrix of dense rows."""
        if len(self.shape) != 2:
            raise InvalidArgumentError(f"{what}: expected two dimensions, not {len(self.shape)}")
        if self.shape[1] > 1 and self.strides[1] != 1:
            raise InvalidArgumentError(f"{what}: the elements of a row do not lie side by side")
        return self.strides[0] if self.shape[0] > 1 else self.shape[1]


def view(array: Any, *, stream: int = 0) -> View:
    """The memory of anything with `__dlpack__`. On CUDA it is ready for work that is queued on
    `stream`."""
    # 1 is DLPack's name for the default stream; CPU arrays take none.
    on_cuda = int(array.__dlpack_device__()[0]) == CUDA
    capsule = array.__dlpack__(stream=stream or 1) if on_cuda else array.__dlpack__()
    # Not consumed: the capsule frees what it holds when it goes, so the View keeps it.
    tensor = _DlTensor.from_address(_capsule_pointer(capsule, b"dltensor"))
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    strides: tuple[int, ...] = ()
    if tensor.strides:
        strides = tuple(tensor.strides[i] for i in range(tensor.ndim))
    else:
        size = 1
        for dim in reversed(shape):
            strides = (size, *strides)
            size *= dim
    return View(
        data=(tensor.data or 0) + tensor.byte_offset,
        shape=shape,
        strides=strides,
        dtype=f"{_DL_CODES.get(tensor.code, 'code')}{tensor.bits}",
        device=(tensor.device_type, tensor.device_id),
        owner=(capsule, array),
    )
