"""Inspects what nvcc makes of the CUDA kernels, without a GPU.

Compiles them for each architecture and fails when a kernel spills registers, has a stack frame,
takes more registers than its occupancy allows, touches local memory, or (the matrix kernels) has no
integer tensor-core instruction.

    python tools/cuda_gates.py [--arch sm_80 --arch sm_90]     # exit status 1 when a gate fails

Without nvcc it says so and exits with 0. cuobjdump and nvdisasm, for the last two gates, come with
the CUDA toolkit or from PyPI (nvidia-cuda-cuobjdump, nvidia-cuda-nvdisasm); without them
those gates are left out.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "csrc" / "kernels" / "cuda" / "int8_cuda.cu"
ARCHITECTURES = ("sm_80", "sm_90")

# Registers a thread, by what the name of a kernel contains; the first that fits counts. A
# multiprocessor has 65536: 255 for two blocks of 128 threads, 128 for four, 64 for four of 256.
REGISTER_LIMITS = (
    ("gemm_s8<Tile<128", 255),
    ("gemm_s8<", 128),
    ("fused_linear<", 128),
    ("layer_norm_quantize<", 64),
    ("quantize_rows<", 64),
    ("gather_rows<", 40),
)
MATRIX_KERNELS = ("gemm_s8<", "fused_linear<")


@dataclass
class Kernel:
    """One kernel for one architecture: figures of ptxas and counts of machine instructions."""

    name: str
    architecture: str
    registers: int = 0
    stack: int = 0
    spills: int = 0
    instructions: dict[str, int] = field(default_factory=dict)


def parse_ptxas(text: str) -> dict[str, Kernel]:
    """Kernels by mangled name, from what `ptxas -v` prints."""
    kernels: dict[str, Kernel] = {}
    current: Kernel | None = None
    for line in text.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)' for '(sm_\w+)'", line):
            current = kernels.setdefault(found[1], Kernel(found[1], found[2]))
        elif current is None:
            continue
        elif found := re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line
        ):
            current.stack = int(found[1])
            current.spills = int(found[2]) + int(found[3])
        elif found := re.search(r"Used (\d+) registers", line):
            current.registers = int(found[1])
    return kernels


_SASS_FUNCTION = re.compile(r"^\s*Function : (\w+)")
_SASS_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)")


def count_instructions(text: str) -> dict[str, dict[str, int]]:
    """By mangled name of a kernel: how often each opcode is in `cuobjdump -sass`."""
    counts: dict[str, dict[str, int]] = {}
    current: dict[str, int] | None = None
    for line in text.splitlines():
        if found := _SASS_FUNCTION.match(line):
            current = counts.setdefault(found[1], {})
        elif current is not None and (found := _SASS_INSTRUCTION.match(line)):
            current[found[1]] = current.get(found[1], 0) + 1
    return counts


def plain(name: str) -> str:
    """A demangled name without what is the same for all: namespaces, casts, the parameters."""
    name = name.removeprefix("void ").replace("headrace::cuda::", "").replace("(int)", "")
    return re.sub(r">\([^()]*\)$", ">", name)


def violations(kernel: Kernel) -> list[str]:
    """What is wrong with a kernel; instructions count only where they are known."""
    wrong: list[str] = []
    if kernel.spills:
        wrong.append(f"spills {kernel.spills} bytes")
    if kernel.stack:
        wrong.append(f"has a stack frame of {kernel.stack} bytes")
    limit = next((limit for part, limit in REGISTER_LIMITS if part in kernel.name), None)
    if limit is None:
        wrong.append("has no register limit in tools/cuda_gates.py")
    elif kernel.registers > limit:
        wrong.append(f"takes {kernel.registers} registers, {limit} are allowed")
    if kernel.instructions:
        local = kernel.instructions.get("LDL", 0) + kernel.instructions.get("STL", 0)
        if local:
            wrong.append(f"touches local memory {local} times")
        if kernel.name.startswith(MATRIX_KERNELS) and not kernel.instructions.get("IMMA"):
            wrong.append("has no IMMA instruction")
    return wrong


def _tool(name: str) -> str | None:
    if found := shutil.which(name):
        return found
    places = [Path(os.environ["CUDA_HOME"]) / "bin"] if "CUDA_HOME" in os.environ else []
    places += [Path(entry) / "nvidia" / "cu13" / "bin" for entry in sys.path if entry]
    return next((str(place / name) for place in places if (place / name).is_file()), None)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout + done.stderr


def _demangled(names: list[str]) -> dict[str, str]:
    tool = shutil.which("c++filt") or _tool("cu++filt")
    if tool is None or not names:
        return {name: name for name in names}
    lines = subprocess.run(
        [tool], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return dict(zip(names, lines, strict=True))


def inspect(nvcc: str, architecture: str) -> list[Kernel]:
    """Compiles for one architecture and gathers the figures."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = str(Path(folder) / "kernels.cubin")
        options = ["-std=c++20", "-O3", "-cubin", f"-arch={architecture}", "-Xptxas", "-v"]
        report = _run(nvcc, *options, "-I", str(ROOT / "csrc"), str(SOURCE), "-o", cubin)
        kernels = parse_ptxas(report)
        cuobjdump, nvdisasm = _tool("cuobjdump"), _tool("nvdisasm")
        if cuobjdump is not None and nvdisasm is not None:
            os.environ["PATH"] = f"{os.environ['PATH']}{os.pathsep}{Path(nvdisasm).parent}"
            for name, counts in count_instructions(_run(cuobjdump, "-sass", cubin)).items():
                if name in kernels:
                    kernels[name].instructions = counts
    names = _demangled(list(kernels))
    for mangled, kernel in kernels.items():
        kernel.name = plain(names[mangled])
    return sorted(kernels.values(), key=lambda kernel: kernel.name)


def main() -> int:
    parser = argparse.ArgumentParser(description="Gates on the compiled CUDA kernels.")
    parser.add_argument("--arch", action="append", help="sm_80 and sm_90 when left out")
    arguments = parser.parse_args()
    nvcc = _tool("nvcc")
    if nvcc is None:
        print("cuda gates: skipped, there is no nvcc (PATH, CUDA_HOME)")
        return 0
    if _tool("cuobjdump") is None or _tool("nvdisasm") is None:
        print("cuda gates: no cuobjdump and nvdisasm, machine code is not looked at")
    failed = False
    for architecture in arguments.arch or ARCHITECTURES:
        kernels = inspect(nvcc, architecture)
        if not kernels:
            print(f"{architecture}: no kernels were found in what ptxas printed")
            failed = True
        print(f"{architecture:<8} regs stack spill IMMA LDSM LDGSTS")
        for kernel in kernels:
            counts = [
                str(kernel.instructions.get(opcode, 0)) if kernel.instructions else "-"
                for opcode in ("IMMA", "LDSM", "LDGSTS")
            ]
            print(
                f"{'':<8} {kernel.registers:>4} {kernel.stack:>5} {kernel.spills:>5} "
                f"{counts[0]:>4} {counts[1]:>4} {counts[2]:>6}  {kernel.name}"
            )
            for wrong in violations(kernel):
                failed = True
                print(f"  FAILED: {kernel.name} {wrong}")
    print("cuda gates: FAILED" if failed else "cuda gates: passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
