"""tools/cuda_gates.py reads ptxas and SASS, and finds each kind of fault."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]


def _load() -> ModuleType:
    path = ROOT / "tools" / "cuda_gates.py"
    spec = importlib.util.spec_from_file_location("cuda_gates", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cuda_gates"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


cuda_gates = _load()

PTXAS = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z1av' for 'sm_90'
ptxas info    : Function properties for _Z1av
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 92 registers, used 1 barriers, 440 bytes cmem[0]
ptxas info    : Compiling entry function '_Z1bv' for 'sm_90'
ptxas info    : Function properties for _Z1bv
    128 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers
"""

SASS = """\
\t\tFunction : _Z1av
        /*0000*/                   MOV R1, c[0x0][0x28] ;    /* 0x00000a0000017a02 */
                                                             /* 0x000fe20000000f00 */
        /*0010*/              @!P0 IMMA.16832.S8.S8 R4, R8.ROW, R2.COL, R4 ;
        /*0020*/               @P1 STL [R1+0x4], R4 ;
        /*0030*/                   IMMA.16832.S8.S8 R4, R8.ROW, R2.COL, R4 ;
"""


def test_what_ptxas_prints_is_read() -> None:
    kernels = cuda_gates.parse_ptxas(PTXAS)
    assert [(k.registers, k.stack, k.spills) for k in kernels.values()] == [
        (92, 0, 0),
        (255, 128, 20),
    ]
    assert kernels["_Z1bv"].architecture == "sm_90"


def test_machine_instructions_are_counted_without_predicates_and_modifiers() -> None:
    assert cuda_gates.count_instructions(SASS) == {"_Z1av": {"MOV": 1, "IMMA": 2, "STL": 1}}


def _kernel(**changes: object) -> object:
    values = {
        "name": "gemm_s8<Tile<64, 64, 64, 2, 2, 4>, float>",
        "architecture": "sm_90",
        "registers": 92,
        "instructions": {"IMMA": 8},
    }
    return cuda_gates.Kernel(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, None),
        ({"instructions": {}}, None),  # there was no disassembler
        ({"spills": 4}, "spills"),
        ({"stack": 8}, "stack"),
        ({"registers": 129}, "registers"),
        ({"name": "new_kernel<int>"}, "no register limit"),
        ({"instructions": {"IMMA": 8, "LDL": 1}}, "local memory"),
        ({"instructions": {"MOV": 1}}, "IMMA"),
    ],
)
def test_each_fault_is_found(changes: dict[str, object], fault: str | None) -> None:
    found = cuda_gates.violations(_kernel(**changes))
    assert [fault in text for text in found] == ([] if fault is None else [True])
