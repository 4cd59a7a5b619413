"""The CUDA INT8 kernels on a GPU: right, and how fast beside cuBLASLt's int8 and fp16.

    make cuda                                            # builds libheadrace_cuda.so
    HEADRACE_CUDA_LIBRARY=build/dev/libheadrace_cuda.so python bench/gpu/int8_linear.py

Needs torch with CUDA. Every shape is first compared with float64 on the quantised operands (within
1e-6 of the largest output), then measured: CUDA events around a CUDA graph of 20 calls, candidates
in turn, the median of the rounds. cuBLASLt is reached through torch._int_mm (int8 to int32, no
scales: less work than ours does), cuBLAS fp16 through torch.matmul. Writes
bench/results/gpu-int8-linear.json. Without a GPU it says what it would do, and exits with 0.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

LAYERS = ((3072, 768), (768, 3072), (1536, 384), (384, 1536))  # n, k
SHAPES = [
    (4096, 4096, 4096),
    *((m, n, k) for n, k in LAYERS for m in (1, 8, 32, 128, 512)),
]
CALLS = 20
RESULT = Path(__file__).resolve().parents[1] / "results" / "gpu-int8-linear.json"


def check(torch: Any, int8: Any, m: int, n: int, k: int) -> float:
    """The largest deviation from float64 on the same operands, relative to the largest output."""
    x = torch.randn(m, k, device="cuda")
    weights = torch.randn(n, k, device="cuda") / k**0.5
    bias = torch.randn(n, device="cuda")
    layer = int8.pack(weights, bias)
    y = int8.linear_w8a8(x, layer)
    q, scale = int8.quantize_per_token(x)
    torch.cuda.synchronize()
    expected = (q.double() @ layer.weights[:, :k].double().T) * (
        scale.double()[:, None] * layer.scales.double()[None, :]
    ) + bias.double()
    return float(((y.double() - expected).abs().max() / expected.abs().max()).item())


def microseconds(
    torch: Any, candidates: dict[str, Callable[[], Any]], rounds: int
) -> dict[str, float]:
    """Of one call each: the median over rounds in which the candidates take turns."""
    graphs = {}
    for name, call in candidates.items():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graphs[name] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[name]):
            for _ in range(CALLS):
                call()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, graph in graphs.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times[name].append(begin.elapsed_time(end) * 1000 / CALLS)
    return {name: statistics.median(found) for name, found in times.items()}


def measure(torch: Any, int8: Any, m: int, n: int, k: int, rounds: int) -> dict[str, float]:
    from headrace import cuda_kernels

    x = torch.randn(m, k, device="cuda", dtype=torch.float16)
    weights = torch.randn(n, k, device="cuda") / k**0.5
    layer = int8.pack(weights)
    q = torch.empty(m, layer.weights.shape[1], device="cuda", dtype=torch.int8)
    scale = torch.empty(m, device="cuda")
    y = torch.empty(m, n, device="cuda", dtype=torch.float16)

    half = weights.half().T

    def stream() -> int:
        return int(torch.cuda.current_stream().cuda_stream)

    linear = cuda_kernels.Linear(
        a=q.data_ptr(), lda=q.shape[1], row_scale=scale.data_ptr(), w=layer.weights.data_ptr(),
        ldw=layer.weights.shape[1], column_scale=layer.scales.data_ptr(), y=y.data_ptr(), ldy=n,
        m=m, n=n, k=k, dtype=cuda_kernels.DTYPES["float16"],
    )  # fmt: skip
    whole = cuda_kernels.LinearW8A8(
        x=x.data_ptr(), ldx=k, x_dtype=cuda_kernels.DTYPES["float16"], qmax=127, linear=linear
    )
    candidates: dict[str, Callable[[], Any]] = {
        "headrace_w8a8_us": lambda: cuda_kernels.call("linear_w8a8", whole, stream()),
        "headrace_gemm_us": lambda: cuda_kernels.call("linear", linear, stream()),
        "cublas_fp16_us": lambda: torch.matmul(x, half),
    }
    candidates["headrace_w8a8_us"]()  # fills q and scale
    if m > 16:  # torch._int_mm takes no fewer rows
        candidates["cublaslt_int8_us"] = lambda: torch._int_mm(q[:, :k], layer.weights[:, :k].T)
    return microseconds(torch, candidates, rounds)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    try:
        import torch
    except ImportError:
        torch = None
    if torch is None or not torch.cuda.is_available():
        print("no CUDA device (or no torch with CUDA): nothing was measured. With one, this checks")
        print("and measures quantise + GEMM + epilogue, and the GEMM alone, beside cuBLASLt int8")
        print("and cuBLAS fp16, for")
        for m, n, k in SHAPES:
            print(f"  m {m:>5}  n {n:>5}  k {k:>5}")
        return 0
    from headrace import int8

    rows = []
    failed = False
    for m, n, k in SHAPES:
        deviation = check(torch, int8, m, n, k)
        failed |= not deviation <= 1e-6
        row = {"m": m, "n": n, "k": k, "deviation": deviation}
        row |= measure(torch, int8, m, n, k, arguments.rounds)
        row["tops"] = 2e-6 * m * n * k / row["headrace_gemm_us"]
        if "cublaslt_int8_us" in row:
            row["of_cublaslt"] = row["cublaslt_int8_us"] / row["headrace_gemm_us"]
        rows.append(row)
        print("  ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    machine = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "host": platform.platform(),
    }
    arguments.output.write_text(
        json.dumps({"machine": machine, "command": sys.argv, "rows": rows}, indent=1) + "\n"
    )
    print("FAILED: an output is wrong" if failed else f"written to {arguments.output}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
