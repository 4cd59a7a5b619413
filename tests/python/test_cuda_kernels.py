"""headrace.cuda_kernels agrees with the C header, and reads DLPack."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace import cuda_kernels
from headrace.errors import InvalidArgumentError

ROOT = Path(__file__).resolve().parents[2]
STRUCTS = {
    "HeadraceQuantizeRows": cuda_kernels.QuantizeRows,
    "HeadraceLinear": cuda_kernels.Linear,
    "HeadraceLinearW8A8": cuda_kernels.LinearW8A8,
}


def test_structs_lie_in_memory_as_in_c(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    lines = ["#include <stddef.h>", "#include <stdio.h>", '#include "kernels/cuda/int8_cuda.h"']
    lines += ["int main(void) {"]
    expected = []
    for name, struct in STRUCTS.items():
        lines.append(f'  printf("%zu\\n", sizeof(struct {name}));')
        expected.append(ctypes.sizeof(struct))
        for field, *_ in struct._fields_:
            lines.append(f'  printf("%zu\\n", offsetof(struct {name}, {field}));')
            expected.append(getattr(struct, field).offset)
    enums = {"HEADRACE_IDENTITY": "none", "HEADRACE_RELU": "relu", "HEADRACE_GELU": "gelu"}
    enums |= {"HEADRACE_SILU": "silu"}
    for name, activation in enums.items():
        lines.append(f'  printf("%zu\\n", (size_t){name});')
        expected.append(cuda_kernels.ACTIVATIONS[activation])
    codes = ("F32", "F16", "S32", "U8", "S16", "S8")
    for code, dtype in zip(codes, cuda_kernels.DTYPES.values(), strict=True):
        lines.append(f'  printf("%zu\\n", (size_t)HEADRACE_{code});')
        expected.append(dtype)
    source = tmp_path / "layout.c"
    source.write_text("\n".join([*lines, "  return 0;", "}"]))
    program = tmp_path / "layout"
    subprocess.run(
        [compiler, "-I", str(ROOT / "csrc"), str(source), "-o", str(program)], check=True
    )
    printed = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout
    assert [int(line) for line in printed.split()] == expected


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8", "int32"])
def test_a_view_is_the_arrays_memory(dtype: str) -> None:
    array = np.arange(24, dtype=dtype).reshape(4, 6)[1:, 2:]
    seen = cuda_kernels.view(array)
    assert seen.data == array.ctypes.data and seen.shape == (3, 4) and seen.strides == (6, 1)
    assert seen.dtype == dtype and seen.device == (1, 0) and seen.rows("x") == 6


@pytest.mark.parametrize(
    "array", [np.zeros(3, np.float32), np.zeros((4, 6), np.float32)[:, ::2], np.zeros((2, 3)).T]
)
def test_what_has_no_dense_rows_is_refused(array: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        cuda_kernels.view(array).rows("x")
