"""Whole models on our INT8 kernels beside OpenVINO f32, OpenVINO INT8 (Q/DQ) and onnxruntime f32
and dynamic INT8, one thread, in one run: all take turns, the best slice of each counts, so that a
busy neighbour hits all alike.

    python bench/micro/openvino/int8_models.py build/bench/micro/int8_models_bench
    python bench/micro/openvino/int8_models.py PROGRAM --isa avx2 --model minilm=minilm.onnx

The models: a 128-512-512-10 MLP with Gaussian weights, a transformer of MiniLM's shape (6 layers of
384, 12 heads) with random ones, and what is given. `--isa avx2` forces our kernels to AVX2 and asks
oneDNN, hence OpenVINO, to do with AVX2 too (ONEDNN_MAX_CPU_ISA); onnxruntime cannot be asked. The
figures of ours and OpenVINO's are of C++ calls; those of onnxruntime include its Python call, whose
cost on a model that does nothing is printed. Writes bench/results/int8_models-<time>.json.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import itertools
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

ROOT = Path(__file__).resolve().parents[3]
SLICE_S = 0.004
SLICES = 60
MOST_S = 1.5  # then fewer slices do
LINE = re.compile(r"^(\S+) best ([\d.]+) us median ([\d.]+) us error ([\d.]+) \| (.*)$", re.M)


def model_of(
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    x: tuple[int | str, ...],
    y: tuple[int | str, ...],
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return made.SerializeToString()


def mlp(quantised: bool) -> bytes:
    """128-512-512-10; Q/DQ: a scale a channel, activations symmetric, by 256 Gaussian rows."""
    rng = np.random.default_rng(1)
    node = helper.make_node
    sizes = [128, 512, 512, 10]
    constants: dict[str, np.ndarray] = {}
    nodes: list[onnx.NodeProto] = []
    name, rows = "x", rng.normal(0, 1, (256, sizes[0])).astype(np.float32)
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        w = rng.normal(0, a**-0.5, (a, b)).astype(np.float32)
        constants[f"b{i}"] = rng.normal(0, 0.1, b).astype(np.float32)
        last = i + 2 == len(sizes)
        inputs = [name, f"w{i}"]
        if quantised:
            scales = np.abs(w).max(axis=0) / 127
            constants |= {
                f"q{i}": np.rint(w / scales).astype(np.int8),
                f"s{i}": scales.astype(np.float32),
                f"z{i}": np.zeros(b, np.int8),
                f"xs{i}": np.array(np.abs(rows).max() / 127, np.float32),
                f"xz{i}": np.array(0, np.int8),
            }
            nodes += [
                node("QuantizeLinear", [name, f"xs{i}", f"xz{i}"], [f"xq{i}"]),
                node("DequantizeLinear", [f"xq{i}", f"xs{i}", f"xz{i}"], [f"xd{i}"]),
                node("DequantizeLinear", [f"q{i}", f"s{i}", f"z{i}"], [f"w{i}"], axis=1),
            ]
            inputs[0] = f"xd{i}"
        else:
            constants[f"w{i}"] = w
        nodes.append(node("Gemm", [*inputs, f"b{i}"], ["y" if last else f"g{i}"]))
        if not last:
            nodes.append(node("Relu", [f"g{i}"], [f"r{i}"]))
        name, rows = f"r{i}", np.maximum(rows @ w + constants[f"b{i}"], 0)
    return model_of(nodes, constants, ("n", sizes[0]), ("n", sizes[-1]))


def transformer(layers: int = 6, width: int = 384, heads: int = 12) -> bytes:
    """BERT's encoder without its embeddings, random weights as it is initialised."""
    rng = np.random.default_rng(2)
    node = helper.make_node
    constants: dict[str, np.ndarray] = {
        "split": np.array([0, 0, heads, width // heads], np.int64),
        "flat": np.array([0, 0, width], np.int64),
        "root": np.array((width // heads) ** 0.5, np.float32),
        "sqrt2": np.array(2**0.5, np.float32),
        "one": np.array(1, np.float32),
        "half": np.array(0.5, np.float32),
        "gain": np.ones(width, np.float32),
        "shift": np.zeros(width, np.float32),
    }
    nodes: list[onnx.NodeProto] = []

    def linear(source: str, name: str, a: int, b: int) -> str:
        constants[f"w_{name}"] = rng.normal(0, 0.02, (a, b)).astype(np.float32)
        constants[f"b_{name}"] = rng.normal(0, 0.02, b).astype(np.float32)
        nodes.append(node("MatMul", [source, f"w_{name}"], [f"m_{name}"]))
        nodes.append(node("Add", [f"m_{name}", f"b_{name}"], [name]))
        return name

    def normed(a: str, b: str, name: str, eps: float = 1e-12) -> str:
        nodes.append(node("Add", [a, b], [f"sum_{name}"]))
        nodes.append(node("ReduceMean", [f"sum_{name}"], [f"mean_{name}"], axes=[-1]))
        nodes.append(node("Sub", [f"sum_{name}", f"mean_{name}"], [f"c_{name}"]))
        nodes.append(node("Mul", [f"c_{name}", f"c_{name}"], [f"sq_{name}"]))
        nodes.append(node("ReduceMean", [f"sq_{name}"], [f"var_{name}"], axes=[-1]))
        constants["eps"] = np.array(eps, np.float32)
        nodes.append(node("Add", [f"var_{name}", "eps"], [f"ve_{name}"]))
        nodes.append(node("Sqrt", [f"ve_{name}"], [f"sd_{name}"]))
        nodes.append(node("Div", [f"c_{name}", f"sd_{name}"], [f"n_{name}"]))
        nodes.append(node("Mul", [f"n_{name}", "gain"], [f"g_{name}"]))
        nodes.append(node("Add", [f"g_{name}", "shift"], [name]))
        return name

    x = "x"
    for i in range(layers):
        parts = {}
        for p, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
            made = linear(x, f"{p}{i}", width, width)
            nodes.append(node("Reshape", [made, "split"], [f"{made}_s"]))
            nodes.append(node("Transpose", [f"{made}_s"], [f"{made}_t"], perm=perm))
            parts[p] = f"{made}_t"
        nodes.append(node("MatMul", [parts["q"], parts["k"]], [f"score{i}"]))
        nodes.append(node("Div", [f"score{i}", "root"], [f"scaled{i}"]))
        nodes.append(node("Softmax", [f"scaled{i}"], [f"share{i}"], axis=-1))
        nodes.append(node("MatMul", [f"share{i}", parts["v"]], [f"c{i}"]))
        nodes.append(node("Transpose", [f"c{i}"], [f"ct{i}"], perm=[0, 2, 1, 3]))
        nodes.append(node("Reshape", [f"ct{i}", "flat"], [f"cf{i}"]))
        x = normed(linear(f"cf{i}", f"o{i}", width, width), x, f"a{i}")
        up = linear(x, f"u{i}", width, 4 * width)
        nodes.append(node("Div", [up, "sqrt2"], [f"e0{i}"]))
        nodes.append(node("Erf", [f"e0{i}"], [f"e1{i}"]))
        nodes.append(node("Add", [f"e1{i}", "one"], [f"e2{i}"]))
        nodes.append(node("Mul", [up, f"e2{i}"], [f"e3{i}"]))
        nodes.append(node("Mul", [f"e3{i}", "half"], [f"e4{i}"]))
        down = linear(f"e4{i}", f"d{i}", 4 * width, width)
        x = normed(down, x, "y" if i + 1 == layers else f"l{i}")
    return model_of(nodes, constants, ("n", "s", width), ("n", "s", width))


def inputs_of(session: ort.InferenceSession, rows: int, length: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    feed: dict[str, np.ndarray] = {}
    for spec in session.get_inputs():
        shape = [
            d if isinstance(d, int) else rows if i == 0 else length
            for i, d in enumerate(spec.shape)
        ]
        if spec.type == "tensor(float)":
            feed[spec.name] = rng.normal(0, 1, shape).astype(np.float32)
        elif "mask" in spec.name:
            feed[spec.name] = np.ones(shape, np.int64)
        elif "type" in spec.name:
            feed[spec.name] = np.zeros(shape, np.int64)
        else:
            feed[spec.name] = rng.integers(1000, 21000, shape)
    return feed


def session_of(model: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def quantised_dynamically(model: bytes) -> dict[str, bytes]:
    made = {}
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "f.onnx", Path(folder) / "q.onnx"
        source.write_bytes(model)
        for name, seven in (("dynamic", False), ("dynamic 7-bit", True)):
            quantize_dynamic(
                source, target, weight_type=QuantType.QInt8, per_channel=True, reduce_range=seven
            )
            made[name] = target.read_bytes()
    return made


def nothing() -> bytes:
    return model_of([helper.make_node("Identity", ["x"], ["y"])], {}, ("n", 16), ("n", 16))


def slices_of(run: Callable[[], object]) -> list[float]:
    """Microseconds a run."""
    found: list[float] = []
    began = time.perf_counter()
    while len(found) < 5 or (len(found) < SLICES and time.perf_counter() - began < MOST_S):
        runs, start = 0, time.perf_counter()
        while time.perf_counter() - start < SLICE_S:
            run()
            runs += 1
        found.append((time.perf_counter() - start) / runs * 1e6)
    return found


class Row:
    """One way of running a model: the slices of all rounds."""

    def __init__(self) -> None:
        self.best = float("inf")
        self.medians: list[float] = []
        self.error, self.what = 0.0, ""

    def add(self, best: float, median: float) -> None:
        self.best = min(self.best, best)
        self.medians.append(median)

    def report(self) -> dict[str, object]:
        return {
            "best_us": round(self.best, 2),
            "median_us": round(sorted(self.medians)[len(self.medians) // 2], 2),
            "error": round(self.error, 5),
            "what": self.what,
        }


def measure(
    program: Path, models: dict[str, bytes], rows: int, length: int, isa: str, rounds: int
) -> dict[str, dict[str, object]]:
    """`models`: "float", and "qdq" or not. Error: of the output against f32, relative norm."""
    found: dict[str, Row] = {}
    environment = dict(os.environ)
    if isa != "best":
        environment["ONEDNN_MAX_CPU_ISA"] = isa.upper()
    sessions = {"onnxruntime f32": session_of(models["float"])}
    for name, model in quantised_dynamically(models["float"]).items():
        sessions[f"onnxruntime {name}"] = session_of(model)
    sessions["(a Python call of onnxruntime)"] = session_of(nothing())
    feeds = {name: inputs_of(s, rows, length) for name, s in sessions.items()}
    for _ in range(rounds):
        for name, session in sessions.items():
            feed = feeds[name]
            slices = sorted(slices_of(functools.partial(session.run, None, feed)))
            found.setdefault(name, Row()).add(slices[0], slices[len(slices) // 2])
        with tempfile.TemporaryDirectory() as folder:
            for kind, model in models.items():
                path = Path(folder) / f"{kind}.onnx"
                path.write_bytes(model)
                modes = ["off", "operators", "dynamic"] if kind == "float" else ["off", "exact"]
                text = subprocess.run(
                    [program, path, str(rows), str(length), "1", isa, *modes],
                    check=True,
                    capture_output=True,
                    text=True,
                    env=environment,
                ).stdout
                names = {
                    ("float", "off"): "OpenVINO f32",
                    ("float", "operators"): "ours, in OpenVINO's graph",
                    ("float", "dynamic"): "ours",
                    ("qdq", "off"): "OpenVINO INT8 (Q/DQ)",
                    ("qdq", "exact"): "ours (Q/DQ)",
                }
                for mode, best, median, error, what in LINE.findall(text):
                    row = found.setdefault(names[kind, mode], Row())
                    row.add(float(best), float(median))
                    row.error, row.what = float(error), what
    plain = sessions["onnxruntime f32"].run(None, feeds["onnxruntime f32"])[0]
    for name, session in sessions.items():
        if name.startswith("onnxruntime d"):
            answer = session.run(None, feeds["onnxruntime f32"])[0]
            found[name].error = float(np.linalg.norm(answer - plain) / np.linalg.norm(plain))
    return {name: row.report() for name, row in found.items()}


def describe() -> dict[str, object]:
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    return {
        "cpu": cpu.group(1) if cpu else "",
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "commit": commit,
        "versions": {n: importlib.metadata.version(n) for n in ("openvino", "onnxruntime")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("program", type=Path, help="int8_models_bench")
    parser.add_argument("--isa", default="best", help="of our kernels: best, avx2, avx-vnni")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--only", default="", help="a name: measure that model alone")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--length", type=int, default=64, help="tokens")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    models = {
        "mlp 128-512-512-10": {"float": mlp(quantised=False), "qdq": mlp(quantised=True)},
        "transformer 6x384": {"float": transformer()},
    }
    for text in arguments.model:
        name, _, path = text.partition("=")
        models[name] = {"float": Path(path).read_bytes()}
    results: dict[str, object] = {
        "benchmark": "int8_models",
        "machine": describe(),
        "isa": arguments.isa,
        "threads": 1,
        "length": arguments.length,
    }
    for name, made in models.items():
        if arguments.only and arguments.only not in name:
            continue
        for rows in arguments.rows:
            found = measure(
                arguments.program.resolve(),
                made,
                rows,
                arguments.length,
                arguments.isa,
                arguments.rounds,
            )
            results[f"{name}, batch {rows}"] = found
            print(f"{name}, batch {rows}, {arguments.isa}")
            for label, row in found.items():
                ratio = found["OpenVINO f32"]["best_us"] / row["best_us"]  # type: ignore[operator]
                print(
                    f"  {label:32} {row['best_us']:>10} us  median {row['median_us']:>10}"
                    f"  x {ratio:5.2f}  error {row['error']}"
                )
    stamp = datetime.now(timezone.utc).strftime("%Y-%m-%d-%H%M%S")
    target = ROOT / "bench" / "results" / f"int8_models-{stamp}.json"
    target.write_text(json.dumps(results, indent=1) + "\n")
    print(f"written: {target}")


if __name__ == "__main__":
    main()
