"""GOP/s of linear layers, one thread: our INT8 kernels on every instruction set of this machine
beside OpenVINO f32, OpenVINO with Q/DQ and onnxruntime f32 and dynamic INT8 (where installed). All
take turns, the best slice of each counts, so that a busy neighbour hits all alike.

    python bench/micro/kernels/int8_layers.py build/bench/micro/int8_linear_bench [K,N ...]
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino
from onnx import TensorProto, helper, numpy_helper

SHAPES = [(128, 512), (384, 384), (384, 1536), (1536, 384), (768, 3072)]
ROWS = [1, 8, 32, 64, 512]
ROUNDS = 4
SLICE_S = 0.003  # short: one in which nobody else ran is soon found
SLICES = 40


def layer(k: int, n: int, quantised: bool) -> bytes:
    rng = np.random.default_rng(0)
    weights = rng.normal(0, k**-0.5, (k, n)).astype(np.float32)
    bias = rng.normal(0, 1, n).astype(np.float32)
    constants = {"b": bias}
    nodes = []
    x, w = "x", "w"
    if quantised:
        scales = np.abs(weights).max(axis=0) / 127
        constants |= {
            "wq": np.rint(weights / scales).astype(np.int8),
            "ws": scales.astype(np.float32),
            "wz": np.zeros(n, np.int8),
            "xs": np.array(4.5 / 127, np.float32),
            "xz": np.array(0, np.int8),
        }
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "xs", "xz"], ["xd"]),
            helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], axis=1),
        ]
        x, w = "xd", "wd"
    else:
        constants["w"] = weights
    nodes += [helper.make_node("MatMul", [x, w], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("m", k))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("m", n))],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


def openvino_runner(core: openvino.Core, model: bytes, x: np.ndarray) -> Callable[[], object]:
    read = core.read_model(model, b"")
    read.reshape(list(x.shape))
    config = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(read, "CPU", config).create_infer_request()
    request.set_input_tensor(openvino.Tensor(x))
    return request.infer


def onnxruntime_runners(model: bytes, x: np.ndarray) -> dict[str, Callable[[], object]]:
    try:
        import onnxruntime as ort
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        print(f"without onnxruntime: {error}", file=sys.stderr)
        return {}
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "f.onnx", Path(folder) / "q.onnx"
        source.write_bytes(model)
        quantize_dynamic(source, target, weight_type=QuantType.QInt8, per_channel=True)
        sessions = {
            "ort f32": ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]),
            "ort dyn": ort.InferenceSession(
                target.read_bytes(), options, providers=["CPUExecutionProvider"]
            ),
        }
    return {name: lambda s=s: s.run(None, {"x": x}) for name, s in sessions.items()}


def best_slice(run: Callable[[], object]) -> float:
    """Seconds a run."""
    return min(one_slice(run) for _ in range(SLICES))


def one_slice(run: Callable[[], object]) -> float:
    runs, start = 0, time.perf_counter()
    while True:
        run()
        runs += 1
        now = time.perf_counter()
        if now - start > SLICE_S:
            return (now - start) / runs


def ours(program: str, k: int, n: int, m: int) -> dict[str, float]:
    """GOP/s by instruction set."""
    text = subprocess.run(
        [program, str(k), str(n), str(m)], check=True, capture_output=True, text=True
    ).stdout
    return {name: float(g) for name, g in re.findall(r"^(\S+) .*? ([\d.]+) GOP/s", text, re.M)}


def main() -> None:
    program = sys.argv[1]
    shapes = [tuple(map(int, text.split(","))) for text in sys.argv[2:]] or SHAPES
    core = openvino.Core()
    for k, n in shapes:
        for m in ROWS:
            x = np.random.default_rng(1).normal(0, 1, (m, k)).astype(np.float32)
            plain = layer(k, n, quantised=False)
            runners = {
                "OV f32": openvino_runner(core, plain, x),
                "OV Q/DQ": openvino_runner(core, layer(k, n, quantised=True), x),
                **onnxruntime_runners(plain, x),
            }
            best = dict.fromkeys(runners, float("inf"))
            kernels: dict[str, float] = {}
            for _ in range(ROUNDS):
                for name, run in runners.items():
                    best[name] = min(best[name], best_slice(run))
                for name, gops in ours(program, k, n, m).items():
                    kernels[name] = max(kernels.get(name, 0.0), gops)
            work = 2e-9 * k * n * m
            gops = {name: work / seconds for name, seconds in best.items()} | kernels
            fastest = max(kernels.values())
            print(
                f"K {k:4} N {n:4} M {m:4}  "
                + "  ".join(f"{name} {value:6.1f}" for name, value in gops.items())
                + f"  best ours / OV f32 {fastest / gops['OV f32']:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
